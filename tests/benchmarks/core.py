"""The runner against bare asyncio, pydantic-graph and LangGraph, on the same trivial work, recording on."""

from __future__ import annotations

import asyncio
import gc
import itertools
import operator
import statistics
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, TypedDict

import anyio
from langgraph.graph import END, START, StateGraph
from langgraph.types import Send
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_graph import GraphBuilder, StepContext
from pydantic_graph.join import reduce_list_append

from stagegraph import Graph, Runner, Stage, fan_out, gather, step
from table import YARDSTICK, Row, interleaved


class X(BaseModel):
    """What goes through every step."""

    v: int


async def bare(x: X) -> X:
    """The work itself."""
    return X(v=x.v + 1)


@step
async def inc(x: X) -> X:
    """The work as a step."""
    return X(v=x.v + 1)


class Chain(Graph[X, X]):
    """A hundred steps in a row."""

    inc = inc

    async def flow(self, x: X) -> X:
        for _ in range(100):
            x = await self.inc(x)
        return x


class Wide(Graph[list[X], list[X]]):
    """One step over many items."""

    inc = inc

    async def flow(self, xs: list[X]) -> list[X]:
        return await fan_out(self.inc, xs, limit=64)


def check(found: object, wanted: object) -> None:
    """Every contender has to do the work."""
    if found != wanted:
        msg = f"wrong output: {found!r}"
        raise SystemExit(msg)


def pydantic_chain() -> Any:
    builder = GraphBuilder(input_type=X, output_type=X, auto_instrument=False)
    steps = []
    for number in range(100):

        async def one(ctx: StepContext[None, None, X]) -> X:
            return X(v=ctx.inputs.v + 1)

        steps.append(builder.step(one, node_id=f"s{number}"))
    builder.add(builder.edge_from(builder.start_node).to(steps[0]))
    for before, after in itertools.pairwise(steps):
        builder.add(builder.edge_from(before).to(after))
    builder.add(builder.edge_from(steps[-1]).to(builder.end_node))
    return builder.build()


def pydantic_map() -> Any:
    builder = GraphBuilder(input_type=list[X], output_type=list[X], auto_instrument=False)

    async def one(ctx: StepContext[None, None, X]) -> X:
        return X(v=ctx.inputs.v + 1)

    work = builder.step(one, node_id="work")
    join = builder.join(reduce_list_append, initial_factory=list[X])
    builder.add(
        builder.edge_from(builder.start_node).map().to(work),
        builder.edge_from(work).to(join),
        builder.edge_from(join).to(builder.end_node),
    )
    return builder.build()


class ChainState(TypedDict):
    """LangGraph's state for the chain."""

    x: X


class MapState(TypedDict):
    """LangGraph's state for the fan-out."""

    items: list[X]
    out: Annotated[list[X], operator.add]


def langgraph_chain() -> Any:
    builder = StateGraph(ChainState)

    async def one(state: ChainState) -> ChainState:
        return {"x": X(v=state["x"].v + 1)}

    for number in range(100):
        builder.add_node(f"s{number}", one)
    builder.add_edge(START, "s0")
    for number in range(99):
        builder.add_edge(f"s{number}", f"s{number + 1}")
    builder.add_edge("s99", END)
    return builder.compile()


def langgraph_map() -> Any:
    builder = StateGraph(MapState)

    async def one(state: dict[str, X]) -> dict[str, list[X]]:
        return {"out": [X(v=state["x"].v + 1)]}

    builder.add_node("work", one)
    builder.add_conditional_edges(START, lambda state: [Send("work", {"x": x}) for x in state["items"]], ["work"])
    builder.add_edge("work", END)
    return builder.compile()


class Trivial(Graph[X, X]):
    """One step."""

    inc = inc

    async def flow(self, x: X) -> X:
        return await self.inc(x)


class Passing(Graph[X, X]):
    """Two hundred stages, of which none is called."""

    def __init__(self) -> None:
        self.stages = [Stage(str, Agent(instructions="Answer.")) for _ in range(200)]

    async def flow(self, x: X) -> X:
        return x


class Gathered(Graph[list[X], int]):
    """As many calls at once as there are items."""

    inc = inc

    async def flow(self, xs: list[X]) -> int:
        return len(await gather(*(self.inc(x) for x in xs)))


async def chain() -> list[Row]:
    """A chain of 100 steps."""
    runner, graph, other, third = Runner(), Chain(), pydantic_chain(), langgraph_chain()

    async def ours() -> None:
        check((await runner.run(graph, X(v=0))).output.v, 100)

    async def await_() -> None:
        x = X(v=0)
        for _ in range(100):
            x = await bare(x)
        check(x.v, 100)

    async def started() -> None:
        check((await runner.start(graph, X(v=0)).result()).output.v, 100)

    async def theirs() -> None:
        check((await other.run(inputs=X(v=0))).v, 100)

    async def langs() -> None:
        check((await third.ainvoke({"x": X(v=0)}, {"recursion_limit": 200}))["x"].v, 100)

    names = {"ours": ours, "bare": await_, "started": started, "pydantic-graph": theirs, "langgraph": langs}
    rows: list[Row] = []
    for state, most in (("cold", 5), ("warm", None)):
        took = await interleaved(names, 25, cold=state == "cold")
        us = {name: seconds * 1e4 for name, seconds in took.items()}
        beyond = us["ours"] - us["bare"]
        theirs_, langs_ = us["pydantic-graph"] / us["ours"], us["langgraph"] / us["ours"]
        rows += [
            Row(f"chain of 100 steps, {state}, beyond a bare await, a step", beyond, "us", most),
            Row(f"the same, {state}, faster than pydantic-graph", theirs_, "x", 11, more=True),
            Row(f"the same, {state}, faster than LangGraph", langs_, "x", 25, more=True),
        ]
    rows.append(Row("a step under `start()`, with its events, warm", us["started"], "us", 7))
    return [Row(YARDSTICK, us["bare"], "us", None), *rows]


async def trivial() -> list[Row]:
    """Runs that do nothing: what a run costs by itself."""
    runner, graph, large = Runner(), Trivial(), Passing()

    async def one() -> None:
        for _ in range(100):
            await runner.run(graph, X(v=0))

    async def two() -> None:
        for _ in range(100):
            await runner.run(large, X(v=0))

    took = await interleaved({"one": one, "two": two}, 9)
    return [
        Row("a run of one step, warm", took["one"] * 1e4, "us", 30),
        Row("a run of a graph with 200 stages, warm", took["two"] * 1e4, "us", 90),
    ]


async def growth() -> list[Row]:
    """Costs that must not grow faster than their work."""
    runner, graph = Runner(), Gathered()
    few, many = [X(v=i) for i in range(1_000)], [X(v=i) for i in range(50_000)]
    small, large = Staged(50), Staged(200)

    async def thousand() -> None:
        for _ in range(5):
            await runner.run(graph, few)

    async def fifty_thousand() -> None:
        await runner.run(graph, many)

    async def drawn() -> None:
        for _ in range(4):
            small.mermaid()

    async def drawn_large() -> None:
        large.mermaid()

    took = await interleaved({"few": thousand, "many": fifty_thousand, "small": drawn, "large": drawn_large}, 3)
    return [
        Row("a call in `gather` of 50,000 against one of 1,000", took["many"] / took["few"] / 10, "x", 2),
        Row("`mermaid()` of 200 stages against 4 x 50", took["large"] / took["small"], "x", 1.5),
    ]


class Staged(Graph[str, str]):
    """Some stages that could all follow each other."""

    def __init__(self, count: int) -> None:
        self.stages = [Stage(str, Agent(instructions="Answer.")) for _ in range(count)]

    async def flow(self, text: str) -> str:
        for stage in self.stages:
            text = await stage(text)
        return text


async def wide() -> list[Row]:
    """A fan-out of 10,000 items."""
    count = 10_000
    items = [X(v=i) for i in range(count)]
    runner, graph, other, third = Runner(), Wide(), pydantic_map(), langgraph_map()

    async def ours() -> None:
        check(len((await runner.run(graph, items)).output), count)

    async def tasks() -> None:
        done: list[X | None] = [None] * count

        async def one(index: int) -> None:
            done[index] = await bare(items[index])

        async with anyio.create_task_group() as group:
            for index in range(count):
                group.start_soon(one, index)
        check(done.count(None), 0)

    async def theirs() -> None:
        check(len(await other.run(inputs=items)), count)

    async def langs() -> None:
        check(len((await third.ainvoke({"items": items, "out": []}))["out"]), count)

    took = await interleaved({"ours": ours, "tasks": tasks}, 9)
    slow = await interleaved({"ours": ours, "pydantic-graph": theirs, "langgraph": langs}, 5)
    item, task = took["ours"] / count * 1e6, took["tasks"] / count * 1e6
    ratios = {name: slow[name] / slow["ours"] for name in ("pydantic-graph", "langgraph")}
    dear, grown, megabytes = scaled()
    return [
        Row("fan-out of 10,000 items, limit 64, an item", item, "us", 4.5),
        Row("the same, against one anyio task an item", item / task, "x", 1),
        Row("the same, faster than pydantic-graph", ratios["pydantic-graph"], "x", 25, more=True),
        Row("the same, faster than LangGraph", ratios["langgraph"], "x", 25, more=True),
        Row("an item of 100,000 against one of 10,000", grown / dear, "x", 1, f"{grown:.1f} us"),
        Row("memory of 100,000 items with their records", megabytes, "MB", 150),
    ]


SCALED = """
import asyncio, gc, statistics, sys, time
sys.path.insert(0, {folder!r})
import psutil
from core import Runner, Wide, X
async def main():
    runner, graph = Runner(), Wide()
    times = {{}}
    for count in (10_000, 100_000):
        items = [X(v=i) for i in range(count)]
        await runner.run(graph, items)
        times[count] = []
    for _ in range(5):
        for count in (10_000, 100_000):
            items = [X(v=i) for i in range(count)]
            gc.collect()
            began = time.perf_counter()
            run = await runner.run(graph, items)
            times[count].append((time.perf_counter() - began) / count * 1e6)
            del run
    print(*(statistics.median(times[count]) for count in (10_000, 100_000)))
asyncio.run(main())
"""
MEMORY = """
import asyncio, sys
sys.path.insert(0, {folder!r})
import psutil
from core import Runner, Wide, X
async def main():
    runner, graph = Runner(), Wide()
    await runner.run(graph, [X(v=1)])
    items = [X(v=i) for i in range(100_000)]
    before = psutil.Process().memory_info().rss
    run = await runner.run(graph, items)
    assert len(run.output) == 100_000
    print((psutil.Process().memory_info().rss - before) / 1e6)
asyncio.run(main())
"""


def scaled() -> tuple[float, float, float]:
    """Microseconds an item at 10,000 and at 100,000, and the megabytes of the latter, in fresh processes."""
    folder = __file__.rpartition("/")[0]
    times = subprocess.run(
        [sys.executable, "-c", SCALED.format(folder=folder)], capture_output=True, text=True, check=True
    ).stdout.split()
    memory = subprocess.run(
        [sys.executable, "-c", MEMORY.format(folder=folder)], capture_output=True, text=True, check=True
    ).stdout
    return float(times[0]), float(times[1]), float(memory)


@dataclass
class Anti:
    """50 items that are slow where others are fast."""

    first: list[float] = field(default_factory=lambda: [0.01 + 0.19 * i / 49 for i in range(50)])
    second: list[float] = field(default_factory=lambda: [0.01 + 0.19 * (49 - i) / 49 for i in range(50)])

    @property
    def ideal(self) -> float:
        return max(a + b for a, b in zip(self.first, self.second, strict=True))


async def two_stages() -> list[Row]:
    """50 items through two stages, slow in the first meaning fast in the second."""
    anti = Anti()

    @step
    async def first(x: X) -> X:
        await asyncio.sleep(anti.first[x.v])
        return x

    @step
    async def second(x: X) -> X:
        await asyncio.sleep(anti.second[x.v])
        return x

    class Two(Graph[list[X], list[X]]):
        a = first
        b = second

        async def both(self, x: X) -> X:
            return await self.b(await self.a(x))

        async def flow(self, xs: list[X]) -> list[X]:
            return await fan_out(self.both, xs)

    items = [X(v=i) for i in range(50)]
    runner, graph, other, third = Runner(), Two(), pydantic_two(anti), langgraph_two(anti)

    async def ours() -> None:
        check((await runner.run(graph, items)).output, items)

    async def theirs() -> None:
        check(len(await other.run(inputs=items)), 50)

    async def langs() -> None:
        check(len((await third.ainvoke({"items": items, "middle": [], "out": []}))["out"]), 50)

    took = await interleaved({"ours": ours, "pydantic-graph": theirs, "langgraph": langs}, 5, clock=time.perf_counter)
    ratio = {name: value / anti.ideal for name, value in took.items()}
    peers = f"pydantic-graph {ratio['pydantic-graph']:.2f}, LangGraph {ratio['langgraph']:.2f}"
    return [Row("50 items, two stages: makespan against the ideal", ratio["ours"], "x", 1.10, peers)]


def pydantic_two(anti: Anti) -> Any:
    builder = GraphBuilder(input_type=list[X], output_type=list[X], auto_instrument=False)

    async def first(ctx: StepContext[None, None, X]) -> X:
        await asyncio.sleep(anti.first[ctx.inputs.v])
        return ctx.inputs

    async def second(ctx: StepContext[None, None, X]) -> X:
        await asyncio.sleep(anti.second[ctx.inputs.v])
        return ctx.inputs

    a, b = builder.step(first, node_id="a"), builder.step(second, node_id="b")
    join = builder.join(reduce_list_append, initial_factory=list[X])
    builder.add(
        builder.edge_from(builder.start_node).map().to(a),
        builder.edge_from(a).to(b),
        builder.edge_from(b).to(join),
        builder.edge_from(join).to(builder.end_node),
    )
    return builder.build()


class TwoState(TypedDict):
    """LangGraph's state for two stages."""

    items: list[X]
    middle: Annotated[list[X], operator.add]
    out: Annotated[list[X], operator.add]


def langgraph_two(anti: Anti) -> Any:
    builder = StateGraph(TwoState)

    async def first(state: dict[str, X]) -> dict[str, list[X]]:
        await asyncio.sleep(anti.first[state["x"].v])
        return {"middle": [state["x"]]}

    async def second(state: dict[str, X]) -> dict[str, list[X]]:
        await asyncio.sleep(anti.second[state["x"].v])
        return {"out": [state["x"]]}

    builder.add_node("a", first)
    builder.add_node("between", lambda _: {})
    builder.add_node("b", second)
    builder.add_conditional_edges(START, lambda state: [Send("a", {"x": x}) for x in state["items"]], ["a"])
    builder.add_edge("a", "between")
    builder.add_conditional_edges("between", lambda state: [Send("b", {"x": x}) for x in state["middle"]], ["b"])
    builder.add_edge("b", END)
    return builder.compile()


def imports() -> list[Row]:
    """How long it takes to import us, and what that loads."""

    def seconds(code: str) -> float:
        began = time.perf_counter()
        subprocess.run([sys.executable, "-c", code], check=True)
        return time.perf_counter() - began

    empty = statistics.median(seconds("pass") for _ in range(5))
    usual = "from stagegraph import Graph, Runner, Stage, fan_out, step"  # the package itself loads nothing
    pairs = [(seconds(usual), seconds("import pydantic_ai")) for _ in range(11)]
    ours, theirs = (statistics.median(column) - empty for column in zip(*pairs, strict=True))
    heavy = "dspy", "langfuse", "fastapi", "xllamacpp"
    loaded = subprocess.run(
        [sys.executable, "-c", f"{usual}; import sys; print(*[m for m in {heavy} if m in sys.modules])"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()
    name = "importing Graph, Runner, Stage, fan_out and step against import pydantic_ai"
    note = f"{ours * 1e3:.0f} ms, loading {loaded or 'none of ' + ', '.join(heavy)}"
    return [Row(name, ours / theirs, "x", 1.15, note)]


async def rows() -> list[Row]:
    """Everything about the core."""
    gc.collect()
    return [*await chain(), *await trivial(), *await wide(), *await growth(), *await two_stages(), *imports()]
