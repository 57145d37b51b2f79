"""A cancellation from outside ends a run wherever it arrives, and comes out as one."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from scripted import asked, others
from stagegraph import Graph, RunError, Runner, Stage, as_completed, fan_out, gather, settle, step
from stagegraph.journal import Journal, MemoryJournal, RunFilter, SqliteJournal

SEEDS = int(os.environ.get("STAGEGRAPH_SEEDS", "60"))
FOREVER = 3600


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def ask(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Call two tools with the number that was asked about, then say it."""
    await asyncio.sleep(0)
    last = messages[-1]
    assert isinstance(last, ModelRequest)
    if any(isinstance(part, ToolReturnPart) for part in last.parts):
        return ModelResponse([TextPart("done")])
    number = {"number": int(asked(messages))}
    return ModelResponse([ToolCallPart(name, number) for name in ("wait", "nested", "outer")[: number["number"] % 4]])


agent = Agent(output_type=str)


@agent.tool_plain
async def wait(number: int) -> int:
    await (asyncio.sleep(FOREVER) if number >= 100 else turns(number))
    return number


@agent.tool_plain
async def nested(number: int) -> int:
    """Groups in groups, whose bodies are busy themselves: their scopes take back what they counted."""
    async with anyio.create_task_group() as outer:
        outer.start_soon(inner, number)
        await wait(number)
    return number


async def inner(number: int) -> None:
    async with anyio.create_task_group() as group:
        group.start_soon(wait, number)
        await wait(number)


@agent.tool_plain
async def outer(number: int) -> list[int]:
    return await fan_out(wait, [number, 0, 1])


@step
async def pause(number: int) -> int:
    with anyio.CancelScope(shield=True):
        await asyncio.sleep(0)
    return await wait(number)


@step
async def deep(number: int) -> int:
    return await nested(number)


NUMBERS = [1, 2, 3, 101, 5, 102, 103, 6]


class Shape(Graph[str, object]):
    """Concurrency of the form that its input names; what was swallowed on the way is in `swallowed`."""

    ask = Stage(int, agent, render=str)
    pause = pause
    deep = deep

    def __init__(self) -> None:
        self.swallowed: list[Exception] = []

    async def several(self, number: int) -> object:
        return await gather(self.ask(number), self.pause(number), self.deep(number))

    async def collected(self, _number: int) -> object:
        async with as_completed(self.ask, NUMBERS) as outcomes:
            return [await self.pause(outcome.index) async for outcome in outcomes]

    async def own_tasks(self, number: int) -> object:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in (self.ask(number), self.deep(number), self.pause(number))]
        return [await task for task in tasks]

    async def form(self, name: str) -> object:
        forms: dict[str, Callable[[], Awaitable[object]]] = {
            "one": lambda: self.ask(103),
            "step": lambda: self.deep(101),
            "fan_out": lambda: fan_out(self.ask, NUMBERS),
            "narrow": lambda: fan_out(self.ask, NUMBERS, limit=2),
            "settle": lambda: settle(self.ask, NUMBERS),
            "gather": lambda: gather(*map(self.ask, NUMBERS)),
            "as_completed": lambda: self.collected(0),
            "nested": lambda: fan_out(self.several, NUMBERS),
            "settled": lambda: settle(lambda _: fan_out(self.several, NUMBERS), [0, 1]),
            "gathered": lambda: gather(self.collected(0), settle(self.deep, NUMBERS), self.several(103)),
            "functions": lambda: gather(*map(self.several, NUMBERS)),
            "own_tasks": lambda: fan_out(self.own_tasks, NUMBERS),
        }
        return await forms[name]()

    async def flow(self, name: str) -> object:
        try:
            return await self.form(name)
        except Exception as error:
            self.swallowed.append(error)
            await asyncio.sleep(FOREVER)
            raise


FORMS = [
    *("one", "step", "fan_out", "narrow", "settle", "gather", "as_completed"),
    *("nested", "settled", "gathered", "functions", "own_tasks"),
]


async def began(journal: Journal, run_id: str) -> None:
    """Wait until the run is in the journal."""
    while await journal.run(run_id) is None:
        await turns(1)


async def by_task(runner: Runner, graph: Shape, form: str, turn: int) -> None:
    task = asyncio.create_task(runner.run(graph, form, run_id="r"))
    await turns(turn)
    assert task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def twice(runner: Runner, graph: Shape, form: str, turn: int) -> None:
    task = asyncio.create_task(runner.run(graph, form, run_id="r"))
    await turns(turn)
    task.cancel()
    await turns(turn % 7)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


async def by_timeout(runner: Runner, graph: Shape, form: str, turn: int) -> None:
    limit = asyncio.timeout(None)

    async def limited() -> None:
        async with limit:
            await runner.run(graph, form, run_id="r")

    task = asyncio.create_task(limited())
    await turns(turn + 1)
    limit.reschedule(asyncio.get_running_loop().time())
    await asyncio.wait([task])
    assert isinstance(task.exception(), TimeoutError)


async def by_wait_for(runner: Runner, graph: Shape, form: str, turn: int) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(runner.run(graph, form, run_id="r"), turn / 4000)


async def by_scope(runner: Runner, graph: Shape, form: str, turn: int) -> None:
    scope = anyio.CancelScope()

    async def scoped() -> None:
        with scope:
            await runner.run(graph, form, run_id="r")

    task = asyncio.create_task(scoped())
    await turns(turn + 1)
    scope.cancel()
    await asyncio.wait([task])
    assert task.exception() is None
    assert scope.cancelled_caught


async def by_group(runner: Runner, graph: Shape, form: str, turn: int) -> None:
    async def grouped() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(runner.run(graph, form, run_id="r"))
            await turns(turn)
            raise LookupError

    with pytest.raises(ExceptionGroup) as caught:
        await grouped()
    assert [type(error) for error in caught.value.exceptions] == [LookupError]


async def by_live_run(runner: Runner, graph: Shape, form: str, turn: int) -> None:
    live = runner.start(graph, form, run_id="r")
    await turns(turn)
    await live.cancel()
    with pytest.raises(RunError) as caught:
        await live.result()
    assert caught.value.run.status == "cancelled"
    assert "running" not in {call.status for call in caught.value.run.calls()}


async def by_shutdown(runner: Runner, graph: Shape, form: str, turn: int) -> None:
    async with runner.lifespan():
        live = runner.start(graph, form, run_id="r")
        await turns(turn)
    with pytest.raises(RunError, match="was cancelled"):
        await live.result()
    await others_run(runner, graph)


async def others_run(runner: Runner, graph: Shape) -> None:
    """After a shutdown, another process may take the run up: it holds it until that is cancelled."""
    if runner.journal is None or await runner.journal.run("r") is None:
        return
    task = asyncio.create_task(Runner(FunctionModel(ask), journal=runner.journal).resume("r", graph=graph))
    await turns(20)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()


WAYS = [by_task, twice, by_timeout, by_wait_for, by_scope, by_group, by_live_run, by_shutdown]


@pytest.mark.parametrize("batch", range(4))
def test_a_cancellation_at_any_moment_comes_out_as_one(batch: int, tmp_path: Path) -> None:
    """Whatever runs, however it is cancelled, and at whatever turn: nothing takes it for a failure, nothing is left."""

    async def one(seed: int) -> None:
        chance = random.Random(seed)
        form, way, turn = chance.choice(FORMS), chance.choice(WAYS), chance.randrange(80)
        made: list[Callable[[], Journal | None]] = [
            lambda: None,
            MemoryJournal,
            lambda: SqliteJournal(tmp_path / f"{seed}.db"),
        ]
        journal = chance.choice(made)()
        graph = Shape()
        runner = Runner(FunctionModel(ask), journal=journal, drain_seconds=0)
        with anyio.fail_after(60):
            await way(runner, graph, form, turn)
        assert graph.swallowed == []
        assert others() == set()
        rows = [] if journal is None else await journal.runs(RunFilter())
        held = [row for row in rows if row.status != "cancelled" and (way is not by_shutdown or row.owner is not None)]
        assert held == []

    for seed in range(batch, SEEDS, 4):
        try:
            asyncio.run(one(seed))
        except BaseException as error:
            error.add_note(f"seed {seed}")
            raise


@step
async def forever(number: int) -> int:
    await asyncio.sleep(FOREVER)
    return number


class Waits(Graph[int, int]):
    """Waits for ever."""

    forever = forever

    async def flow(self, number: int) -> int:
        return await self.forever(number)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
@pytest.mark.parametrize("way", ["run", "start", "resume", "start_resume"])
async def test_a_cancelled_opening_holds_no_run(way: str, kind: str, tmp_path: Path) -> None:
    """Cancelled at any of its first turns, a run is in the journal as one that ended, or not at all, or as it was."""
    before = others()
    journal: Journal = MemoryJournal() if kind == "memory" else SqliteJournal(tmp_path / "runs.db")
    runner = Runner(journal=journal)
    graph = Waits()
    runner.add(graph)
    for turn in range(40):
        run_id = f"r{turn}"
        if "resume" in way:
            held = asyncio.create_task(runner.run(graph, 1, run_id=run_id))
            await began(journal, run_id)
            held.cancel()
            await asyncio.wait([held])

        async def opens(run_id: str = run_id) -> None:
            if way == "run":
                await runner.run(graph, 1, run_id=run_id)
            elif way == "resume":
                await runner.resume(run_id)
            else:
                made = way == "start"
                live = runner.start(graph, 1, run_id=run_id) if made else await runner.start_resume(run_id)
                try:
                    await live.result()
                finally:
                    await live.cancel()

        opening = asyncio.create_task(opens())
        await turns(turn)
        opening.cancel()
        await asyncio.wait([opening])
        assert opening.cancelled()
        row = await journal.run(run_id)
        if way in {"resume", "start_resume"} or row is not None:
            assert row is not None
            assert (row.status, row.owner) == ("cancelled", None), turn
    assert others() <= before


async def test_a_second_cancellation_does_not_keep_a_run_from_being_recorded(tmp_path: Path) -> None:
    """Whoever cancels again while a run ends waits for that end, and the run is released."""
    journal = SqliteJournal(tmp_path / "runs.db")
    for turn in range(12):
        task = asyncio.create_task(Runner(journal=journal).run(Waits(), 1, run_id=f"r{turn}"))
        await began(journal, f"r{turn}")
        task.cancel()
        for _ in range(3):
            await turns(turn % 4)
            task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        row = await journal.run(f"r{turn}")
        assert row is not None
        assert (row.status, row.owner) == ("cancelled", None)


class Recovers(Graph[str, object]):
    """Ends one part of itself, then meets something that others cancelled."""

    forever = forever
    deep = deep
    ask = Stage(int, agent, render=str)

    async def flow(self, how: str) -> object:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.01):
                await {"step": self.forever, "groups": self.deep, "stage": self.ask}[how.split(maxsplit=1)[0]](102)
        return await settle(self.lost, [how])

    async def lost(self, how: str) -> None:
        gone = asyncio.ensure_future(asyncio.sleep(FOREVER))
        gone.cancel()
        if "late" in how:
            await asyncio.wait([gone])
        await gone


@pytest.mark.parametrize("form", ["one", "own_tasks"])
def test_a_stage_that_is_cancelled_while_its_agent_begins_leaves_no_task(form: str) -> None:
    """Pydantic AI leaves tasks behind when a run of an agent is cancelled natively in one of its first turns."""

    async def cancelled(turn: int) -> None:
        task = asyncio.create_task(Runner(FunctionModel(ask)).run(Shape(), form))
        await turns(turn)
        task.cancel()
        await asyncio.wait([task])
        assert others() == set()

    for turn in range(5, 20):
        asyncio.run(cancelled(turn))


async def test_a_call_whose_end_is_being_recorded_is_not_made_again(tmp_path: Path) -> None:
    """A cancellation may arrive while a step waits for its record: the record holds, and the step has succeeded."""
    made: list[int] = []

    @step
    async def paid(number: int) -> int:
        made.append(number)
        asyncio.get_running_loop().call_soon(task.cancel)
        return number

    class Pays(Graph[int, int]):
        pay = paid

        async def flow(self, number: int) -> int:
            return await self.pay(number)

    runner = Runner(journal=SqliteJournal(tmp_path / "r.db"))
    task = asyncio.create_task(runner.run(Pays(), 1, run_id="r"))
    await asyncio.wait([task])
    assert task.cancelled()
    run = await runner.resume("r", graph=Pays())
    assert (run.output, made, run.rerun) == (1, [1], {})


class Deeper(Graph[int, int]):
    async def flow(self, number: int) -> int:
        return await nested(number)


@pytest.mark.parametrize("kind", ["step", "graph"])
async def test_calls_in_tasks_of_the_users_own_are_cancelled_as_others(kind: str) -> None:
    """A client of HTTP holds task groups of its own, and `asyncio.wait_for` ends it in a task of its own."""

    class Own(Graph[int, str]):
        deep = deep
        shape = Deeper()

        async def flow(self, number: int) -> str:
            call = self.deep if kind == "step" else self.shape
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(call(number), 0.01)
            task = asyncio.create_task(call(number))
            await turns(3)
            task.cancel()
            await asyncio.wait([task])
            assert task.cancelled()
            return "both were cancelled"

    run = await Runner().run(Own(), 101)
    assert run.output == "both were cancelled"
    assert {call.status for call in run.root.children} == {"cancelled"}


@pytest.mark.skipif(sys.version_info < (3, 12), reason="tasks that begin at once are new in Python 3.12")
async def test_a_cancellation_of_a_task_that_began_at_once_comes_out_as_one() -> None:
    """It begins inside what watches the task around it, which sees nothing of the cancellations of this one."""

    class Own(Graph[int, int]):
        deep = deep

        async def flow(self, number: int) -> int:
            task = asyncio.create_task(self.deep(number))
            await turns(3)
            task.cancel()
            return await task

    asyncio.get_running_loop().set_task_factory(getattr(asyncio, "eager_task_factory", None))
    try:
        with pytest.raises(asyncio.CancelledError):
            await Runner().run(Own(), 101)
    finally:
        asyncio.get_running_loop().set_task_factory(None)


@pytest.mark.parametrize("when", ["soon", "late"])
@pytest.mark.parametrize("what", ["step", "groups", "stage"])
async def test_a_part_that_was_ended_is_not_confused_with_what_fails_later(what: str, when: str) -> None:
    """A timeout inside a flow raises its `TimeoutError`; what is lost after that is a failure, not a cancellation."""
    graph = Recovers()
    [outcome] = (await Runner(FunctionModel(ask)).run(graph, f"{what} {when}")).output
    assert "it awaited something that was cancelled" in str(outcome.error)

    class Loses(Recovers):
        async def flow(self, how: str) -> object:
            with anyio.move_on_after(0.01):
                await self.deep(102)
            return await self.lost(how)

    with pytest.raises(RunError, match="graph Loses failed: it awaited something that was cancelled"):
        await Runner(FunctionModel(ask)).run(Loses(), when)
