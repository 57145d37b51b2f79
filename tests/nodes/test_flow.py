"""Several things at once: order, keys, failures, cancellation, laziness."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from scripted import Turnstile, asked, echo, fails, others
from stagegraph import (
    DeclarationError,
    Graph,
    Node,
    NotRunningError,
    Outcome,
    RunError,
    Runner,
    Stage,
    as_completed,
    current_call,
    fan_out,
    gather,
    settle,
    step,
)
from stagegraph.data.events import FanOutStarted
from stagegraph.journal import MemoryJournal

Flow = Callable[["Parts"], Awaitable[object]]

SWITCH: ContextVar[dict[str, anyio.Event]] = ContextVar("switch")


@step
async def double(number: int) -> int:
    return number * 2


@step
async def picky(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    if number % 3 == 1:
        raise ValueError(f"no {number}")
    return number


@step
async def patient(name: str) -> str:
    """Waits until its name is called."""
    await SWITCH.get()[name].wait()
    return name


class Number(BaseModel):
    value: int


class Pair(Graph[int, int]):
    """Two steps, one after the other."""

    a = double
    b = picky

    async def flow(self, number: int) -> int:
        return await self.b(await self.a(number))


class Parts(Graph[Callable, object]):
    """A graph whose flow is given with its input, so that a test reads in one place."""

    double = double
    picky = picky
    patient = patient
    pair = Pair()
    write = Stage(str, Agent(output_type=str))

    async def flow(self, value: Flow) -> object:
        return await value(self)


async def run(flow: Flow, **options):
    """Run this flow and give the record."""
    with anyio.fail_after(30):
        return await Runner(**options).run(Parts(), flow)


async def output(flow: Flow, **options) -> object:
    return (await run(flow, **options)).output


def keys(record) -> list[str]:
    return [call.key for call in record.root.walk()][1:]


async def many(*items: object) -> AsyncIterator[object]:
    for item in items:
        await anyio.lowlevel.checkpoint()
        yield item


async def at_once(form: str, node: Callable, items: object) -> list:
    """Run a node over items in one of the forms of concurrency."""
    if form == "gather":
        return list(await gather(*map(node, items)))
    if form == "settle":
        return [outcome.value for outcome in await settle(node, items)]
    if form == "as_completed":
        async with as_completed(node, items) as outcomes:
            return [outcome.value async for outcome in outcomes]
    return await fan_out(node, many(*items) if form == "async items" else items)


async def add_one(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    return number + 1


@pytest.mark.parametrize("items", [[1, 2, 3], (1, 2, 3), range(1, 4), {1: 0, 2: 0, 3: 0}.keys()], ids=repr)
async def test_fan_out_runs_a_node_over_any_iterable(items: object):
    """Lists, tuples, ranges, dicts: the results are a list in the items' order."""
    assert await output(lambda g: fan_out(g.double, items)) == [2, 4, 6]


async def test_fan_out_takes_iterators_and_async_iterators():
    """Generators, sync or async, are read to their end."""
    assert await output(lambda g: fan_out(g.double, (number for number in range(4)))) == [0, 2, 4, 6]
    assert await output(lambda g: fan_out(g.double, many(1, 2, 3))) == [2, 4, 6]
    send, receive = anyio.create_memory_object_stream[int](5)
    for number in range(5):
        send.send_nowait(number)
    send.close()
    assert await output(lambda g: fan_out(g.double, receive)) == [0, 2, 4, 6, 8]
    receive.close()


async def test_fan_out_runs_nodes_graphs_methods_and_functions():
    """Any async callable of one value: what it calls carries the branch in its key."""

    class Methods(Graph[int, list[list[int]]]):
        double = double
        pair = Pair()

        async def both(self, number: int) -> int:
            return await self.pair(await self.double(number))

        async def flow(self, number: int) -> list[list[int]]:
            items = [0, 3]
            plain = await fan_out(add_one, items)
            return [await fan_out(self.double, items), await fan_out(self.both, items), plain]

    record = await Runner().run(Methods(), 1)
    assert record.output == [[0, 6], [0, 12], [1, 4]]
    expected = {f"pair[{i}]{tail}" for i in (0, 1) for tail in ("", ".a", ".b")}
    assert set(keys(record)) == expected | {"double[0]", "double[1]", "double[0]#1", "double[1]#1"}


async def test_an_empty_fan_out_gives_nothing_at_once():
    """No items: `[]` for all forms, and a join goes on exactly once, after all branches, with all results."""

    async def flow(g: Parts) -> object:
        empty = [await at_once(form, g.double, []) for form in ("fan_out", "async items", "settle", "as_completed")]
        return empty, keys(live.run)

    live = Runner().start(Parts(), flow)
    assert (await live.result()).output == ([[], [], [], []], [])
    assert await gather() == ()
    joined: list[object] = []

    async def join(g: Parts) -> object:
        joined.append(await fan_out(g.pair, [0, 3, 6]))
        return await g.double(len(joined))

    record = await run(join)
    assert joined == [[0, 6, 12]]
    assert keys(record)[-1] == "double"


async def test_fan_out_works_outside_a_run_over_plain_functions():
    """The functions are ordinary structured concurrency; nodes still need a run."""
    assert await fan_out(add_one, [1, 2]) == [2, 3]
    assert [o.key for o in await settle(add_one, [1, 2])] == ["add_one[0]", "add_one[1]"]
    with pytest.raises(NotRunningError, match="step `double` was called outside a run"):
        await fan_out(double, [1])


@given(st.lists(st.integers()), st.integers(1, 9), st.randoms(use_true_random=False), st.booleans())
@settings(deadline=None, max_examples=60)
def test_results_keep_the_items_order_whatever_finishes_first(items, limit, random, is_async):
    """However many workers there are and whoever is done first, result *i* belongs to item *i*."""
    turns = [random.randrange(4) for _ in items]

    async def slow(pair: tuple[int, int]) -> int:
        for _ in range(turns[pair[0]]):
            await anyio.lowlevel.checkpoint()
        return pair[1]

    async def main() -> None:
        def pairs() -> object:
            return many(*enumerate(items)) if is_async else list(enumerate(items))

        assert await fan_out(slow, pairs(), limit=limit) == items
        assert [outcome.value for outcome in await settle(slow, pairs(), limit=limit)] == items
        async with as_completed(slow, pairs(), limit=limit) as outcomes:
            came = [(outcome.index, outcome.value) async for outcome in outcomes]
        assert sorted(came) == list(enumerate(items))

    asyncio.run(main())


async def test_there_is_no_barrier_between_the_stages_of_different_branches():
    """Item 3's second stage runs while item 1's first is still waiting."""
    first_may_finish, third_is_done = anyio.Event(), anyio.Event()
    seen: list[str] = []

    async def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        prompt = asked(messages)
        if prompt == "item 1":
            await first_may_finish.wait()
        seen.append(prompt)
        if prompt == "item 3, item 3":
            third_is_done.set()
        return ModelResponse([TextPart(f"{prompt}, {prompt}")])

    async def both(g: Parts, item: str) -> str:
        return await g.write(await g.write(item))

    async def flow(g: Parts) -> object:
        return await fan_out(lambda item: both(g, item), ["item 1", "item 2", "item 3"])

    live = Runner(model=FunctionModel(answer)).start(Parts(), flow)
    with anyio.fail_after(30):
        await third_is_done.wait()
        assert "item 1" not in seen
        first_may_finish.set()
        record = await live.result()
    assert [text.count("item") for text in record.output] == [4, 4, 4]


async def test_fan_outs_nest_to_any_depth():
    """Fan-outs in fan-outs, also mixed with gather and settle, give nested results and nested keys."""

    async def inner(g: Parts, numbers: list[int]) -> object:
        outcomes, (a, b) = await gather(settle(g.picky, numbers), gather(g.double(1), g.double(2)))
        deeper = await fan_out(lambda n: fan_out(g.double, range(n)), numbers)
        return [[outcome.ok for outcome in outcomes], a + b, deeper]

    async def flow(g: Parts) -> object:
        return await fan_out(lambda numbers: inner(g, numbers), [[0, 1], [2]])

    record = await run(flow)
    assert record.output == [[[True, False], 6, [[], [0]]], [[True], 6, [[0, 2]]]]
    found = keys(record)
    assert {"picky[0][0][0]", "picky[0][0][1]", "picky[1][0][0]"} <= set(found)  # what `gather` awaits first
    assert {"double[0]", "double[0]#1", "double[0][1][0]"} <= set(found)
    assert len(found) == len(set(found))


async def test_keys_may_name_items():
    """`key=` names items in the calls' keys, of nested calls too; long names are cut."""
    record = await run(lambda g: fan_out(g.pair, [0, 3], key=lambda n: f"n{n}"))
    assert keys(record) == ["pair[n0]", "pair[n0].a", "pair[n0].b", "pair[n3]", "pair[n3].a", "pair[n3].b"]
    record = await run(lambda g: fan_out(g.double, [1, 2], key=lambda n: "x" * 500 + str(n)))  # they stay apart
    assert len(set(keys(record))) == 2
    assert not any("#" in key for key in keys(record))


HOSTILE = ["a]b[#.\n", "", "x" * 5000, "[0]", "\x00\x1b[31m", "\ud800", "1²3", "٣", "é" * 200, "../../etc", "`", "a#1"]


@given(st.lists(st.one_of(st.text(), st.sampled_from(HOSTILE)), max_size=8, unique=True))
@settings(deadline=None, max_examples=80)
def test_any_name_gives_keys_that_work(names: list[str]):
    """A model may have chosen the names: every item keeps a call of its own, of bounded length, that can be looked up."""

    async def main() -> None:
        items = list(enumerate(names))
        record = await run(lambda g: fan_out(lambda item: g.double(item[0]), items, key=lambda item: item[1]))
        found = keys(record)
        assert len(set(found)) == len(names)
        assert [call.output for call in record.root.children] == [record.call(key).output for key in found]
        assert sorted(call.input for call in record.calls(Parts.double)) == list(range(len(names)))
        for key in found:
            label = key.removeprefix("double[").rpartition("]")[0]
            assert not set(label) & set("[]#\n")
            assert len(label) < 100
            assert key.isprintable()

    asyncio.run(main())


@pytest.mark.parametrize("name", HOSTILE, ids=ascii)
async def test_hostile_names_do_not_break_the_record(name: str):
    """Brackets, line ends, control characters and very long names come out as one plain label."""
    record = await run(lambda g: fan_out(g.pair, [0, 3], key=lambda n: name + "+" * n))
    assert record.status == "succeeded"
    assert len(record.calls(Pair.a)) == 2
    assert record.mermaid()


async def test_current_call_in_a_flow_and_in_a_branch():
    """A flow knows its own key, and a branch's function the key with its index."""

    async def who(_item: int) -> str:
        await anyio.lowlevel.checkpoint()
        return current_call().key

    class Low(Graph[int, list[str]]):
        async def flow(self, number: int) -> list[str]:
            return [current_call().key, *await fan_out(who, [0, 1])]

    class High(Graph[int, list[list[str]]]):
        low = Low()

        async def flow(self, number: int) -> list[list[str]]:
            return await fan_out(self.low, [0, 1])

    record = await Runner().run(High(), 1)
    assert record.output == [["low[0]", "low[0][0]", "low[0][1]"], ["low[1]", "low[1][0]", "low[1][1]"]]


async def test_nodes_called_by_the_items_belong_to_no_branch():
    """A generator sees the flow's own call and gets the flow's keys, whichever worker asked it for more."""

    async def flow(g: Parts) -> object:
        async def items() -> AsyncIterator[int]:
            for number in range(6):
                yield await g.picky(3 * number)

        return await fan_out(g.double, items(), limit=2)

    record = await run(flow)
    assert record.output == [0, 6, 12, 18, 24, 30]
    assert [key for key in keys(record) if key.startswith("picky")] == ["picky", *(f"picky#{n}" for n in range(1, 6))]

    async def same(item: str) -> str:
        return item

    assert await output(lambda g: fan_out(same, (current_call().key for _ in range(5)), limit=2)) == [""] * 5


async def test_a_fan_out_is_announced_with_its_size():
    """Watchers are told how many branches there will be, where that is known."""

    async def flow(g: Parts) -> object:
        await fan_out(g.double, many(1))
        return await fan_out(g.pair, [0, 3])

    live = Runner().start(Parts(), flow)
    announced = [event async for event in live.events() if isinstance(event, FanOutStarted)]
    assert [(event.key, event.size) for event in announced] == [("pair", 2)]


class Crowd:
    """Counts how many are inside at once, and lets nobody out before the door is open."""

    def __init__(self) -> None:
        self.inside = 0
        self.door = anyio.Event()

    async def enter(self, item: object) -> object:
        self.inside += 1
        await self.door.wait()
        self.inside -= 1
        return item

    async def size(self, waiting: Awaitable[object]) -> int:
        """How many come in at once while nobody leaves; then all go through."""
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: waiting)
            await anyio.wait_all_tasks_blocked()
            size = self.inside
            self.door.set()
        return size


@pytest.mark.parametrize("source", ["sync", "async"])
@pytest.mark.parametrize(("limit", "expected"), [(None, 64), (1, 1), (7, 7), (1000, 200)])
async def test_a_fan_out_runs_at_most_limit_branches(source: str, limit: int | None, expected: int):
    """The default is 64 at once; `limit=` says otherwise; more workers than items do no harm."""
    crowd = Crowd()
    items = range(200) if source == "sync" else many(*range(200))
    assert await crowd.size(fan_out(crowd.enter, items, limit=limit)) == expected
    assert crowd.inside == 0


async def test_the_runner_sets_the_default_width():
    """`Runner(fan_out_limit=)` is the width of fan-outs that say nothing, in flows and in steps."""
    crowds = {"flow": Crowd(), "step": Crowd()}

    @step
    async def inside(number: int) -> list[object]:
        return await fan_out(crowds["step"].enter, range(number))

    assert await crowds["flow"].size(run(lambda g: fan_out(crowds["flow"].enter, range(20)), fan_out_limit=3)) == 3
    assert await crowds["step"].size(Runner(fan_out_limit=4).run(inside, 20)) == 4


async def test_a_fan_out_that_cannot_work_is_refused():
    """A limit below one would run nothing; a number is no items; a `key=` that raises fails like a branch."""
    for function in (fan_out, settle):
        with pytest.raises(
            DeclarationError, match="limit=0: the number of branches that run at once must be a whole number from 1"
        ):
            await function(add_one, [1], limit=0)
    with pytest.raises(DeclarationError, match="a fan-out runs over items, but 5 cannot be iterated"):
        await fan_out(add_one, 5)
    with pytest.raises(RunError, match=r"ZeroDivisionError"):
        await run(lambda g: fan_out(g.double, [1], key=lambda n: str(n / 0)))


@pytest.mark.parametrize("source", ["sync", "async"])
async def test_items_are_pulled_only_as_fast_as_workers_are_free(source: str):
    """With two workers busy, the third item has not been asked for."""
    pulled: list[int] = []
    doors = [anyio.Event() for _ in range(5)]
    arrived = [anyio.Event() for _ in range(5)]

    def numbers() -> Iterator[int]:
        for number in range(5):
            pulled.append(number)
            yield number

    async def async_numbers() -> AsyncIterator[int]:
        for number in numbers():
            yield number

    async def enter(number: int) -> int:
        arrived[number].set()
        await doors[number].wait()
        return number

    async with anyio.create_task_group() as group:
        items = numbers() if source == "sync" else async_numbers()
        group.start_soon(lambda: fan_out(enter, items, limit=2))
        with anyio.fail_after(30):
            await arrived[1].wait()
            await anyio.wait_all_tasks_blocked()
            assert pulled == [0, 1]
            doors[1].set()
            await arrived[2].wait()
            await anyio.wait_all_tasks_blocked()
            assert pulled == [0, 1, 2]
        for door in doors:
            door.set()


async def test_a_huge_iterator_costs_workers_not_tasks():
    """50,000 items run on the limit's workers, never on a task each."""
    most = 0

    async def look(number: int) -> int:
        nonlocal most
        if number % 1000 == 0:
            await anyio.lowlevel.checkpoint()
            most = max(most, len(others()))
        return number

    before = len(others())
    assert sum(await fan_out(look, iter(range(50_000)))) == sum(range(50_000))
    assert most - before <= 65


async def test_an_endless_iterator_ends_with_a_failure():
    """A branch's failure stops the pulling of further items, however many there would be."""

    async def until(number: int) -> None:
        await anyio.lowlevel.checkpoint()
        if number > 100:
            raise ValueError(number)

    with pytest.raises(ValueError, match=r"10\d"):
        await fan_out(until, itertools.count())


@pytest.mark.parametrize("options", [{}, {"max_concurrency": 1}, {"max_concurrency": 1, "fan_out_limit": 1}], ids=str)
async def test_nested_fan_outs_under_limit_one_finish(options: dict[str, int]):
    """Graphs hold no slot while they wait, so no nesting can block itself."""

    async def flow(g: Parts) -> object:
        async def middle(n: int) -> list[str]:
            return await fan_out(g.write, [f"{n}{m}" for m in range(3)], limit=1)

        return await fan_out(middle, range(3), limit=1)

    assert await output(flow, model=echo(), **options) == [[f"{n}{m}" for m in range(3)] for n in range(3)]


async def test_one_failure_of_ten_cancels_the_siblings_and_keeps_what_finished():
    """The first failure ends the others; finished calls keep their outputs in the run's record."""
    switch = {str(number): anyio.Event() for number in range(10)}
    SWITCH.set(switch)

    async def branch(g: Parts, number: int) -> object:
        if number == 9:
            switch["2"].set()
            switch["5"].set()
            while any(call.status == "running" for call in (live.run.call("patient[2]"), live.run.call("patient[5]"))):
                await anyio.lowlevel.checkpoint()
            return await g.picky(1)
        return await g.patient(str(number))

    async def flow(g: Parts) -> object:
        return await fan_out(lambda number: branch(g, number), range(10))

    live = Runner().start(Parts(), flow)
    with anyio.fail_after(30), pytest.raises(RunError, match=r"failed at `picky\[9\]`: ValueError: no 1") as caught:
        await live.result()
    record = caught.value.run
    status = {call.key: call.status for call in record.calls()}
    assert status.pop("picky[9]") == "failed"
    assert {key for key, value in status.items() if value == "succeeded"} == {"patient[2]", "patient[5]"}
    assert {key for key, value in status.items() if value == "cancelled"} == {
        f"patient[{n}]" for n in (0, 1, 3, 4, 6, 7, 8)
    }
    assert record.call("patient[5]").output == "5"
    assert [call.key for call in caught.value.failures] == ["picky[9]"]


async def test_a_failure_is_the_error_itself_so_a_flow_can_catch_it():
    """`except ValueError` around a fan-out works: nothing is wrapped in a group."""

    async def flow(g: Parts) -> object:
        for go in (lambda: fan_out(g.picky, [0, 1, 2]), lambda: gather(g.picky(0), g.picky(1))):
            with pytest.raises(ValueError, match="no 1"):
                await go()
        return "caught"

    assert await output(flow) == "caught"


async def test_settle_cancels_nobody():
    """Each outcome is a value or an error, in the items' order, with its index and key."""
    record = await run(lambda g: settle(g.picky, range(5), key=lambda n: f"n{n}"))
    outcomes: list[Outcome[int]] = record.output
    assert [outcome.ok for outcome in outcomes] == [True, False, True, True, False]
    assert [outcome.index for outcome in outcomes] == list(range(5))
    assert [record.call(outcome.key).input for outcome in outcomes] == list(range(5))
    assert outcomes[2].value == 2
    assert outcomes[2].error is None
    with pytest.raises(ValueError, match="no 4"):
        _ = outcomes[4].value
    assert record.status == "succeeded"
    assert [call.key for call in record.failures()] == ["picky[n1]", "picky[n4]"]


@pytest.mark.parametrize("form", ["fan_out", "settle", "gather", "as_completed"])
async def test_a_question_in_one_branch_lets_the_others_finish(form: str):
    """A branch that has to ask somebody suspends the run when its siblings are done; the answer finishes it."""
    careful = Agent(output_type=[str, DeferredToolRequests])

    @careful.tool_plain(requires_approval=True)
    def delete() -> str:
        return "deleted"

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        part = ToolCallPart("delete", {}) if len(messages) == 1 else TextPart("done")
        return ModelResponse([part])

    class Asks(Graph[str, list[str]]):
        asks = Stage(str, careful)
        write = Stage(str, Agent(echo(), output_type=str))

        async def either(self, text: str) -> str:
            return await (self.asks(text) if text == "ask" else self.write(text))

        async def flow(self, text: str) -> list[str]:
            return await at_once(form, self.either, ["a", "ask", "b"])

    runner = Runner(model=FunctionModel(answer), journal=MemoryJournal())
    suspended = await runner.run(Asks(), "x", run_id="r")
    assert suspended.status == "suspended"
    assert sorted(call.output for call in suspended.calls(Asks.write)) == ["a", "b"]
    finished = await runner.resume("r", answers={suspended.pending[0].id: True})
    assert sorted(finished.output) == ["a", "b", "done"]


@pytest.mark.parametrize("problem", [False, True])
async def test_a_question_in_a_users_own_task_group_suspends_the_run(problem: bool):
    """Raised through a group of the flow's own, a question still suspends the run; a failure beside it wins."""
    careful = Agent(TestModel(), output_type=[str, DeferredToolRequests])
    careful.tool_plain(lambda: "deleted", name="delete", requires_approval=True)

    @step
    async def last(_text: str) -> str:
        with anyio.CancelScope(shield=True):
            await anyio.wait_all_tasks_blocked()
        if problem:
            raise LookupError("broken")
        return "fine"

    class Asks(Graph[str, str]):
        asks = Stage(str, careful)
        last_step = last

        async def flow(self, text: str) -> str:
            async with anyio.create_task_group() as group:
                group.start_soon(self.asks, text)
                group.start_soon(self.last_step, text)
            return text

    going = Runner(journal=MemoryJournal()).run(Asks(), "x")
    if problem:
        with pytest.raises(RunError, match="LookupError: broken"):
            await going
    else:
        record = await going
        assert (record.status, record.pending[0].key) == ("suspended", "asks")


async def test_outcomes_come_as_they_are_done():
    """`as_completed` hands out what is done first first, failures too."""
    switch = SWITCH.set({name: anyio.Event() for name in "abc"})
    events = SWITCH.get()

    async def flow(g: Parts) -> object:
        came: list[str] = []
        events["b"].set()
        async with as_completed(g.patient, ["a", "b", "c"]) as outcomes:
            async for outcome in outcomes:
                came.append(outcome.value)
                events["c" if "c" not in came else "a"].set()
        async with as_completed(g.picky, [1]) as outcomes:
            came += [str(outcome.error) async for outcome in outcomes]
        return came

    assert await output(flow) == ["b", "c", "a", "no 1"]
    SWITCH.reset(switch)


async def test_leaving_as_completed_cancels_the_rest():
    """The first good answer may be enough: the others end when the block ends, and its error comes out as it is."""
    SWITCH.set({"a": anyio.Event(), "b": anyio.Event()})
    SWITCH.get()["b"].set()

    async def flow(g: Parts) -> object:
        with pytest.raises(LookupError, match="enough"):
            async with as_completed(g.patient, ["a"]):
                raise LookupError("enough")
        async with as_completed(g.patient, ["a", "b"]) as outcomes:
            async for outcome in outcomes:
                return outcome.value
        return None

    before = others()
    record = await run(flow)
    assert record.output == "b"
    assert [call.status for call in record.calls(Parts.patient)].count("succeeded") == 1
    assert record.call("patient[0]#1" if "patient[0]#1" in keys(record) else "patient[0]").status == "cancelled"
    assert others() <= before


async def test_a_slow_reader_slows_as_completed_down():
    """Outcomes are not heaped up: with a reader that waits, only a few items beyond the limit are begun."""
    begun: list[int] = []

    async def note(number: int) -> int:
        begun.append(number)
        return number

    async with as_completed(note, range(1000), limit=2) as outcomes:
        await anyio.wait_all_tasks_blocked()
        assert len(begun) <= 6
        assert len([outcome async for outcome in outcomes]) == 1000


async def test_gather_awaits_different_things():
    """Results are in the order of the arguments, each of its own type."""
    assert await output(lambda g: gather(g.double(1), g.pair(0), add_one(4))) == (2, 0, 5)


async def test_gather_cancels_the_others_and_warns_of_nothing():
    """The first failure ends the others; coroutines that had not begun are closed, so Python warns of none."""
    SWITCH.set({"a": anyio.Event()})
    never = add_one(1)
    with pytest.raises(RunError, match=r"picky"):
        await run(lambda g: gather(g.patient("a"), g.picky(1), never))
    with pytest.raises(RuntimeError, match="cannot reuse"):
        await never
    never = add_one(1)
    with anyio.CancelScope() as scope:
        scope.cancel()
        await gather(never)
    assert inspect.getcoroutinestate(never) == inspect.CORO_CLOSED


@pytest.mark.parametrize("error", [StopAsyncIteration("s"), StopIteration("s")], ids=repr)
@pytest.mark.parametrize("form", ["fan_out", "gather", "as_completed", "async items"])
async def test_exceptions_of_iteration_do_not_end_a_fan_out_silently(form: str, error: BaseException):
    """A branch that raises `StopAsyncIteration` (or its like) is a failed branch, not the end of the items."""

    async def branch(number: int) -> int:
        await anyio.lowlevel.checkpoint()
        if number == 1:
            raise error
        return number

    with pytest.raises(RunError, match=r"Stop(Async)?Iteration"):
        await run(lambda _: at_once(form, branch, range(3)))


@pytest.mark.parametrize("form", ["fan_out", "gather", "settle", "as_completed", "async items"])
async def test_a_cancelled_future_in_a_branch_is_not_taken_for_a_result(form: str):
    """A branch that awaits something which others cancelled has failed; its place is not filled with `None`."""

    async def branch(number: int) -> int:
        if number == 1:
            gone = asyncio.ensure_future(anyio.sleep_forever())
            gone.cancel()
            await gone
        return number

    with pytest.raises(RunError, match="graph Parts failed: it awaited something that was cancelled"):
        await run(lambda _: at_once(form, branch, range(3)))


async def test_a_step_that_awaits_what_was_cancelled_has_failed():
    """Nobody cancelled the run: the step is named, `settle` has it as an error, and who awaits the run goes on."""

    @step
    async def lost(number: int) -> int:
        gone = asyncio.ensure_future(anyio.sleep_forever())
        gone.cancel()
        if number:
            await gone
        return number

    class Loses(Graph[int, list[str]]):
        wait = lost

        async def flow(self, count: int) -> list[str]:
            return [str(outcome.error or outcome.value) for outcome in await settle(self.wait, range(count))]

    said = (await Runner().run(Loses(), 2)).output
    assert said[0] == "0"
    assert "step `wait[1]` failed: it awaited something that was cancelled" in said[1]
    with pytest.raises(RunError, match="step `lost` failed"):
        await Runner().run(lost, 1)


async def test_an_outcome_says_where_it_ran():
    """Its key finds the call, in whatever graph, and when two fan-outs run in one place."""
    keys: list[tuple[str, int]] = []

    @step
    async def tenfold(number: int) -> int:
        if number == 3:
            raise ValueError("three")
        return number * 10

    def thirds(number: int) -> str:
        return "abc"[number % 3]

    def keep(outcome: Outcome[int]) -> None:
        keys.append((outcome.key, -1 if outcome.error else outcome.value))

    class Twice(Graph[int, int]):
        times = tenfold

        async def flow(self, number: int) -> int:
            for base in (1, 100):
                for outcome in await settle(self.times, [base, base + 1, base + 2], key=thirds):
                    keep(outcome)
            async with as_completed(self.times, [7, 8]) as outcomes:
                async for outcome in outcomes:
                    keep(outcome)
            return number

    class Outer(Graph[int, list[int]]):
        twice = Twice()

        async def flow(self, number: int) -> list[int]:
            return await fan_out(self.twice, range(number))

    done = await Runner().run(Outer(), 2)
    assert len({key for key, _ in keys}) == len(keys) == 16
    assert [done.call(key).output if value > 0 else -1 for key, value in keys] == [value for _, value in keys]


@pytest.mark.parametrize("form", ["fan_out", "settle", "as_completed"])
@pytest.mark.parametrize("source", ["sync", "async"])
async def test_items_that_fail_midway_are_an_error(form: str, source: str):
    """A generator that raises after some items ends the fan-out with its own error, which a flow can catch."""

    def items() -> Iterator[int]:
        yield 0
        yield 2
        raise LookupError("the page is gone")

    async def async_items() -> AsyncIterator[int]:
        for item in items():
            yield item

    async def flow(g: Parts) -> object:
        try:
            return await at_once(form, g.picky, items() if source == "sync" else async_items())
        except LookupError as error:
            return str(error)

    assert await output(flow) == "the page is gone"
    with pytest.raises(RunError, match="LookupError: the page is gone"):  # while a worker asks for more
        await run(lambda g: fan_out(g.double, items(), limit=1))


async def test_an_async_generator_runs_in_one_task():
    """Timeouts and cancel scopes around a `yield` work, since the items are always asked for by the same task."""
    tasks: set[object] = set()

    async def items() -> AsyncIterator[int]:
        with anyio.fail_after(30):
            for number in range(6):
                tasks.add(asyncio.current_task())
                await anyio.lowlevel.checkpoint()
                yield number

    assert await output(lambda g: fan_out(g.double, items(), limit=2)) == [0, 2, 4, 6, 8, 10]
    assert len(tasks) == 1


@pytest.mark.parametrize("form", ["fan_out", "as_completed"])
async def test_an_async_generator_is_closed_when_its_fan_out_fails(form: str):
    """A generator that is left half-way has cleaned up when the fan-out is over."""
    closed: list[bool] = []

    async def items() -> AsyncIterator[int]:
        try:
            for number in itertools.count():
                yield number
        finally:
            closed.append(True)

    generator = items()
    if form == "fan_out":
        with pytest.raises(ValueError, match="no 1"):
            await fan_out(picky.fn, generator, limit=1)
    else:
        async with as_completed(picky.fn, generator, limit=1) as outcomes:
            async for _ in outcomes:
                break
    assert closed == [True]


async def test_the_branches_of_a_users_own_task_group_work_and_fail_as_one_error():
    """A flow may use anyio itself; the group that it raises is flattened at the runner."""

    async def flow(g: Parts) -> object:
        found: list[int] = []

        async def one(number: int) -> None:
            found.append(await g.picky(number))

        async with anyio.create_task_group() as outer:
            for number in (0, 2, 1):
                outer.start_soon(one, number)
        return found

    with pytest.raises(RunError, match=r"Parts failed at `picky#2`: ValueError: no 1$") as caught:
        await run(flow)
    assert isinstance(caught.value.__cause__, ValueError)
    assert [call.key for call in caught.value.failures] == ["picky#2"]


async def test_several_failures_of_a_users_own_task_group_are_all_named():
    """Each error of the group is in the message, and each failed call in `failures`."""

    @step
    async def late(number: int) -> int:
        with anyio.CancelScope(shield=True):
            await anyio.lowlevel.checkpoint()
        raise ValueError(f"late {number}")

    class Both(Graph[int, int]):
        fails_late = late

        async def flow(self, number: int) -> int:
            async with anyio.create_task_group() as outer, anyio.create_task_group() as inner:
                outer.start_soon(self.fails_late, 1)
                inner.start_soon(self.fails_late, 2)
            return 0

    with pytest.raises(RunError) as caught:
        await Runner().run(Both(), 1)
    assert "ValueError: late 1" in str(caught.value)
    assert "ValueError: late 2" in str(caught.value)
    assert "sub-exception" not in str(caught.value)
    assert [str(call.error) for call in caught.value.failures] == ["ValueError: late 1", "ValueError: late 2"]


@pytest.mark.parametrize("form", ["fan_out", "settle", "gather", "as_completed", "nested"])
async def test_cancelling_an_enclosing_scope_leaves_no_task_and_no_request(form: str):
    """An anyio scope around the run ends every parallel stage, in every form of concurrency."""
    gate = Turnstile()

    async def flow(g: Parts) -> object:
        if form == "nested":
            return await fan_out(lambda item: settle(g.write, [item]), ["a", "b"])
        return await at_once(form, g.write, ["a", "b"])

    before = others()
    runner = Runner(model=gate.model)
    reached: list[str] = []
    async with anyio.create_task_group() as group:

        async def go() -> None:
            await runner.run(Parts(), flow)
            reached.append("the end")

        group.start_soon(go)
        with anyio.fail_after(30):
            await gate.crowd(2)
        group.cancel_scope.cancel()
    assert gate.inside == []
    assert reached == []
    assert others() <= before


async def test_cancelling_streaming_stages_leaves_no_task():
    """Stages that stream their text are cancelled as cleanly as others."""
    closed: list[str] = []
    all_there = anyio.Event()

    async def stream(messages: list[ModelMessage], _info: AgentInfo) -> AsyncIterator[str]:
        begun.append(asked(messages))
        try:
            yield "begin"
            if len(begun) == 2:
                all_there.set()
            await anyio.sleep_forever()
        finally:
            closed.append(asked(messages))

    begun: list[str] = []
    before = others()
    live = Runner(model=FunctionModel(stream_function=stream)).start(
        Parts(), lambda g: fan_out(g.write, ["a", "b"]), deltas=True
    )
    with anyio.fail_after(30):
        await all_there.wait()
        await live.cancel()
    assert sorted(closed) == ["a", "b"]
    assert others() <= before


async def test_a_timeout_around_a_run_gives_the_partial_record():
    """`asyncio.timeout` turns the cancellation into a `TimeoutError`; the record is found from it."""
    gate = Turnstile()
    limit = asyncio.timeout(None)

    async def flow(g: Parts) -> object:
        await g.double(1)
        limit.reschedule(asyncio.get_running_loop().time())
        return await fan_out(g.write, ["a", "b"])

    with pytest.raises(TimeoutError) as caught:
        async with limit:
            await Runner(model=gate.model).run(Parts(), flow)
    partial = RunError.from_cancellation(caught.value)
    assert partial is not None
    assert partial.run.call("double").output == 2
    assert gate.inside == []
    assert RunError.from_cancellation(ValueError()) is None


async def test_a_flow_may_cancel_a_part_of_itself():
    """A scope inside the flow ends what is in it, and the flow goes on; the run has succeeded."""
    gate = Turnstile()

    async def flow(g: Parts) -> object:
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: fan_out(g.write, ["a", "b"]))
            await gate.crowd(2)
            group.cancel_scope.cancel()
        return await g.double(2)

    record = await run(flow, model=gate.model)
    assert (record.output, record.status) == (4, "succeeded")
    assert [call.status for call in record.calls(Parts.write)] == ["cancelled"] * 2


@pytest.mark.parametrize("kind", ["tool", "step"])
async def test_fan_out_works_inside_tools_and_steps(kind: str):
    """What a tool fans out runs inside its call, and is cancelled with it."""
    gate = Turnstile()
    inner = Agent(gate.model, output_type=str)

    async def ask(text: str) -> str:
        return (await inner.run(text)).output

    async def three() -> list[str]:
        return await fan_out(ask, ["a", "b", "c"])

    agent = Agent(output_type=str)
    agent.tool_plain(three)

    @step
    async def three_in_a_step(text: str) -> list[str]:
        return await three()

    node: Node = Stage(str, agent) if kind == "tool" else three_in_a_step
    before = others()
    live = Runner(model=TestModel()).start(node, "x")
    with anyio.fail_after(30):
        await gate.crowd(3)
        await live.cancel()
    assert gate.inside == []
    assert others() <= before
    gate.open()
    record = await Runner(model=TestModel()).run(node, "x")
    assert record.status == "succeeded"
    assert sorted(gate.seen) == ["a", "a", "b", "b", "c", "c"]


class Tree(Graph[int, object]):
    """Random concurrency, four deep, in which leaves fail at random."""

    picky = picky

    async def flow(self, seed: int) -> object:
        chance = random.Random(seed)

        async def tree(depth: int) -> object:
            if depth == 0:
                return await self.picky(3 * chance.randrange(9) + (chance.random() < 0.05))
            form, below = chance.randrange(6), [depth - 1] * chance.randrange(5)
            items = many(*below) if chance.random() < 0.3 else below
            result: list[object] = []
            if form == 0:
                result = await fan_out(tree, items, limit=chance.choice([None, 1, 2]))
            elif form == 1:
                result = [outcome.ok and outcome.value for outcome in await settle(tree, items)]
            elif form == 2:
                result = list(await gather(*map(tree, below)))
            elif form == 3:
                async with as_completed(tree, items, limit=chance.choice([None, 1])) as outcomes:
                    async for outcome in outcomes:
                        result.append(outcome.ok and outcome.value)
                        if chance.random() < 0.2:
                            break
            elif form == 4:
                with anyio.move_on_after(chance.choice([0, 60])):
                    result = await fan_out(tree, items)
            else:
                async with anyio.create_task_group() as group:
                    for one in below:
                        group.start_soon(tree, one)
            assert None not in result
            return result

        return await tree(4)


@given(st.integers(0, 10**6), st.one_of(st.none(), st.integers(0, 40)))
@settings(deadline=None, max_examples=150)
def test_no_nesting_leaves_anything_behind(seed: int, cancelled_after: int | None):
    """Any tree of concurrency, failing or cancelled anywhere, ends as a whole: no task, no running call, no gap."""

    async def main() -> None:
        task = asyncio.create_task(Runner().run(Tree(), seed))
        if cancelled_after is not None:
            for _ in range(cancelled_after):
                await anyio.lowlevel.checkpoint()
            task.cancel()
        await asyncio.wait([task])
        assert others() == set()
        if task.cancelled():
            assert cancelled_after is not None
            return
        error = task.exception()
        if error is not None:
            assert isinstance(error, RunError)
            assert error.failures
        record = error.run if error is not None else task.result()
        assert "running" not in {call.status for call in record.root.walk()}

    asyncio.run(main())


async def test_a_failing_stage_among_parallel_ones_ends_their_requests():
    """When one model fails, requests of the siblings are cancelled on the wire."""
    gate = Turnstile()

    class Two(Graph[str, object]):
        good = Stage(str, Agent(gate.model, output_type=str))
        bad = Stage(str, Agent(fails(ConnectionError("down")), output_type=str))

        async def late(self, _text: str) -> str:
            await gate.crowd(2)
            return await self.bad("x")

        async def flow(self, text: str) -> object:
            return await gather(self.good("a"), self.good("b"), self.late("c"))

    before = others()
    with anyio.fail_after(30), pytest.raises(RunError, match="ConnectionError: down"):
        await Runner().run(Two(), "x")
    assert gate.inside == []
    assert others() <= before


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda self: fan_out(self.double, self.double(1)), r"but got a coroutine: write `await` before the call"),
        (lambda self: settle(self.double, self.double(1)), r"but got a coroutine: write `await` before the call"),
        (
            lambda self: fan_out(self.double(1), [1]),
            r"takes the node itself and then the items, as in `fan_out\(self\.node",
        ),
        (lambda self: gather([self.double(1), self.double(2)]), r"not a list of them: .* or `gather\(\*calls\)`"),
        (lambda self: gather(self.double(n) for n in (1, 2)), r"not a generator of them"),
        (lambda self: gather(self.double(1), self.double), r"<step double> was not called: write `gather\(self\.node"),
        (lambda self: gather(self.double(1), 2), r"gather takes calls, as in .*, but 2 cannot be awaited"),
        (
            lambda self: fan_out([self.double(n) for n in (1, 2)]),
            r"the node itself and then the items: write `fan_out\(self\.node, items\)`",
        ),
        (lambda self: settle([self.double(n) for n in (1, 2)], [1]), r"takes the node itself and then the items"),
        (lambda _: settle([]), r"write `settle\(self\.node, items\)`"),
        (
            lambda _: fan_out(lambda text: text.upper(), ["a"]),
            r"`<lambda>` is neither: it returned 'A'; write `async def`",
        ),
        (lambda _: fan_out(str.upper, ["a"]), r"`upper` is neither: it returned 'A'; write `async def`"),
        (
            lambda self: fan_out(self.double, "abc"),
            r"str would give one character or byte after another: write `\[value",
        ),
        (lambda self: settle(self.double, b"abc"), r"bytes would give one character or byte after another"),
        (lambda self: fan_out(self.double, {"a": 1}), r"a dict would give its keys alone: write `\.items\(\)` or"),
        (lambda self: fan_out(self.double, Number(value=1)), r"Number would give its fields: write `\[value\]`"),
        (
            lambda self: self.double(1, 2),
            r"step `double` takes exactly one value, without a name: write `self\.double\(",
        ),
        (lambda self: self.write(value="a"), r"stage `write` takes exactly one value, without a name"),
        (lambda self: self.pair(), r"graph `Pair` takes exactly one value, without a name"),
        (lambda self: fan_out(self.double, [1], key=Parts.flow), r"key=<function .*: write a function from an item"),
        (lambda self: fan_out(self.double, [(1, 2)], key=0), r"key=0: write a function from an item to its name"),
    ],
)
async def test_a_slip_in_what_runs_at_once_is_told_in_words(make: Flow, said: str):
    """A call that was not awaited, or a list of calls, is named; no call is left behind that Python would warn of."""
    with pytest.raises(RunError, match=said) as caught:
        await run(make)
    assert isinstance(caught.value.__cause__, DeclarationError)
    assert caught.value.run.calls() == []


async def test_as_completed_is_a_block():
    """Where it is used as something else, the error shows the block; nothing has begun that would be left behind."""

    async def loops(g: Parts) -> object:
        return [outcome async for outcome in as_completed(g.double, [1])]

    async def awaits(g: Parts) -> object:
        return await as_completed(g.double, [1])

    async def enters(g: Parts) -> object:
        with as_completed(g.double, [1]) as outcomes:
            return outcomes

    for flow in (loops, awaits, enters):
        with pytest.raises(
            RunError, match=r"as_completed is a block: write `async with as_completed\(\.\.\.\) as"
        ) as caught:
            await run(flow)
        assert isinstance(caught.value.__cause__, DeclarationError)


async def test_a_block_of_as_completed_is_entered_once():
    async def twice(g: Parts) -> object:
        block = as_completed(g.double, [1])
        async with block as outcomes:
            assert [outcome.value async for outcome in outcomes] == [2]
        async with block as outcomes:
            return [outcome async for outcome in outcomes]

    with anyio.fail_after(30), pytest.raises(RunError, match=r"entered before, .*: call as_completed again"):
        await run(twice)
