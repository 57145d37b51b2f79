"""Keys, paths and the records of calls: unique, ordered as people count, and frozen."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from datetime import UTC, timedelta
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from scripted import echo, priced, says
from stagegraph import Graph, Note, Run, RunError, Runner, Stage, fan_out, note, settle, step
from stagegraph.data.call import key_order

Plan = list[Any]
"""What a flow does: `"leaf"` calls a step, `("inner", plan)` calls a graph, `(labels, plan)` fans out."""


class Walk(Graph[Plan, int]):
    """Does what it is told, so that any shape of run can be made."""

    @step
    async def leaf(plan: Plan) -> int:  # type: ignore[misc] # noqa: N805
        return len(plan)

    def __init__(self, depth: int = 3) -> None:
        if depth:
            self.inner = Walk(depth - 1)

    async def flow(self, plan: Plan) -> int:
        await self.follow(plan)
        return 0

    async def follow(self, plan: Plan) -> int:
        for what in plan:
            if what == "leaf":
                await self.leaf([])
            elif what[0] == "inner":
                await (self.inner(what[1]) if hasattr(self, "inner") else self.leaf([]))
            else:
                labels, inside = what
                await fan_out(lambda _, inside=inside: self.follow(inside), labels, key=lambda label: label)
        return 0


labels = st.lists(st.text(min_size=0, max_size=6) | st.sampled_from(["a", "0", "[x]", "#1", "a.b", "]", "\n", "1", "é"]), max_size=3, unique=True)  # fmt: skip
plans = st.recursive(
    st.just(["leaf"]),
    lambda inner: st.lists(
        st.just("leaf") | st.tuples(st.just("inner"), inner) | st.tuples(labels, inner), min_size=1, max_size=3
    ),
    max_leaves=5,
)


def path_of(key: str) -> str:
    """A key with its brackets and `#n` removed."""
    return re.sub(r"\[[^\[\]]*\]|#\d+", "", key)


@given(plans)
def test_a_key_without_brackets_and_numbers_is_the_path(plan: Plan) -> None:
    """Whatever a run looks like and however items are named: keys are unique, and say where the node is declared."""
    run = asyncio.run(Runner().run(Walk(), plan))
    calls = list(run.root.walk())
    assert len({call.key for call in calls}) == len(calls)
    assert all(path_of(call.key) == call.path for call in calls)
    assert all(run.call(call.key) is call for call in calls)
    for call in calls:
        for child in call.children:
            assert child.key.startswith(f"{call.key}." if call.key else "")


@given(plans)
def test_the_same_run_has_the_same_keys(plan: Plan) -> None:
    """A key is a place, not an accident: running again gives the same ones."""
    first, second = (asyncio.run(Runner().run(Walk(), plan)) for _ in range(2))
    assert [call.key for call in first.calls()] == [call.key for call in second.calls()]


@given(st.permutations(["code", "code#1", "code#2", "code#10", "build[1].code", "build[2].code", "build[2].code#1",
                        "build[10].code", "build[10].tests", "build[a].code", "build[b].code", ""]))  # fmt: skip
def test_keys_sort_as_people_count(keys: list[str]) -> None:
    """`build[2]` stands before `build[10]`, and `code` before `code#1`."""
    assert sorted(keys, key=key_order) == [
        "",
        "build[1].code",
        "build[2].code",
        "build[2].code#1",
        "build[10].code",
        "build[10].tests",
        "build[a].code",
        "build[b].code",
        "code",
        "code#1",
        "code#2",
        "code#10",
    ]


@given(st.lists(st.text(max_size=8)), st.lists(st.integers(0, 10**30)))
def test_any_keys_can_be_sorted(labels: list[str], numbers: list[int]) -> None:
    """Sorting never fails, whatever digits and letters a label has, and goes by the numbers in the keys."""
    keys = [f"a[{number}].b" for number in numbers]
    ordered = sorted([*labels, *keys], key=key_order)
    assert [key for key in ordered if key in keys] == [f"a[{number}].b" for number in sorted(numbers)]


class Many(Graph[int, list[str]]):
    say = Stage(str, Agent(instructions="Say it."))

    async def flow(self, size: int) -> list[str]:
        return await fan_out(self.say, [str(number) for number in range(size)])


async def test_calls_come_in_the_order_of_their_keys() -> None:
    """Not in the order in which they happened to end."""
    async with Runner(echo()) as runner:
        run = await runner.run(Many(), 12)
    assert [call.output for call in run.calls(Many.say)] == [str(number) for number in range(12)]
    assert [call.key for call in run.calls()] == [f"say[{number}]" for number in range(12)]


async def test_a_call_says_all_that_happened() -> None:
    """Path, key, kind, input, output, start, duration, usage, cost, attempts, messages, children."""
    model, _ = priced("0.25", tokens=7)
    async with Runner(model) as runner:
        run = await runner.run(Many(), 2)
    root, call = run.root, run.call("say[1]")
    assert (call.path, call.key, call.kind, call.status, call.ok) == ("say", "say[1]", "stage", "succeeded", True)
    assert (call.input, call.output, call.error, call.attempts, call.replayed) == ("1", "paid", None, 1, False)
    assert (call.usage.requests, call.usage.input_tokens, call.cost) == (1, 7, Decimal("0.25"))
    assert [type(message).__name__ for message in call.messages] == ["ModelRequest", "ModelResponse"]
    assert call.started.tzinfo is UTC
    assert root.started <= call.started <= root.started + timedelta(seconds=root.duration)
    assert 0 <= call.duration <= root.duration
    assert call.children == ()
    assert root.children == tuple(run.calls())
    assert (root.path, root.key, root.kind, root.messages) == ("", "", "graph", ())
    assert (root.usage.requests, root.usage.input_tokens, root.cost) == (2, 14, Decimal("0.50"))
    assert (run.usage, run.cost, run.input, run.output) == (root.usage, root.cost, 2, ["paid", "paid"])


async def test_a_failed_call_has_an_error_and_no_output() -> None:
    """The error is data: the exception's class and text."""

    @step
    async def fail(number: int) -> int:
        msg = f"no {number}"
        raise LookupError(msg)

    async with Runner() as runner:
        with pytest.raises(RunError) as caught:
            await runner.run(fail, 3)
    (call,) = caught.value.failures
    assert (call.ok, call.output, call.status, call.input) == (False, None, "failed", 3)
    assert call.error is not None
    assert (call.error.type, call.error.message, str(call.error)) == ("LookupError", "no 3", "LookupError: no 3")


class Loop(Graph[str, str]):
    say = Stage(str, Agent())

    async def flow(self, text: str) -> str:
        outcomes = await settle(self.say, [text, "free", text])
        return " ".join(outcome.value for outcome in outcomes)


def charges(prices: dict[str, str | None]) -> FunctionModel:
    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        price = prices[messages[0].parts[0].content]  # type: ignore[union-attr, index]
        usage = RequestUsage(input_tokens=1, cost=None if price is None else Decimal(price))
        return ModelResponse([TextPart("x")], usage=usage)

    return FunctionModel(answer)


@pytest.mark.parametrize(
    ("prices", "expected"),
    [
        ({"a": "0.1", "free": "0.2"}, Decimal("0.4")),
        ({"a": "0.000001", "free": "0"}, Decimal("0.000002")),
        ({"a": "0.1", "free": None}, None),
        ({"a": None, "free": None}, None),
    ],
    ids=str,
)
async def test_cost_is_a_sum_or_unknown(prices: dict[str, str | None], expected: Decimal | None) -> None:
    """Exact decimals are added up; one request whose price is not known makes the sum unknown, not smaller."""
    async with Runner(charges(prices)) as runner:
        run = await runner.run(Loop(), "a")
    assert run.cost == expected
    assert [call.cost for call in run.calls()] == [None if p is None else Decimal(p) for p in (prices["a"], prices["free"], prices["a"])]  # fmt: skip
    assert run.usage.requests == 3
    assert type(run.cost) is type(expected)


async def test_what_asks_no_model_costs_nothing() -> None:
    """A step's cost is known: it is zero."""
    async with Runner() as runner:
        run = await runner.run(Walk(), ["leaf", "leaf"])
    assert (run.cost, run.usage.requests, run.call("leaf").cost) == (Decimal(0), 0, Decimal(0))


async def test_calls_are_frozen() -> None:
    """A record cannot be edited by who reads it."""
    async with Runner(says("x")) as runner:
        run: Run[int, list[str]] = await runner.run(Many(), 1)
    call = run.calls()[0]
    for thing, name in ((call, "output"), (call, "key"), (run, "output"), (run, "status")):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(thing, name, "x")
    with pytest.raises(TypeError):
        run.metadata["x"] = 1  # type: ignore[index]


async def test_notes_belong_to_their_call() -> None:
    """`call.note` knows the key; `note` takes a path or a key."""
    async with Runner(says("x")) as runner:
        run = await runner.run(Many(), 2)
    assert run.call("say[1]").note("too short", weight=2) == Note("say[1]", "too short", 2)
    assert note("say", "be brief") == Note("say", "be brief", 1.0)
    assert run.root.note("all in all") == Note("", "all in all")
