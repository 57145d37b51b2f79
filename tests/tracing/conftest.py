"""What the tests of tracing are given: a contract server, and what talks to it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from langfuse import Langfuse
from langfuse_server import LangfuseServer, close_client
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from recorded_runs import Desk
from small_runs import Make
from traced_runs import Watch

from stagegraph.tracing import LangfuseTracing
from stagegraph.tracing.tracing import _of_process


@pytest.fixture
def server() -> Iterator[LangfuseServer]:
    with LangfuseServer() as server:
        yield server


@pytest.fixture
def keys(server: LangfuseServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The keys of the server in the environment."""
    _of_process.clear()
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    yield monkeypatch
    for tracing in _of_process.values():
        tracing.close(0)
    _of_process.clear()


@pytest.fixture
def client(server: LangfuseServer) -> Iterator[Langfuse]:
    """Langfuse's own client."""
    provider = TracerProvider(resource=Resource.create({"langfuse.environment": "dev", "langfuse.release": "r1"}))
    client = Langfuse(**server.keys, environment="dev", tracer_provider=provider, timeout=5)
    yield client
    close_client(client)


@pytest.fixture
def make(server: LangfuseServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Tracings that speak to the server, wait a short time for it and are closed at the end of the test."""
    monkeypatch.setenv("LANGFUSE_TIMEOUT", "0.3")
    made: list[LangfuseTracing] = []

    def make(**options: Any) -> LangfuseTracing:
        made.append(LangfuseTracing(**server.keys | options))
        return made[-1]

    yield make
    for tracing in made:
        tracing.close(0)


@pytest.fixture
def watch(server: LangfuseServer) -> Iterator[Watch]:
    watch = Watch(server)
    yield watch
    for tracing in watch.tracings:
        tracing.close(10)


@pytest.fixture
async def desk(server: LangfuseServer) -> AsyncIterator[Desk]:
    desk = Desk(server)
    yield desk
    desk.tracing.close(5)
