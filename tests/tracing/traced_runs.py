"""What the tests of traces share: tracings that send to a contract server, and what arrived there."""

from __future__ import annotations

import gzip
import json
from typing import Any

from _observations import row
from langfuse import Langfuse
from langfuse_server import LangfuseServer, Span
from pydantic_ai import Agent
from pydantic_ai.models.function import AgentInfo, FunctionModel

from scripted import asked
from stagegraph import Graph, Run, Stage
from stagegraph.tracing import LangfuseRuns, LangfuseTracing

__all__ = ["Asks", "Watch", "below", "meta", "named", "one", "streaming", "trace_id"]


class Asks(Graph[str, str]):
    """One agent."""

    def __init__(self, agent: Agent[Any, Any] | None = None) -> None:
        self.ask: Stage[str, str] = Stage(str, agent or Agent(name="asker"))

    async def flow(self, text: str) -> str:
        return await self.ask(text)


class Watch:
    """A Langfuse server and the tracings that send to it."""

    def __init__(self, server: LangfuseServer) -> None:
        self.server = server
        self.tracings: list[LangfuseTracing] = []

    def tracing(self, **options: Any) -> LangfuseTracing:
        """One that sends to the server."""
        self.tracings.append(LangfuseTracing(**{**self.server.keys, **options}))
        return self.tracings[-1]

    def source(self) -> LangfuseRuns:
        """What reads from the server."""
        return LangfuseRuns(**self.server.keys)

    async def trace(self, run: Run | str) -> list[Span]:
        """The spans of one run, by start, after everything was sent."""
        await self.sent()
        return self.server.trace(trace_id(run))

    async def rows(self, run: Run | str) -> list[dict[str, Any]]:
        """The same as the server's rows."""
        return [row(span, lambda *_: None) for span in await self.trace(run)]

    async def tree(self, run: Run | str) -> list[Any]:
        """The same by name and parentage."""
        await self.sent()
        return self.server.tree(trace_id(run))

    async def sent(self) -> None:
        """Send everything, and make sure that nothing was lost."""
        for tracing in self.tracings:
            assert await tracing.flush(30)
            assert tracing.lost == 0

    def everything(self) -> str:
        """Every byte that was received, and the spans in it, as one text."""
        requests = self.server.requests.copy()
        bodies = [gzip.decompress(one.body) if one.body[:2] == b"\x1f\x8b" else one.body for one in requests]
        return "\n".join([*(body.decode(errors="replace") for body in bodies), repr(self.server.spans)])


def trace_id(run: Run | str) -> str:
    """Where Langfuse's own SDK would look for a run."""
    return Langfuse.create_trace_id(seed=run if isinstance(run, str) else run.id)


def named(spans: list[Span], name: str) -> list[Span]:
    """The spans of one name."""
    return [span for span in spans if span.name == name]


def one(spans: list[Span], name: str) -> Span:
    """The only span of that name."""
    (found,) = named(spans, name)
    return found


def below(spans: list[Span], parent: Span) -> list[Span]:
    """The spans right below another."""
    return [span for span in spans if span.parent_id == parent.span_id]


def meta(span: Span) -> dict[str, Any]:
    """The metadata of an observation."""
    prefix = "langfuse.observation.metadata."
    return {
        name.removeprefix(prefix): json.loads(value)
        for name, value in span.attributes.items()
        if name.startswith(prefix)
    }


def streaming() -> FunctionModel:
    """A model that says the prompt again, word by word."""

    async def answer(messages: list[Any], _info: AgentInfo) -> Any:
        for word in asked(messages).split(" "):
            yield word + " "

    return FunctionModel(stream_function=answer)
