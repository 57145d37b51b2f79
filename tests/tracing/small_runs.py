"""The smallest traced run, and tracings that are closed at the end of a test.

Import `the_server`, `the_make` and `the_keys` in a test module to have the fixtures `server`, `make` and `keys` there.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langfuse_fixtures import the_server
from langfuse_server import LangfuseServer

from stagegraph import Graph, Runner, step
from stagegraph.tracing import LangfuseTracing
from stagegraph.tracing.attributes import trace_id
from stagegraph.tracing.tracing import _of_process

__all__ = ["Echo", "Make", "closed_port", "once_each", "runs", "the_keys", "the_make", "the_server", "warned"]


@step
async def shout(text: str) -> str:
    return text.upper()


class Echo(Graph[str, str]):
    """Two observations a run."""

    shout = shout

    async def flow(self, text: str) -> str:
        return await self.shout(text)


Make = Callable[..., LangfuseTracing]


@pytest.fixture(name="make")
def the_make(server: LangfuseServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Make]:
    """Tracings that speak to the server, wait a short time for it and are closed at the end of the test."""
    monkeypatch.setenv("LANGFUSE_TIMEOUT", "0.3")
    made: list[LangfuseTracing] = []

    def make(**options: Any) -> LangfuseTracing:
        made.append(LangfuseTracing(**server.keys | options))
        return made[-1]

    yield make
    for tracing in made:
        tracing.close(0)


@pytest.fixture(name="keys")
def the_keys(server: LangfuseServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """The keys of the server in the environment."""
    _of_process.clear()
    for name, value in server.variables.items():
        monkeypatch.setenv(name, value)
    yield monkeypatch
    for tracing in _of_process.values():
        tracing.close(0)
    _of_process.clear()


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said about spans and scores; a thread of an earlier test may still have something to say about prompts."""
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in records if record.module != "prompts"]


async def runs(tracing: LangfuseTracing, count: int = 3) -> list[str]:
    """Trace ids of so many runs that went well."""
    runner = Runner(tracing=tracing)
    done = [await runner.run(Echo(), "a") for _ in range(count)]
    assert [run.output for run in done] == ["A"] * count
    return [trace_id(run.id) for run in done]


def closed_port() -> str:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def once_each(server: LangfuseServer, ids: list[str]) -> bool:
    return all(server.tree(one) == [("Echo", ["step:shout"])] for one in ids)
