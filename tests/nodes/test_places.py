"""Where calls that run at once have their keys: as the program is written, whichever of them is first."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scripted import others
from stagegraph import (
    DeclarationError,
    Graph,
    RunError,
    Runner,
    as_completed,
    current_call,
    fan_out,
    gather,
    settle,
    step,
)
from stagegraph.journal import MemoryJournal

TENANT: ContextVar[str] = ContextVar("tenant", default="of the flow")
DELAYS: ContextVar[random.Random] = ContextVar("delays")

Flow = Callable[["Parts"], Awaitable[object]]


async def soon() -> None:
    """Let others go first, some number of times."""
    chance = DELAYS.get(None)
    for _ in range(chance.randrange(6) if chance is not None else 0):
        await asyncio.sleep(0)


@step
async def order(item: str) -> str:
    await soon()
    return f"{current_call().key} is {item}"


@step
async def look(item: str) -> str:
    await soon()
    return item


class Parts(Graph[Callable, object]):
    """A graph whose flow is given with its input."""

    order = order
    look = look

    async def handle(self, item: str) -> str:
        await soon()
        return await self.order(await self.look(item))

    async def twice(self, item: str) -> list[str]:
        return list(await gather(self.handle(item), self.handle(item + "'")))

    async def flow(self, value: Flow) -> object:
        return await value(self)


async def output(flow: Flow) -> object:
    with anyio.fail_after(30):
        return (await Runner().run(Parts(), flow)).output


ITEMS = ["a", "b", "c", "d"]


async def in_a_loop(g: Parts) -> object:
    said: list[str] = []
    async with as_completed(g.look, ITEMS) as outcomes:
        async for outcome in outcomes:
            said.append(await g.order(outcome.value))
            said.append(await g.order(outcome.value))
        said.append(await g.order("after"))
    return sorted([*said, await g.order("outside")])


async def of_fan_outs(g: Parts) -> object:
    made, settled = await gather(fan_out(g.order, ITEMS[:2]), settle(g.handle, ITEMS[2:]))
    return [*made, *(outcome.value for outcome in settled)]


async def made_before(g: Parts) -> object:
    """A call belongs to the place where it is made, not to that which awaits it; one that nobody awaits keeps its number."""

    async def wait(call: Awaitable[str]) -> str:
        await soon()
        return await call

    first, dropped, third = g.order("a"), g.order("b"), g.order("c")
    dropped.close()
    return await gather(wait(third), wait(first), wait(g.order("d")))


FLOWS: list[tuple[Flow, object]] = [
    (lambda g: gather(g.order("a"), g.order("b")), ("order is a", "order#1 is b")),
    (lambda g: gather(*map(g.handle, ITEMS)), tuple(f"order[{i}] is {item}" for i, item in enumerate(ITEMS))),
    (lambda g: fan_out(g.twice, ITEMS[:1]), [["order[0][0] is a", "order[0][1] is a'"]]),
    (
        lambda g: gather(g.twice("a"), g.twice("b")),
        (["order[0][0] is a", "order[0][1] is a'"], ["order[1][0] is b", "order[1][1] is b'"]),
    ),
    (of_fan_outs, ["order[0][0] is a", "order[0][1] is b", "order[1][0] is c", "order[1][1] is d"]),
    (made_before, ("order#2 is c", "order is a", "order#3 is d")),
    (
        in_a_loop,
        [
            "order is after",
            "order#1 is outside",
            *sorted(f"order[{i}]{n} is {item}" for i, item in enumerate(ITEMS) for n in ("", "#1")),
        ],
    ),
]


@pytest.mark.parametrize(("flow", "expected"), FLOWS)
@pytest.mark.parametrize("seed", range(5))
async def test_a_key_does_not_depend_on_who_is_first(flow: Flow, expected: object, seed: int) -> None:
    """Whatever takes how long, a call has the key that its place in the program gives it."""
    DELAYS.set(random.Random(seed))
    assert await output(flow) == expected


async def test_the_item_of_a_loop_ends_with_its_block() -> None:
    """After `break`, an exception or the end, calls belong to the flow again; loops in loops have both labels."""

    async def flow(g: Parts) -> object:
        said: list[str] = []
        async with as_completed(g.look, ["a"]) as outer:
            async for _ in outer:
                async with as_completed(g.look, ["b"]) as inner:
                    async for _ in inner:
                        said.append(await g.order("x"))
                        break
                said.append(await g.order("y"))
                break
        try:
            async with as_completed(g.look, ["a"], key=str.upper) as named:
                async for _ in named:
                    said.append(await g.order("z"))
                    raise LookupError
        except LookupError:
            pass
        return [*said, await g.order("end")]

    said = await output(flow)
    assert said == ["order[0][0] is x", "order[0] is y", "order[A] is z", "order is end"]


Effects = dict[str, set[str]]


class Shop(Graph[list[str], int]):
    """Orders items, each under the key of its call, in the form that the first item names."""

    look = look

    def __init__(self) -> None:
        self.effects: Effects = {}

        @step
        async def buy(item: str) -> str:
            self.effects.setdefault(current_call().key, set()).add(item)
            await soon()
            return item

        self.buy = buy

    async def handle(self, item: str) -> str:
        return await self.buy(await self.look(item))

    async def flow(self, items: list[str]) -> int:
        form, *items = items
        if form == "gather":
            return len(await gather(*map(self.handle, items)))
        if form == "fan_out":
            return len(await fan_out(self.handle, items, limit=2))
        async with as_completed(self.look, items) as outcomes:
            return len([await self.buy(outcome.value) async for outcome in outcomes])


@given(st.integers(0, 10**6), st.sampled_from(["gather", "fan_out", "loop"]), st.integers(0, 60))
@settings(deadline=None, max_examples=60)
def test_after_an_interruption_every_key_stands_for_the_same_item(seed: int, form: str, turn: int) -> None:
    """Interrupted anywhere and resumed at another pace, no item is ordered under two keys, and no key for two items."""

    async def main() -> None:
        graph, journal, items = Shop(), MemoryJournal(), [form, *"abcdef"]
        DELAYS.set(random.Random(seed))
        task = asyncio.create_task(Runner(journal=journal).run(graph, items, run_id="r"))
        for _ in range(turn):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        DELAYS.set(random.Random(seed + 1))
        if task.cancelled() and await journal.run("r") is not None:
            await Runner(journal=journal).resume("r", graph=graph)
            assert sorted(map(sorted, graph.effects.values())) == [[item] for item in "abcdef"]
        assert others() == set()

    asyncio.run(main())


@pytest.mark.parametrize("form", ["fan_out", "settle", "as_completed", "gather", "async items"])
async def test_every_branch_starts_from_the_context_of_the_flow(form: str) -> None:
    """What an item sets in a context variable stays with that item, although items share workers."""

    async def branch(item: str) -> str:
        found = TENANT.get()
        TENANT.set(item)
        await soon()
        return f"{found}, then {TENANT.get()}"

    async def many() -> AsyncIterator[str]:
        for item in ITEMS:
            yield item

    async def flow(_g: Parts) -> object:
        TENANT.set("ours")
        if form == "gather":
            found = list(await gather(*map(branch, ITEMS)))
        elif form == "settle":
            found = [outcome.value for outcome in await settle(branch, ITEMS, limit=1)]
        elif form == "as_completed":
            async with as_completed(branch, ITEMS, limit=1) as outcomes:
                found = [outcome.value async for outcome in outcomes]
        else:
            found = await fan_out(branch, many() if form == "async items" else ITEMS, limit=1)
        return [*sorted(found), TENANT.get()]

    DELAYS.set(random.Random(1))
    assert await output(flow) == [*(f"ours, then {item}" for item in ITEMS), "ours"]
    assert TENANT.get() == "ours"  # the run has no task of its own
    assert await fan_out(branch, ["a", "b"], limit=1) == ["ours, then a", "ours, then b"]


@pytest.mark.parametrize("function", [fan_out, settle, as_completed])
async def test_one_name_for_two_items_is_an_error(function: Callable) -> None:
    """Calls of two items would be taken for each other's: the error names both, and the name."""

    async def flow(g: Parts) -> object:
        made = function(g.order, ["cup", "mug", "cup"], key=str)
        if function is not as_completed:
            return await made
        async with made as outcomes:
            return [outcome async for outcome in outcomes]

    with pytest.raises(RunError, match="`key=` gives items 0 and 2 the same name, 'cup'") as caught:
        await output(flow)
    assert isinstance(caught.value.__cause__, DeclarationError)
    both = await output(lambda g: fan_out(g.order, ["a[", "a]"], key=str))  # they stay apart
    assert len({said.partition(" is ")[0] for said in both}) == 2
