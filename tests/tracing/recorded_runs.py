"""What the tests of reading share: graphs, and a desk whose runs go to a journal and to a server at once."""

from __future__ import annotations

from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from langfuse_server import LangfuseServer
from pydantic import BaseModel
from pydantic_ai import Agent
from traced_runs import Watch

from scripted import echo
from stagegraph import Graph, Node, Run, RunError, Runner, Stage, fan_out, feedback, step
from stagegraph.journal import MemoryJournal
from stagegraph.tracing import JournalRuns, LangfuseRuns, RunSource

__all__ = ["ITEMS", "LABELS", "Desk", "Item", "Many", "One", "found", "price", "same"]


class Item(BaseModel):
    name: str
    price: Decimal = Decimal("1.50")
    tags: set[str] = set()


class Sorted(BaseModel):
    team: str


@step
async def price(item: Item) -> Decimal:
    return item.price


class One(Graph[Item, Sorted]):
    sort = Stage(Item, Agent(name="sorter"))
    price = price

    async def flow(self, item: Item) -> Sorted:
        await self.price(item)
        return Sorted(team=await self.sort(item))


class Many(Graph[list[Item], list[Sorted]]):
    one = One()

    async def flow(self, items: list[Item]) -> list[Sorted]:
        return await fan_out(self.one, items)


class Desk:
    """A runner whose runs go to a journal and to a server at once, and both as sources."""

    def __init__(self, server: LangfuseServer) -> None:
        self.server, self.watch, self.journal = server, Watch(server), MemoryJournal()
        self.tracing = self.watch.tracing(environment="test")
        self.langfuse = self.source()

    def source(self, **options: Any) -> LangfuseRuns:
        return LangfuseRuns(**{**self.server.keys, **options})

    def runner(self, model: Any = None, **options: Any) -> Runner:
        return Runner(model or echo(), journal=self.journal, tracing=self.tracing, **options)

    async def run(self, node: Node[Any, Any], value: Any, model: Any = None, **options: Any) -> Run:
        """How it went, whichever way."""
        try:
            run = await self.runner(model).run(node, value, **options)
        except RunError as error:
            run = error.run
        await self.watch.sent()
        return run

    async def score(self, run: Run, name: str, value: Any, key: str | None = None) -> None:
        await feedback(run.id, name, value, key=key, runner=self.runner())
        await self.watch.sent()

    def sources(self) -> list[RunSource]:
        return [JournalRuns(self.journal), self.source()]


ITEMS = [Item(name=f"n{number}", price=Decimal(number), tags={"a", "b"}) for number in range(12)]
LABELS: dict[str, Any] = {
    "tags": ("a", "b"),
    "session_id": "s1",
    "user_id": "u1",
    "metadata": {"order": "123", "number": 7, "deep": {"x": ["y"]}, "long": "l" * 500, "yes": True, "null": "null"},
}


async def found(source: RunSource, node: Node[Any, Any] | None = None, **which: Any) -> list[str]:
    return [run.id async for run in source.runs(node or One(), **which)]


def outline(run: Run) -> list[Any]:
    """What has to be the same in a run that was read back."""
    calls = {call.key: call for call in run.root.walk()}
    return [
        (run.id, run.graph, run.status, run.error, run.tags, run.session_id, run.user_id, dict(run.metadata)),
        run.prompts_digest,
        (run.input, run.output, run.usage.requests, run.usage.input_tokens, run.usage.output_tokens, run.cost),
        {
            key: (
                (call.path, call.kind, call.status, call.input, call.output, call.attempts, call.replayed),
                call.error if call is not run.root else bool(call.error),  # the trace tells that of the whole run
                (call.usage.requests, call.usage.input_tokens, call.usage.output_tokens, call.cost),
                [child.key for child in call.children],
            )
            for key, call in calls.items()
        },
    ]


async def same(desk: Desk, run: Run, node: Node[Any, Any]) -> Run:
    """The run read back, after it was compared."""
    await desk.watch.sent()
    again = await desk.langfuse.run(run.id, node)
    assert outline(again) == outline(run)
    assert again.started - run.started < timedelta(milliseconds=1)
    late = (again.started - run.started).total_seconds()  # a run that was resumed began when it first did
    assert again.duration + late == pytest.approx(run.duration, abs=0.004)
    assert not desk.langfuse.skipped
    return again
