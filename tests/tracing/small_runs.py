"""The smallest traced run."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable

import pytest
from langfuse_server import LangfuseServer

from stagegraph import Graph, Runner, step
from stagegraph.tracing import LangfuseTracing
from stagegraph.tracing.attributes import trace_id

__all__ = ["Echo", "Make", "closed_port", "once_each", "runs", "warned"]


@step
async def shout(text: str) -> str:
    return text.upper()


class Echo(Graph[str, str]):
    """Two observations a run."""

    shout = shout

    async def flow(self, text: str) -> str:
        return await self.shout(text)


Make = Callable[..., LangfuseTracing]


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
