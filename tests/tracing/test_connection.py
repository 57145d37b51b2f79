"""Where tracing goes: the keys, the variables of the environment, and what is said when they are wrong."""

from __future__ import annotations

import re
from typing import Any

import pytest
from langfuse_server import LangfuseServer
from small_runs import Echo, Make, once_each, runs

from stagegraph import DeclarationError, Runner, feedback
from stagegraph.tracing import LangfuseTracing
from stagegraph.tracing.attributes import trace_id
from stagegraph.tracing.tracing import _of_process

pytestmark = pytest.mark.anyio


async def test_without_keys_nothing_is_traced(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture):
    """A program that never heard of Langfuse runs as before, and hears nothing of it."""
    for name in ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    runner = Runner()
    assert (await runner.run(Echo(), "a")).output == "A"
    assert runner.tracing is None
    assert caplog.records == []


async def test_keys_in_the_environment_are_enough(server: LangfuseServer, keys: pytest.MonkeyPatch):
    """Two variables and the address turn tracing on, for all runners of the process together."""
    keys.setenv("LANGFUSE_TRACING_ENVIRONMENT", "staging")
    keys.setenv("LANGFUSE_RELEASE", "v7")
    runner = Runner()
    run = await runner.run(Echo(), "a")
    assert runner.tracing is not None
    assert runner.tracing is Runner().tracing
    assert await runner.tracing.flush(30)
    await feedback(run.id, "good", True)  # which needs no runner
    assert await runner.tracing.flush(30)
    assert [score["environment"] for score in server.scores] == ["staging"]
    root, _ = server.trace(trace_id(run.id))
    assert (root.attributes["langfuse.environment"], root.attributes["langfuse.release"]) == ("staging", "v7")
    assert root.resource["langfuse.environment"] == "staging"


async def test_the_older_name_of_the_address_works(server: LangfuseServer, keys: pytest.MonkeyPatch):
    """`LANGFUSE_HOST` is read where `LANGFUSE_BASE_URL` is not set, and a slash at the end does no harm."""
    keys.delenv("LANGFUSE_BASE_URL")
    keys.setenv("LANGFUSE_HOST", server.url + "/")
    tracing = LangfuseTracing()
    ids = await runs(tracing, 1)
    assert await tracing.flush(30)
    tracing.close()
    assert once_each(server, ids)


@pytest.mark.parametrize(
    ("name", "value"),
    [("TRACING_ENABLED", "false"), ("TRACING_ENABLED", "False"), ("PUBLIC_KEY", ""), ("SECRET_KEY", "")],
)
async def test_it_can_be_switched_off(keys: pytest.MonkeyPatch, name: str, value: str):
    """`LANGFUSE_TRACING_ENABLED=false` wins over the keys, of which both are needed."""
    keys.setenv(f"LANGFUSE_{name}", value)
    assert Runner().tracing is None


async def test_tracing_can_be_declined(server: LangfuseServer, keys: pytest.MonkeyPatch):
    """`tracing=None` sends nothing, whatever the environment says."""
    await Runner(tracing=None).run(Echo(), "a")
    assert _of_process == {}
    assert not server.requests


async def test_the_share_of_runs_comes_from_the_environment(server: LangfuseServer, keys: pytest.MonkeyPatch):
    """Langfuse's own variable decides where the program says nothing, and a mistake in it is told."""
    keys.setenv("LANGFUSE_SAMPLE_RATE", "0")
    none, every = LangfuseTracing(), LangfuseTracing(sample_rate=1)
    for tracing in (none, every):
        await Runner(tracing=tracing).run(Echo(), "a", run_id=str(tracing is every))
        assert await tracing.flush(30)
        tracing.close()
    assert {span.trace_id for span in server.spans} == {trace_id("True")}
    keys.setenv("LANGFUSE_SAMPLE_RATE", "half")
    with pytest.raises(DeclarationError, match="LANGFUSE_SAMPLE_RATE is 'half'"):
        LangfuseTracing()


async def test_space_around_a_key_is_not_part_of_it(server: LangfuseServer, keys: pytest.MonkeyPatch):
    """A key read from a file with a line end at its end is the same key."""
    keys.setenv("LANGFUSE_PUBLIC_KEY", f"{server.public_key}\n")
    keys.setenv("LANGFUSE_SECRET_KEY", f" {server.secret_key}\r\n")
    tracing = LangfuseTracing()
    ids = await runs(tracing, 1)
    assert await tracing.flush(30)
    tracing.close()
    assert once_each(server, ids)


@pytest.mark.parametrize("said", ["soon", "-1", "0", "nan", "inf", ""])
async def test_a_timeout_that_is_none_is_left_aside(
    server: LangfuseServer, make: Make, monkeypatch: pytest.MonkeyPatch, said: str
):
    """What `LANGFUSE_TIMEOUT` says has to be a time; otherwise requests take what they take by default."""
    monkeypatch.setenv("LANGFUSE_TIMEOUT", said)
    tracing = make()
    assert tracing.connection.timeout == 5
    ids = await runs(tracing, 1)
    assert await tracing.flush(30)
    assert once_each(server, ids)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"base_url": "cloud.langfuse.com"}, "http:// or https://"),
        ({"base_url": "https://"}, "base_url"),
        ({"base_url": "http://host:port"}, "base_url"),
        ({"base_url": "http://[::1"}, "base_url"),
        ({"sample_rate": 1.5}, "between 0 and 1"),
        ({"sample_rate": float("nan")}, "between 0 and 1"),
        ({"capture": "some"}, "'all', 'shape' or 'none'"),
        ({"secret_key": ""}, "LANGFUSE_SECRET_KEY"),
        ({"public_key": ""}, "LANGFUSE_PUBLIC_KEY"),
    ],
)
def test_what_cannot_work_is_said_at_once(
    make: Make, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], said: str
):
    """A wrong value stops the program where it is written, with a text that says what to do."""
    for name in ("LANGFUSE_PUBLIC_KEY", "LANGFUSE_SECRET_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(DeclarationError, match=re.escape(said)) as caught:
        make(**options)
    assert "sk-lf" not in str(caught.value)
