"""A graph with a fan-out and scripted models, small enough to say exactly what an optimizer should find."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from inspect import isawaitable
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from stagegraph import Example, Graph, Run, RunError, Score, Stage, fan_out

__all__ = [
    "ROWS", "Doc", "Plan", "Rate", "Rated", "Rating", "Upper", "Words", "asked", "before", "failing_run", "grade", "rated", "says",
    "scripted", "shaky", "told",
]  # fmt: skip


class Doc(BaseModel):
    text: str


class Plan(BaseModel):
    words: list[str]


class Rating(BaseModel):
    word: str
    score: int


class Rated(BaseModel):
    total: int
    ratings: list[Rating]


class Rate(Graph[str, Rating]):
    """One word, rated."""

    judge = Stage(str, Agent(output_type=Rating, instructions="Rate the word."))

    async def flow(self, word: str) -> Rating:
        return await self.judge(word)


class Words(Graph[Doc, Rated]):
    """A text -> its words -> a rating for each."""

    plan = Stage(Doc, Agent(output_type=Plan, instructions="List the words."))
    rate = Rate()

    async def flow(self, doc: Doc) -> Rated:
        plan = await self.plan(doc)
        ratings = await fan_out(self.rate, plan.words)
        return Rated(total=sum(rating.score for rating in ratings), ratings=ratings)


class Upper(Graph[str, str]):
    """One stage, from text to text."""

    upper = Stage(str, Agent(instructions="Shout."))

    async def flow(self, text: str) -> str:
        return await self.upper(text)


def asked(messages: list[ModelMessage]) -> str:
    parts = [part for message in messages if isinstance(message, ModelRequest) for part in message.parts]
    found = [part.content for part in parts if isinstance(part, UserPromptPart)][-1]
    assert isinstance(found, str)
    return found


def told(info: AgentInfo) -> str:
    """The instructions that a stage was run with."""
    return info.instructions or ""


def scripted(seen: Callable[[str, str], None] | None = None) -> FunctionModel:
    """Plans the words of a text, and rates a word by its length: doubled only when it is told to DOUBLE."""

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        text, instructions = asked(messages), told(info)
        if seen is not None:
            seen(text, instructions)
        tool = info.output_tools[0]
        if "words" in tool.parameters_json_schema["properties"]:
            words = text.split("<text>")[1].split("</text>")[0].split()
            fields: dict[str, object] = {"words": words}
        else:
            fields = {"word": text, "score": len(text) * (2 if "DOUBLE" in instructions else 1)}
        usage = RequestUsage(input_tokens=10, output_tokens=2)
        return ModelResponse([ToolCallPart(tool.name, fields)], usage=usage, model_name="scripted")

    return FunctionModel(answer, model_name="scripted")


def rated(text: str) -> Run[Doc, Rated]:
    """A run of `Words` with that model."""
    return Words().run_sync(Doc(text=text), model=scripted())


def before(
    model: FunctionModel, act: Callable[[list[ModelMessage], AgentInfo], Any], name: str | None = None
) -> FunctionModel:
    """The model, asked after *act* was called; what *act* gives, if anything, is the answer instead."""

    async def answer(messages: list[ModelMessage], info: AgentInfo) -> Any:
        for function in (act, model.function):
            assert function is not None
            found = function(messages, info)
            if (found := await found if isawaitable(found) else found) is not None:
                return found
        raise AssertionError

    return FunctionModel(answer, model_name=name or model.model_name)


def shaky(
    model: FunctionModel, error: Exception, when: Callable[[int], bool] = lambda _: True
) -> tuple[FunctionModel, Counter[str]]:
    """The model behind a provider that raises an error at some requests, by their number; it counts all of them."""
    count: Counter[str] = Counter()

    def act(_messages: list[ModelMessage], _info: AgentInfo) -> None:
        count["all"] += 1
        if when(count["all"]):
            raise error

    return before(model, act), count


def failing_run() -> Run[Doc, Rated]:
    """A run of two words, of which the second one cannot be rated."""

    def act(messages: list[ModelMessage], _info: AgentInfo) -> None:
        if asked(messages) == "bc":
            raise ValueError("no idea")

    try:
        return Words().run_sync(Doc(text="a bc"), model=before(scripted(), act))
    except RunError as error:
        return error.run


ROWS = [
    Example(Doc(text=text), {"total": 2 * len(text.replace(" ", ""))}) for text in ("a bc", "def gh", "i jkl m", "no")
]
"""What is expected is double of what the stage gives as it is written."""


def grade(example: Example[Doc], run: Run[Doc, Rated]) -> Score:
    """Each word counts twice."""
    calls = run.calls(Rate.judge)
    notes = [
        call.note(f"{call.input}: expected {2 * len(call.input)}; write DOUBLE")
        for call in calls
        if call.output.score != 2 * len(call.input)
    ]
    return Score(1 - len(notes) / len(calls), notes=notes)


def says(*texts: str) -> FunctionModel:
    """A model that gives these answers in turn, then the last one for ever."""
    rest = list(texts)

    def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(rest.pop(0) if len(rest) > 1 else rest[0])])

    return FunctionModel(answer)
