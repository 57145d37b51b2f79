"""Plain async functions as nodes."""

from __future__ import annotations

from functools import partial

import pytest
from pydantic import BaseModel

from stagegraph import (
    DeclarationError,
    Graph,
    NotRunningError,
    RunError,
    Runner,
    Step,
    current_call,
    fan_out,
    settle,
    step,
)


class Code(BaseModel):
    text: str


class Report(BaseModel):
    passed: bool
    key: str


@step
async def run_tests(code: Code) -> Report:
    """Run the tests."""
    return Report(passed=bool(code.text), key=current_call().key)


@step(version=2)
async def versioned(text: str) -> str:
    return text


@step
async def broken(text: str) -> str:
    raise OSError(f"disk full at {text}")


@step
async def liar(text: str) -> int:
    return text


@step
async def with_options(text: str, times: int = 2, **more: str) -> str:
    return text * times


class Twice(Graph[Code, list[Report]]):
    """The same step in two branches."""

    tests = run_tests

    async def flow(self, code: Code) -> list[Report]:
        return await fan_out(self.tests, [code, code])


async def test_a_single_step_can_be_run_by_itself():
    """A runner runs one step like a graph; its call is known by its name."""
    run = await Runner().run(run_tests, Code(text="x"))
    assert run.output == Report(passed=True, key="run_tests")
    assert [(call.key, call.path, call.kind) for call in run.calls()] == [("run_tests", "run_tests", "step")]
    assert run.graph == "run_tests"
    assert (await Runner().run(run_tests, {"text": ""})).output.passed is False  # a dict becomes the input model


async def test_a_step_knows_its_call():
    """`current_call().key` is the place where the step runs, different in each branch."""
    run = await Runner().run(Twice(), Code(text="x"))
    assert [report.key for report in run.output] == ["tests[0]", "tests[1]"]


def test_a_step_is_still_its_function():
    """The function stays available for ordinary unit tests, with its name and docstring."""
    assert run_tests.fn.__name__ == "run_tests"
    assert run_tests.__doc__ == "Run the tests."
    assert isinstance(run_tests, Step)
    assert repr(run_tests) == "<step run_tests>"
    assert (run_tests.version, versioned.version) == (1, 2)


def test_a_step_outside_a_run_says_how_to_run_it():
    """Called where no run is going on, the error names the step and the two ways to call it."""
    with pytest.raises(NotRunningError, match=r"step `run_tests` was called outside a run.*run\(run_tests, value\)"):
        run_tests(Code(text="x"))
    with pytest.raises(NotRunningError, match=r"current_call\(\) was called outside a run"):
        current_call()


async def test_what_a_step_raises_is_named_and_chained():
    """The run's error has the step's key and message; the original exception is the cause."""
    with pytest.raises(RunError, match=r"broken failed at `broken`: OSError: disk full at x") as caught:
        await Runner().run(broken, "x")
    assert isinstance(caught.value.__cause__, OSError)
    assert [(call.key, str(call.error)) for call in caught.value.failures] == [("broken", "OSError: disk full at x")]
    with pytest.raises(RunError, match=r"step liar \(`liar`\) returned .*str.*int"):
        await Runner().run(liar, "x")


async def test_a_step_may_have_options_with_defaults():
    """Only the one value without a default is the input."""
    assert (await Runner().run(with_options, "ab")).output == "abab"


def test_what_can_be_no_step_is_refused():
    """A blocking function, a generator, a method and what has no name: each with what to write."""
    with pytest.raises(DeclarationError, match=r"needs an async function, and `.*blocks` is not one.*to_thread"):

        @step
        def blocks(text: str) -> str:
            return text

    with pytest.raises(DeclarationError, match="needs an async function"):

        @step
        async def many(text: str):
            yield text

    with pytest.raises(DeclarationError, match="a method cannot be a step, write it as a function outside the class"):

        class Has(Graph[str, str]):
            @step
            async def part(self, text: str) -> str:
                return text

    with pytest.raises(
        DeclarationError, match=r"needs a function with a name[\s\S]*write an `async def` that calls it"
    ):
        step(partial(with_options.fn, "mail"))


def two(a: str, b: str) -> None: ...
def none() -> None: ...
def keyword(*, a: str) -> None: ...
def rest(*a: str) -> None: ...


@pytest.mark.parametrize(
    ("like", "shown"), [(two, "(a, b)"), (none, "()"), (keyword, "(a)"), (rest, "(a)")], ids=lambda v: str(v)[:9]
)
def test_a_step_takes_exactly_one_value(like: object, shown: str):
    """Any other signature is refused, with what it takes and what to do."""

    async def fn(*args: object) -> None: ...

    fn.__signature__ = __import__("inspect").signature(like)
    with pytest.raises(DeclarationError) as caught:
        step(fn)
    assert f"must take exactly one value, but takes {shown}" in str(caught.value)
    assert "put several values into one model" in str(caught.value)


@step
async def no_input_type(text) -> str:
    return text


@step
async def no_output_type(text: str):
    return text


@pytest.mark.parametrize(("node", "what"), [(no_input_type, "text"), (no_output_type, "return")])
async def test_a_step_without_types_is_refused(node: Step[object, object], what: str):
    """Steps declare what they take and give; the error names the missing one."""
    with pytest.raises(DeclarationError, match=rf"step `{node.__node__.name}` has no type for `{what}`"):
        await Runner().run(node, "x")


async def test_a_type_that_is_not_known_at_run_time_is_refused():
    """A type that exists only for the checker cannot be checked or stored; the error says what to do."""

    class Local(BaseModel):
        text: str

    @step
    async def uses_local(value: Local) -> str:
        return value.text

    with pytest.raises(DeclarationError, match=r"step `uses_local`.*Local.*define it at module level"):
        await Runner().run(uses_local, Local(text="x"))


@step
async def who_am_i(count: int) -> list[str]:
    async def who(_number: int) -> str:
        return current_call().key

    outcomes = await settle(who, range(count))
    return [f"{outcome.key}: {outcome.value}" for outcome in outcomes]


async def test_what_a_step_fans_out_is_still_the_step():
    """`fan_out` and its kin work inside a step; what runs there belongs to its call; an outcome is named after it."""
    run = await Runner().run(who_am_i, 2)
    assert run.output == ["who_am_i[0]: who_am_i", "who_am_i[1]: who_am_i"]
    assert [call.key for call in run.root.walk()] == ["who_am_i"]


@step
async def calls_a_node(code: Code) -> bool:
    return (await run_tests(code)).passed


async def test_a_step_cannot_call_a_node_and_says_why():
    """Only flows call nodes; a step that tries is told how to write it."""
    with pytest.raises(RunError, match=r"step `calls_a_node` called step `run_tests`.*make it a Graph"):
        await Runner().run(calls_a_node, Code(text="x"))


@step
async def runs_a_graph(code: Code) -> int:
    return len((await Runner().run(Twice(), code)).output)


async def test_a_step_may_run_a_graph_of_its_own():
    """A run inside a step is a run for itself: it has its own record and leaves the outer call as it was."""
    run = await Runner().run(runs_a_graph, Code(text="x"))
    assert run.output == 2
    assert [call.key for call in run.root.walk()] == ["runs_a_graph"]
