"""What a user reads when something goes wrong, and the record that goes with it."""

from __future__ import annotations

import asyncio
import copy
import gc
import pickle
from collections.abc import Callable

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

import stagegraph
from scripted import Turnstile, fails, others
from stagegraph import (
    Graph,
    InputError,
    LimitError,
    ReplayError,
    RunError,
    Runner,
    Stage,
    StageError,
    StagegraphError,
    Step,
    fan_out,
    gather,
    settle,
    step,
)


@step
async def check(number: int) -> int:
    await anyio.lowlevel.checkpoint()
    if number < 0:
        raise ValueError(f"{number} is negative")
    return number


@step
async def silent(number: int) -> int:
    raise ValueError


class Sum(Graph[list[int], int]):
    """Checks numbers and adds them up."""

    check = check

    async def flow(self, numbers: list[int]) -> int:
        return sum(await fan_out(self.check, numbers))


class Sums(Graph[list[list[int]], list[int]]):
    """Several sums."""

    add = Sum()

    async def flow(self, rows: list[list[int]]) -> list[int]:
        return await fan_out(self.add, rows)


def test_every_error_is_a_stagegraph_error():
    """One `except` sees them all, and the outer door's errors are `RunError`s."""
    names = [name for name in stagegraph.__all__ if name.endswith("Error") and name != "CallError"]
    assert len(names) == 13
    for name in names:
        assert issubclass(getattr(stagegraph, name), StagegraphError)
    for kind in (InputError, LimitError, ReplayError):
        assert issubclass(kind, RunError)


async def test_an_error_deep_inside_is_named_by_its_key():
    """The message says which run, which call, and what was raised; the record has everything that finished."""
    with pytest.raises(RunError) as caught:
        await Runner().run(Sums(), [[1], [2, -3]], metadata={"k": 1})
    assert str(caught.value) == "Sums failed at `add[1].check[1]`: ValueError: -3 is negative"
    assert isinstance(caught.value.__cause__, ValueError)
    assert [call.key for call in caught.value.failures] == ["add[1].check[1]"]
    run = caught.value.run
    assert (run.status, run.output, dict(run.metadata)) == ("failed", None, {"k": 1})
    assert (run.error.type, run.error.message) == ("RunError", str(caught.value))
    assert run.call("add[0].check[0]").output == 1
    assert {run.call(key).status for key in ("", "add[1]", "add[1].check[1]")} == {"failed"}


async def test_all_failures_are_listed():
    """`failures` has every call that failed by itself, in key order, and the message counts the rest."""

    class All(Graph[list[int], int]):
        check = check

        async def flow(self, numbers: list[int]) -> int:
            outcomes = await settle(self.check, numbers)
            bad = [outcome for outcome in outcomes if not outcome.ok]
            return sum(outcome.value for outcome in bad)

    with pytest.raises(RunError) as caught:
        await Runner().run(All(), [1, *range(-12, 0)])
    assert [call.key for call in caught.value.failures] == [f"check[{number}]" for number in range(1, 13)]
    assert str(caught.value).startswith("All failed at `check[1]`: ValueError: -12 is negative")
    assert "(and 11 more failed calls, see `error.failures`)" in str(caught.value)


async def test_the_message_is_about_the_error_that_ended_the_run():
    """A failure that the flow caught is listed, but neither named as the place nor as the cause."""

    class Careful(Graph[int, int]):
        check = check

        async def flow(self, number: int) -> int:
            try:
                await self.check(-1)
            except ValueError:
                raise LookupError("no rows") from None
            return number

    with pytest.raises(RunError) as caught:
        await Runner().run(Careful(), 1)
    assert str(caught.value).startswith("Careful failed: LookupError: no rows")
    assert isinstance(caught.value.__cause__, LookupError)
    assert [call.key for call in caught.value.failures] == ["", "check"]


async def test_errors_without_a_text_are_named_by_their_type():
    """An empty message is no reason for an empty error, nor to blame the wrong call."""

    class Careful(Graph[int, int]):
        silent = silent

        async def flow(self, number: int) -> int:
            if number == 0:
                return await self.silent(number)
            outcomes = await settle(self.silent, [number])
            raise KeyError(len(outcomes))

    with pytest.raises(RunError, match=r"Careful failed at `silent`: ValueError$") as caught:
        await Runner().run(Careful(), 0)
    assert [call.key for call in caught.value.failures] == ["silent"]
    with pytest.raises(RunError, match=r"Careful failed: KeyError: 1") as caught:
        await Runner().run(Careful(), 1)
    assert [call.key for call in caught.value.failures] == ["", "silent[0]"]


async def test_an_error_that_the_flow_raises_about_a_call_keeps_its_place():
    """`raise MyError(f"... {error}") from error` still reads with the call's key."""

    class Tells(Graph[int, int]):
        check = check

        async def flow(self, number: int) -> int:
            try:
                return await self.check(number)
            except ValueError as error:
                raise LookupError(f"cannot add: {error}") from error

    with pytest.raises(RunError, match=r"Tells failed at `check`: LookupError: cannot add: -1 is negative"):
        await Runner().run(Tells(), -1)


async def test_groups_are_flattened_however_deep():
    """A group of groups with one error in it is that error."""

    class Groups(Graph[int, int]):
        async def flow(self, number: int) -> int:
            inner = ExceptionGroup("inner", [LookupError("deep")])
            raise ExceptionGroup("outer", [inner])

    with pytest.raises(RunError, match=r"^Groups failed: LookupError: deep$") as caught:
        await Runner().run(Groups(), 1)
    assert isinstance(caught.value.__cause__, LookupError)


async def test_system_errors_in_a_flow_are_the_runs_error():
    """Programming mistakes in a flow (`TypeError`, `AttributeError`, recursion) are wrapped and chained like others."""

    class Buggy(Graph[str, str]):
        async def flow(self, text: str) -> str:
            if text == "recursion":
                return await self.flow(text)
            return getattr(self, text) + 1

    gc.collect()  # what earlier tests left cannot say anything at the end of the stack
    for text, kind in (("nothing", AttributeError), ("__doc__", TypeError), ("recursion", RecursionError)):
        with pytest.raises(RunError, match=rf"Buggy failed: {kind.__name__}") as caught:
            await Runner().run(Buggy(), text)
        assert isinstance(caught.value.__cause__, kind)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupt_stays_an_interrupt(error: type[BaseException]):
    """Ctrl-C and exit are not turned into a run's error."""

    class Stops(Graph[int, int]):
        async def flow(self, number: int) -> int:
            raise error

    with pytest.raises(error):
        Stops().run_sync(1)


async def test_a_run_inside_a_run_is_named_by_both():
    """A step that runs another graph fails with the inner run's text at its own key; the inner error keeps its record."""

    @step
    async def inner(number: int) -> int:
        return (await Runner().run(Sum(), [number])).output

    class Outer(Graph[int, int]):
        inner_step = inner

        async def flow(self, number: int) -> int:
            return await self.inner_step(number)

    with pytest.raises(RunError) as caught:
        await Runner().run(Outer(), -1)
    assert str(caught.value) == "Outer failed at `inner_step`: Sum failed at `check[0]`: ValueError: -1 is negative"
    assert caught.value.run.graph == "Outer"
    assert isinstance(caught.value.__cause__, RunError)
    assert caught.value.__cause__.run.graph == "Sum"


async def test_cancellation_in_the_middle_of_a_fan_out_keeps_what_finished():
    """Siblings end, nothing leaks, and finished calls are found from the `CancelledError`."""
    gate = Turnstile()

    class Mixed(Graph[int, object]):
        check = check
        write = Stage(str, Agent(gate.model, output_type=str))

        async def flow(self, number: int) -> object:
            await fan_out(self.check, range(number))
            return await gather(fan_out(self.write, ["a", "b"]), settle(self.write, ["c"]))

    before = others()
    task = asyncio.create_task(Runner().run(Mixed(), 3))
    with anyio.fail_after(30):
        await gate.crowd(3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
    partial = RunError.from_cancellation(caught.value)
    assert partial is not None
    statuses = {call.key: call.status for call in partial.run.calls()}
    assert statuses == {
        **{f"check[{n}]": "succeeded" for n in range(3)},
        "write[0][0]": "cancelled",
        "write[0][1]": "cancelled",
        "write[1][0]": "cancelled",
    }
    assert str(partial) == "the run was cancelled"
    assert partial.failures == []
    assert others() <= before
    assert gate.inside == []


async def test_an_error_that_belongs_to_no_run_has_no_record():
    """`run` of an error that was made outside a run is an `AttributeError` with the reason, `failures` is empty."""
    error = RunError("x")
    assert not error.attached
    assert error.failures == []
    with pytest.raises(AttributeError, match="outside a run"):
        _ = error.run


async def test_the_error_of_one_run_does_not_show_in_another():
    """Failures of one run leave runner and graph as they were."""
    runner, graph = Runner(), Sum()
    with pytest.raises(RunError):
        await runner.run(graph, [-1])
    assert (await runner.run(graph, [1, 2])).output == 3


def test_errors_survive_a_process_boundary():
    """Errors can be pickled, as process pools and queues do, however often; they say that the record stayed there."""
    error = pickle.loads(pickle.dumps(StageError("broken", key="a[0]", path="a")))  # noqa: S301
    assert (str(error), error.key, error.path) == ("broken", "a[0]", "a")
    with pytest.raises(RunError) as caught:
        Sum().run_sync([-1])
    for again in (once := pickle.loads(pickle.dumps(caught.value)), pickle.loads(pickle.dumps(once))):  # noqa: S301
        assert (type(again), str(again), again.attached) == (RunError, str(caught.value), False)
        said = r"its record stayed in the process that ran it: send `error\.run\.to_json"
        with pytest.raises(AttributeError, match=said):
            _ = again.run
    with pytest.raises(AttributeError, match="outside a run"):
        _ = pickle.loads(pickle.dumps(RunError("x"))).run  # noqa: S301
    slow = LimitError("slow")
    slow.timed_out = True
    assert pickle.loads(pickle.dumps(slow)).timed_out  # noqa: S301


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy])
def test_a_copied_error_keeps_its_record(duplicate: Callable[[RunError], RunError]):
    """In one process the record is as much the copy's as the original's; so are the cause and the notes."""
    with pytest.raises(RunError) as caught:
        Sum().run_sync([-1])
    caught.value.add_note("seen")
    again = duplicate(caught.value)
    assert (type(again), str(again), again.run) == (RunError, str(caught.value), caught.value.run)
    assert again.__cause__ is caught.value.__cause__
    assert again.__notes__ == ["seen"]


def refusing(*errors: BaseException) -> Step[str, str]:
    @step
    async def ship(text: str) -> str:
        if all(isinstance(error, Exception) for error in errors):
            raise ExceptionGroup("several", [ExceptionGroup("inner", [error]) for error in errors])
        raise BaseExceptionGroup("several", errors)

    return ship


@pytest.mark.parametrize(
    ("errors", "told"),
    [
        ([ValueError("a"), KeyError("b")], "at `ship`: ValueError: a; KeyError: 'b'"),
        ([ValueError("a")], "at `ship`: ValueError: a"),
        (
            [ValueError(str(number)) for number in range(9)],
            "at `ship`: ValueError: 0; ValueError: 1; ValueError: 2; and 6",
        ),
        ([asyncio.CancelledError(), ValueError("a")], "step `ship` failed: it awaited something that was cancelled"),
    ],
)
async def test_a_group_out_of_a_step_names_the_step(errors: list[BaseException], told: str):
    """Whatever is in it; a cancellation in it that is none of the run's is a failure as well."""

    class Ships(Graph[str, str]):
        ship = refusing(*errors)

        async def flow(self, text: str) -> str:
            return await self.ship(text)

    with pytest.raises(RunError) as caught:
        await Runner().run(Ships(), "x")
    assert told in str(caught.value)
    assert [call.key for call in caught.value.failures] == ["ship"]


async def test_each_error_of_a_group_is_told_with_its_place():
    """A flow that raises what several calls raised, and something of its own."""

    class Both(Graph[int, int]):
        check = check

        async def flow(self, number: int) -> int:
            outcomes = await settle(self.check, [-1, -2])
            raise ExceptionGroup("both", [LookupError("own"), *[outcome.error for outcome in outcomes]])

    with pytest.raises(RunError) as caught:
        await Runner().run(Both(), 1)
    told = "LookupError: own; at `check[0]`: ValueError: -1 is negative; at `check[1]`: ValueError: -2 is negative"
    assert str(caught.value) == f"Both failed: {told}"


@pytest.mark.parametrize("text", ["x" * 1_000_000, "line\n" * 100_000, "word " * 50_000])
@pytest.mark.parametrize("kind", ["step", "stage", "tool", "input", "many"])
async def test_an_error_fits_a_screen(text: str, kind: str):
    """However long the error of a step, a model, a tool or a value is, its text has its place, its type and its end."""

    @step
    async def post(given: str) -> str:
        raise (KeyError(text) if kind == "step" else ExceptionGroup("g", [ValueError(text)] * 500))

    agent = Agent(fails(ValueError(text)) if kind == "stage" else TestModel(), output_type=str, name="ask")
    agent.tool_plain(lambda: [][text], name="look")

    class Long(Graph[str, int if kind == "input" else str]):
        ship = post
        ask = Stage(str, agent)

        async def flow(self, given: str) -> object:
            return given if kind == "input" else await (self.ask if kind in {"stage", "tool"} else self.ship)(given)

    with pytest.raises(RunError) as caught:
        await Runner().run(Long(), text if kind == "input" else "x")
    for shown in (
        str(caught.value),
        repr(caught.value),
        str(caught.value.__cause__) if kind in {"stage", "tool"} else "",
    ):
        assert len(shown) <= 1_600
        assert shown.count("\n") <= 20
    assert str(caught.value).startswith("Long failed")
    assert all(len(repr(call)) < 500 for call in caught.value.failures)
