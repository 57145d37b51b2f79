"""What decides that a recorded output still counts: each part of a call by itself, and nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from counting import Counting, Text, looker
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.test import TestModel

from stagegraph import Demo, Graph, Prompt, Prompts, Runner, Stage, current_call, step
from stagegraph.journal import MemoryJournal


class Wider(BaseModel):
    text: str = ""
    more: int = 0


class Say(Graph[str, Any]):
    say = Stage(str, Agent(instructions="Say."))

    async def flow(self, text: str) -> Any:
        return await self.say(text)


def saying(**options: Any) -> Graph[str, Any]:
    """The same graph with another stage in it."""
    agent = options.pop("agent", None) or Agent(instructions=options.pop("instructions", "Say."))

    class Say(Graph[str, Any]):
        say = Stage(str, agent, **options)

        async def flow(self, text: str) -> Any:
            return await self.say(text)

    return Say()


async def asked_again(before: Graph[Any, Any], after: Graph[Any, Any], **options: Any) -> tuple[int, dict[str, str]]:
    """How many requests a replay makes after a change, and what it says had changed."""
    told: list[str] = []

    class Model(TestModel):
        async def request(self, *args: Any, **kwargs: Any) -> Any:
            told.append("request")
            return await super().request(*args, **kwargs)

    journal = MemoryJournal()
    runner = Runner(Model(call_tools=[]), journal=journal)
    first = await runner.run(before, "x")
    told.clear()
    run = await runner.run(after, "x", replay=first, **options)
    return len(told), dict(run.rerun)


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"instructions": "Shout."}, "the prompt"),
        ({"version": 2}, "the version"),
        ({"version": "2026-01"}, "the version"),
        ({"model_settings": {"temperature": 0.1}}, "the model"),
        ({"agent": Agent(output_type=Text, instructions="Say.")}, "the output type"),
        ({"agent": Agent(instructions="Say.", tools=[looker.toolsets[0].tools["look"]])}, "the tools"),  # type: ignore[attr-defined]
    ],
)
async def test_each_part_of_a_stage_counts(change: dict[str, Any], part: str) -> None:
    """One part changed: the call is made again, and the run says which part it was."""
    assert await asked_again(saying(), saying(**change)) == (1, {"say": part})


async def test_what_a_renderer_makes_of_an_input_counts() -> None:
    """The model sees that, text and media; another function that makes the same is no change."""

    def image(data: bytes) -> Any:
        return saying(render=lambda text: [text, BinaryContent(data, media_type="image/png")])

    quoted = saying(render="«{}»".format)
    assert await asked_again(quoted, saying(render=lambda text: f"«{text}»")) == (0, {})
    assert await asked_again(quoted, saying(render=str.upper)) == (1, {"say": "its content"})
    assert await asked_again(image(b"1"), image(b"1")) == (0, {})
    assert await asked_again(image(b"1"), image(b"2")) == (1, {"say": "its content"})


@pytest.mark.parametrize(
    "options",
    [
        {"deps": object()},
        {"tags": ("a",), "metadata": {"b": 1}},
        {"prompts": Prompts()},
        {"prompts": Prompts({"say": Prompt("Say.")})},
        {"prompts": Prompts({"say": Prompt(" Say.\n")})},
        {"prompts": Prompts({"say": Prompt()})},
    ],
)
async def test_what_is_no_part_of_a_call_does_not_count(options: dict[str, Any]) -> None:
    """Deps, labels, and prompts that say what the code says anyway change nothing."""
    assert await asked_again(saying(), saying(), **options) == (0, {})


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({"extra_headers": {"authorization": "sk-1"}}, {"extra_headers": {"authorization": "sk-2"}}),
        ({"timeout": 3.0, "temperature": 0.5}, {"temperature": 0.5, "timeout": 3.0}),
    ],
)
async def test_a_new_secret_or_another_order_is_no_change(before: dict[str, Any], after: dict[str, Any]) -> None:
    """A rotated key does not ask everything again, nor do the same settings written in another order."""
    assert await asked_again(saying(model_settings=before), saying(model_settings=after)) == (0, {})


async def test_the_text_of_a_field_counts_and_the_codes_own_does_not() -> None:
    """What is said about tools and fields, and demos, counts as far as it is something else than what the code says."""
    agent = Agent(instructions="Say.", output_type=Text, tools=[looker.toolsets[0].tools["look"]])  # type: ignore[attr-defined]
    graph = saying(agent=agent)
    stage = graph.say  # type: ignore[attr-defined]
    own = Prompt(tools={"look": stage.tools[0]["look"].text}, fields={"text": stage.fields["text"].text})
    assert await asked_again(graph, graph, prompts=Prompts({"say": own})) == (0, {})
    for told in (
        Prompt(fields={"text": "One word."}),
        Prompt(tools={"look": "Look hard."}),
        Prompt(demos=(Demo("a", {"text": "b"}),)),
    ):
        assert await asked_again(graph, graph, prompts=Prompts({"say": told})) == (1, {"say": "the prompt"})


async def test_another_field_in_the_output_type_counts_also_for_steps() -> None:
    """A step whose output type gained a field runs again."""

    def graph(output: type[BaseModel], version: int = 1) -> Graph[str, Any]:
        async def produce(text: str) -> Any:
            return output()

        produce.__annotations__ = {"text": str, "return": output}

        class Make(Graph[str, Any]):
            make = step(version=version)(produce)

            async def flow(self, text: str) -> Any:
                return await self.make(text)

        return Make()

    class Small(BaseModel):
        text: str = ""

    Small.__name__ = Small.__qualname__ = "Wider"
    assert await asked_again(graph(Small), graph(Wider)) == (0, {"make": "the output type"})
    assert await asked_again(graph(Wider), graph(Wider, version=2)) == (0, {"make": "the version"})


SETS = """
import asyncio, sys
from stagegraph import Graph, Runner, step
from stagegraph.journal import SqliteJournal

class Words(Graph[str, int]):
    @step
    async def count(words: set[str]) -> int:
        print("counted", flush=True)
        return len(words)

    async def flow(self, text: str) -> int:
        return await self.count(set(text.split()))

async def main():
    journal = SqliteJournal(sys.argv[1])
    runner = Runner(journal=journal)
    if sys.argv[2] == "run":
        await runner.run(Words(), "the quick brown fox jumps over a lazy dog", run_id="r")
    else:
        await runner.run(Words(), "the quick brown fox jumps over a lazy dog", replay="r")
    await journal.aclose()

asyncio.run(main())
"""


async def test_a_set_is_the_same_in_another_process(tmp_path: Any) -> None:
    """A set comes in another order in every process; it is the same input all the same."""
    said = []
    for seed, what in enumerate(("run", "replay", "replay")):
        command = [sys.executable, "-W", "error::ResourceWarning", "-c", SETS, str(tmp_path / "runs.db"), what]
        environment = {**os.environ, "PYTHONHASHSEED": str(seed)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
        assert done.returncode == 0, done.stderr
        said.append(done.stdout)
    assert said == ["counted\n", "", ""]


async def test_places_do_not_share_records() -> None:
    """The same input at two stages of the same text is two questions: where a stage is declared counts."""

    class Twice(Graph[str, str]):
        one = Stage(str, Agent(instructions="Say."))
        two = Stage(str, Agent(instructions="Say."))

        async def flow(self, text: str) -> str:
            return await self.one(text) + await self.two(text)

    class Other(Twice):
        async def flow(self, text: str) -> str:
            return await self.two(text)

    counting = Counting()
    runner = Runner(counting.model, journal=MemoryJournal())
    first = await runner.run(Twice(), "x")
    assert counting.take() == ["x", "x"]
    await runner.run(Other(), "x", replay=first)
    assert counting.take() == []


async def test_the_key_of_a_call_is_the_same_when_it_runs_again() -> None:
    """What a step uses as idempotency key stays, run for run and resume for resume."""
    keys: list[tuple[str, str]] = []

    class Keyed(Graph[str, str]):
        @step
        async def act(text: str) -> str:  # type: ignore[misc]  # noqa: N805
            keys.append((current_call().run_id, current_call().key))
            if len(keys) == 1:
                raise ConnectionError
            return text

        async def flow(self, text: str) -> str:
            return await self.act(text)

    runner = Runner(journal=MemoryJournal())
    with pytest.raises(Exception, match="ConnectionError"):
        await runner.run(Keyed(), "x", run_id="r")
    await runner.resume("r")
    assert keys == [("r", "act"), ("r", "act")]
