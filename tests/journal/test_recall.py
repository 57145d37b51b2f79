"""Which call may use which record: the same run that goes on goes by places, another run that replays it by content."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from dataclasses import replace
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai import Agent

from scripted import echo
from stagegraph import Graph, ReplayError, Run, RunError, Runner, Stage, current_call, fan_out, step
from stagegraph.journal import Journal, MemoryJournal


class Shop:
    """A graph that asks for and orders every item; it keeps what was really asked and ordered."""

    def __init__(self, journal: Journal) -> None:
        self.asked: list[str] = []
        self.ordered: list[tuple[str, str]] = []
        self.items: list[str] = []
        """What the flow finds, whatever its input is: the world changes while a run is interrupted."""
        self.fails: set[str] = set()
        self.numbers = itertools.count()
        shop = self

        @step
        async def buy(item: str) -> str:
            if item in shop.fails:
                raise OSError(item)
            shop.ordered.append((current_call().key, item))
            return f"{item} {next(shop.numbers)}"

        class Buy(Graph[str, list[str]]):
            ask = Stage(str, Agent())
            order = buy

            async def flow(self, text: str) -> list[str]:
                said = await fan_out(self.ask, shop.items, limit=1)
                return [*said, *await fan_out(self.order, shop.items, limit=1)]

        self.graph = Buy()
        self.runner = Runner(echo(self.answer), journal=journal)

    def answer(self, text: str) -> str:
        self.asked.append(text)
        return f"{text} {next(self.numbers)}"

    async def run(self, *items: str, **options: Any) -> Run[str, list[str]]:
        self.items = list(items)
        return await self.runner.run(self.graph, "x", **options)

    async def resume(self, *items: str, **options: Any) -> Run[str, list[str]]:
        self.items = list(items)
        return await self.runner.resume("r", graph=self.graph, **options)

    def take(self) -> tuple[list[str], list[tuple[str, str]]]:
        """What was asked and ordered since the last time."""
        taken = (self.asked[:], self.ordered[:])
        self.asked.clear()
        self.ordered.clear()
        return taken


@pytest.fixture(name="shop")
def _shop(journal: Journal) -> Shop:
    return Shop(journal)


@pytest.mark.parametrize("items", [["a", "b", "c"], ["a", "a", "a"], ["b", "a", "b"]])
async def test_an_item_in_front_is_all_that_a_replay_runs(shop: Shop, items: list[str]) -> None:
    """Whatever stands behind it, equal or not, in stages and in steps."""
    first = await shop.run(*items)
    shop.take()
    run = await shop.run("new", *items, replay=first)
    assert shop.take() == (["new"], [("order[0]", "new")])
    assert Counter(run.output) >= Counter(first.output)


@given(st.lists(st.sampled_from("abc"), max_size=5), st.lists(st.sampled_from("abc"), max_size=5))
@settings(deadline=None, max_examples=25)
def test_a_replay_runs_what_there_is_more_of(before: list[str], after: list[str]) -> None:
    """And nothing else, wherever it stands; what stays in its place keeps its answer."""

    async def main() -> None:
        shop = Shop(MemoryJournal())
        first = await shop.run(*before)
        shop.take()
        run = await shop.run(*after, replay=first)
        asked, ordered = shop.take()
        more = Counter(after) - Counter(before)
        assert Counter(asked) == more
        assert Counter(item for _, item in ordered) == more
        if before == after:
            assert run.output == first.output

    anyio.run(main)


async def test_a_step_that_is_something_else_now_runs_under_its_key_and_takes_no_other_answer(shop: Shop) -> None:
    """The run goes on with its items in another order: every order is made again, the questions that can move do."""
    shop.fails = {"c"}
    with pytest.raises(RunError, match="OSError"):
        await shop.run("a", "b", "c", run_id="r")
    assert shop.take() == (["a", "b", "c"], [("order[0]", "a"), ("order[1]", "b")])
    shop.fails = set()
    with pytest.raises(ReplayError, match=r"`ask\[0\]` differs from its record: the input changed"):
        await shop.resume("b", "a", "c", strict=True)
    run = await shop.resume("b", "a", "c")
    # `ask[0]` was called while `ask[1]` could still be called with its own input; `ask[1]` finds what `ask[0]` left.
    assert shop.take() == (["b"], [("order[0]", "b"), ("order[1]", "a"), ("order[2]", "c")])
    assert run.rerun == dict.fromkeys(("ask[0]", "order[0]", "order[1]"), "the input")
    assert run.output[1] == "a 0"


async def test_strict_means_steps(shop: Shop) -> None:
    """Nothing has changed but the order of what has effects."""
    shop.fails = {"b"}
    with pytest.raises(RunError, match="OSError"):
        await shop.run("a", "b", run_id="r")
    shop.fails = set()
    run = await shop.resume("a", "b", strict=True)
    assert (run.rerun, [item for _, item in shop.ordered]) == ({}, ["a", "b"])


async def test_a_recalled_call_says_where_it_comes_from(shop: Shop, journal: Journal) -> None:
    """Its row has the run and the key of the record; what was computed has none."""
    first = await shop.run("a", "b")
    await shop.run("new", "a", "b", replay=first, run_id="second")
    sources = {row.key: row.source and json.loads(row.source) for row in await journal.calls("second")}
    assert sources["order[0]"] is None
    assert sources["order[1]"] == [first.id, "order[0]"]
    assert sources["ask[2]"] == [first.id, "ask[1]"]
    await shop.run("b", "a", "new", replay="second", run_id="third")
    sources = {row.key: row.source and json.loads(row.source) for row in await journal.calls("third")}
    assert sources["order[0]"] == ["second", "order[2]"]


async def test_a_replay_that_is_resumed_has_both_and_uses_nothing_twice(shop: Shop) -> None:
    """What it recorded itself stays, what it had not yet used of the other run is used, and the rest runs."""
    first = await shop.run("a", "a", "b")
    shop.take()
    shop.fails = {"new"}
    with pytest.raises(RunError, match="OSError"):
        await shop.run("a", "new", "a", "b", "a", replay=first, run_id="r")
    assert shop.take() == (["new", "a"], [])
    shop.fails = set()
    run = await shop.resume("a", "new", "a", "b", "a")
    assert shop.take() == ([], [("order[1]", "new"), ("order[4]", "a")])
    assert run.rerun == {}
    assert run.usage.requests == 2


async def test_strict_is_about_what_the_run_itself_has_recorded(shop: Shop) -> None:
    """A replay that was interrupted may go on with what differs from the run that it replays."""
    first = await shop.run("a", "b")
    shop.fails = {"x"}
    with pytest.raises(RunError, match="OSError"):
        await shop.run("x", "y", "b", replay=first, run_id="r")
    shop.fails = set()
    run = await shop.resume("x", "y", "b", strict=True)
    assert run.output[-1] == first.output[-1]


async def test_answers_of_the_replayed_run_are_not_used_up_twice_by_a_resumed_one(shop: Shop) -> None:
    """One question was recorded once: of two equal ones, the second asks, however often the run is interrupted."""
    first = await shop.run("a")
    shop.take()
    shop.fails = {"x"}
    with pytest.raises(RunError, match="OSError"):
        await shop.run("x", "a", replay=first, run_id="r")
    assert shop.take()[0] == ["x"]
    with pytest.raises(RunError, match="OSError"):
        await shop.resume("x", "a", "a")
    assert shop.take()[0] == ["a"]
    shop.fails = set()
    run = await shop.resume("a", "a", "a")
    assert shop.take()[0] == ["a"]
    assert len(set(run.output[:3])) == 3


async def test_a_call_whose_messages_cannot_be_read_is_made_again(shop: Shop, journal: Journal) -> None:
    """Such as those of another version of Pydantic AI; what its model answered is recorded by itself."""
    shop.fails = {"a"}
    with pytest.raises(RunError):
        await shop.run("a", run_id="r")
    [row] = [row for row in await journal.calls("r") if row.kind == "stage"]
    await journal.put(replace(row, messages='[{"kind": "other"}]'))
    shop.fails = set()
    shop.take()
    run = await shop.resume("a")
    assert shop.take() == ([], [("order[0]", "a")])
    assert run.rerun["ask[0]"] == "the output cannot be read back"
