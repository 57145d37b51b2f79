"""A contract server, a client that talks to it, and one traced run, for the tests of tracing.

Import `the_server` and `the_client` in a test module to have the fixtures `server` and `client` there.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest
from langfuse import Langfuse, propagate_attributes
from langfuse_server import LangfuseServer, close_client
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider

__all__ = ["the_client", "the_server", "traced"]


@pytest.fixture(name="server")
def the_server() -> Iterator[LangfuseServer]:
    with LangfuseServer() as server:
        yield server


@pytest.fixture(name="client")
def the_client(server: LangfuseServer) -> Iterator[Langfuse]:
    provider = TracerProvider(resource=Resource.create({"langfuse.environment": "dev", "langfuse.release": "r1"}))
    client = Langfuse(**server.keys, environment="dev", tracer_provider=provider, timeout=5)
    yield client
    close_client(client)


def traced(client: Langfuse) -> str:
    """One run of a graph with a stage, a generation and a stage that fails."""
    trace_id = Langfuse.create_trace_id(seed="run")
    prompt = client.create_prompt(name="graph/writer", prompt="Write {{what}}.", labels=["production"])
    with (
        propagate_attributes(trace_name="graph", user_id="u", session_id="s", tags=["a", "b"], version="v1"),
        client.start_as_current_observation(
            name="graph", as_type="chain", trace_context={"trace_id": trace_id}, input={"q": 1}
        ) as root,
    ):
        with client.start_as_current_observation(
            name="stage:writer",
            as_type="agent",
            input="in",
            metadata={"stage": "writer", "index": 0, "long": "x" * 300},
        ) as stage:
            with (
                propagate_attributes(prompt=prompt),
                client.start_as_current_observation(
                    name="chat",
                    as_type="generation",
                    model="m",
                    usage_details={"input": 3, "output": 2},
                    cost_details={"total": 0.5},
                    model_parameters={"temperature": 0.1},
                    completion_start_time=datetime.now(UTC),
                ),
            ):
                pass
            stage.update(output="out")
        with client.start_as_current_observation(name="stage:critic", as_type="agent") as stage:
            stage.update(level="ERROR", status_message="broke")
        root.update(output={"a": 2})
    client.flush()
    return trace_id
