"""Tracebacks begin and end in the user's code, and their chain is short."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path

import pytest
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from stagegraph import DeclarationError, Graph, InputError, RunError, Runner, Stage, fan_out, gather, step
from stagegraph.journal import MemoryJournal

HERE = Path(__file__).name


@step
async def shout(text: str) -> str:
    return text.uper()  # type: ignore[attr-defined]


def asking() -> Agent[None, str]:
    agent = Agent(TestModel(), output_type=str, name="ask")

    @agent.tool_plain
    def look() -> str:
        return "".uper()  # type: ignore[attr-defined]

    return agent


class Inner(Graph[str, str]):
    shout = shout
    ask = Stage(str, asking())

    async def flow(self, text: str) -> str:
        (found,) = await gather(self.shout(text) if text == "step" else self.ask(text))
        return found


class Outer(Graph[list[str], list[str]]):
    inner = Inner()

    async def flow(self, texts: list[str]) -> list[str]:
        return await fan_out(self.inner, texts)


def shown(error: BaseException) -> list[str]:
    """The files of all frames that are printed for an error and its causes."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    return [Path(line.split('"')[1]).name for line in lines if line.lstrip(" |").startswith("File ")]


async def awaited(text: str) -> object:
    return await Runner().run(Outer(), [text])


async def resumed(text: str) -> object:
    runner = Runner(journal=MemoryJournal())
    with pytest.raises(RunError):
        await runner.run(Outer(), [text], run_id="a")
    return await runner.resume("a")


async def watched(text: str) -> object:
    return await Runner().start(Outer(), [text]).result()


async def by_itself(text: str) -> object:
    return await Outer().run([text])


@pytest.mark.parametrize("go", [awaited, resumed, watched, by_itself])
@pytest.mark.parametrize(("text", "most"), [("step", 20), ("tool", 26)])
async def test_a_typo_is_shown_with_the_frames_of_the_program(go, text: str, most: int):
    """In a step and in a tool, through every way to run a graph: a few lines, all of the user's files."""
    with pytest.raises(RunError) as caught:
        await go(text)
    assert set(shown(caught.value)) == {HERE}
    frames = traceback.extract_tb(caught.value.__cause__.__traceback__)
    assert frames[0].name == "flow"
    innermost = caught.value.__cause__ if text == "step" else caught.value.__cause__.__cause__
    assert traceback.extract_tb(innermost.__traceback__)[-1].line.startswith(("return text.uper()", 'return "".uper()'))
    own = traceback.format_exception(caught.value.with_traceback(None))
    assert len("".join(own).splitlines()) <= most


def test_run_sync_shows_no_event_loop():
    """A script's traceback has its own line and nothing of asyncio."""
    with pytest.raises(RunError) as caught:
        Outer().run_sync(["step"])
    assert set(shown(caught.value)) == {HERE}


async def test_a_mistake_before_the_run_is_shown_at_the_call():
    """A declaration that cannot work ends in the line that asks for it."""
    with pytest.raises(DeclarationError) as caught:
        await Runner(models={"iner.ask": TestModel()}).run(Outer(), ["a"])
    assert shown(caught.value) == [HERE]


async def test_an_input_that_does_not_fit_is_shown_at_the_call():
    """Neither the validation nor the runner is of interest."""
    with pytest.raises(InputError) as caught:
        await Runner().run(Outer(), 3)
    assert shown(caught.value) == [HERE]


async def test_groups_and_chains_are_shown_alike_and_stay_whole():
    """Members of a group and what they were raised from lose only frames."""

    @step
    async def both(text: str) -> str:
        async with asyncio.TaskGroup() as group:
            for _ in range(2):
                group.create_task(shout.fn(text))
        return text

    class Several(Graph[str, str]):
        several = both

        async def flow(self, text: str) -> str:
            try:
                return await self.several(text)
            except ExceptionGroup as error:
                raise LookupError("no text") from error

    with pytest.raises(RunError) as caught:
        await Runner().run(Several(), "a")
    lookup = caught.value.__cause__
    assert isinstance(lookup, LookupError)
    assert isinstance(lookup.__cause__, ExceptionGroup)
    assert [type(error) for error in lookup.__cause__.exceptions] == [AttributeError] * 2
    assert set(shown(caught.value)) == {HERE}


async def test_where_no_program_is_to_be_seen_the_place_stays():
    """An error that Pydantic AI raises by itself keeps the line that raised it."""
    with pytest.raises(RunError) as caught:
        await Runner(model=TestModel(custom_output_text="x")).run(Stage(str, Agent(output_type=int)), "a")
    assert len(shown(caught.value)) <= 4
    assert any(frame.endswith(".py") and frame != HERE for frame in shown(caught.value))


async def test_all_frames_are_there_when_asked_for(monkeypatch: pytest.MonkeyPatch):
    """`STAGEGRAPH_TRACEBACK=full` hides nothing."""
    monkeypatch.setenv("STAGEGRAPH_TRACEBACK", "full")
    with pytest.raises(RunError) as caught:
        await awaited("tool")
    assert {"runner.py", "calls.py", "tool_manager.py"} <= set(shown(caught.value))
