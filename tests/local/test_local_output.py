"""The embedded model's typed output: of the declared type, whatever the type, and within its budget of tokens."""

from __future__ import annotations

import asyncio
import enum
from contextlib import aclosing
from datetime import date, datetime, timedelta
from decimal import Decimal
from typing import Any, Literal, cast
from uuid import UUID

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelRetry, PromptedOutput, StructuredDict
from pydantic_ai.exceptions import ModelContextWindowExceededError, OutputTokenLimitExceeded, UserError

from stagegraph.local import LocalModel

SHORT = 160
"""Tokens that are enough for the longest sentence of the shortest grammar of all types here but `Limits`."""


class Color(enum.Enum):
    RED = "red"
    GREEN = 'gr"ün'
    NUMBER = 3


class Money(BaseModel):
    amount: Decimal
    currency: Literal["EUR", "USD"]


class Section(BaseModel):
    title: str = Field(max_length=60)
    body: str
    steps: list[str]


class Plan(BaseModel):
    summary: str
    sections: list[Section]
    code: str


class Tree(BaseModel):
    name: str
    children: list[Tree] = []


class Knot(BaseModel):
    name: str = Field(max_length=8)
    left: Knot = cast("Knot", None)
    right: Knot = cast("Knot", None)


class Chain(BaseModel):
    value: int
    next: Chain | None


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


class Dog(BaseModel):
    kind: Literal["dog"]
    name: str


class Pets(BaseModel):
    first: Cat | Dog = Field(discriminator="kind")
    others: list[Cat | Dog]
    color: Color
    nickname: str | None
    owner: dict[str, str]


class Dates(BaseModel):
    day: date
    moment: datetime
    lasting: timedelta
    key: UUID
    pair: tuple[int, bool]
    anything: Any


class Limits(BaseModel):
    short: str = Field(min_length=2, max_length=5)
    long: str = Field(min_length=30, max_length=400)
    patterned: str = Field(pattern="^[a-z]{2,8}-[0-9]{2}$")
    share: float = Field(ge=0, le=1)
    between: float = Field(gt=-1.5, lt=2)
    price: float = Field(gt=0)
    below: float = Field(le=-3)
    halves: float = Field(multiple_of=0.5)
    few: int = Field(ge=3, lt=17)
    fives: int = Field(multiple_of=5)
    unique: set[int]
    two: list[int] = Field(min_length=2, max_length=2)
    named: dict[Literal["p", "q"], int]


class Endless(BaseModel):
    inner: Endless


def test_endless_type_is_refused() -> None:
    """A type that contains itself without an end is refused, since no finite JSON has it."""
    with pytest.raises(UserError, match="no finite JSON has the output type: it refers to itself without"):
        asyncio.run(Agent(LocalModel(), output_type=Endless).run("Hello"))


def test_combined_schemas_are_refused() -> None:
    """A schema that asks for several at once is refused rather than half obeyed."""
    schema = {"type": "object", "properties": {"a": {"allOf": [{"type": "string"}, {"minLength": 3}]}}}
    with pytest.raises(UserError, match="allOf"):
        asyncio.run(Agent(LocalModel(), output_type=StructuredDict(schema)).run("Hello"))


@pytest.mark.anyio
@pytest.mark.parametrize("form", [False, {"anyOf": [False]}, {"type": "array", "prefixItems": [False]}], ids=str)
async def test_impossible_schemas(form: Any) -> None:
    """A schema that nothing fits is refused."""
    schema = {"type": "object", "properties": {"a": form}, "required": ["a"]}
    with pytest.raises(UserError, match="no finite JSON"):
        await Agent(LocalModel(), output_type=StructuredDict(schema)).run("Hello")


@pytest.mark.local
@pytest.mark.parametrize(
    "output_type",
    [
        Plan,
        Tree,
        Knot,
        Chain,
        Pets,
        Dates,
        Limits,
        Money,
        list[str],
        dict[str, list[int]],
        Color,
        bool | None,
        [Cat, Dog],
        PromptedOutput(Cat),
    ],
    ids=str,
)
@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_typed_output(output_type: Any, temperature: float) -> None:
    """The first answer already has the declared type and length, whatever the type and however wild the sampling."""
    settings = {"temperature": temperature, "seed": 7}
    most = 512
    if output_type is not Limits:  # which is long, so that the default of `max_tokens` is tried as well
        settings["max_tokens"] = most = SHORT
    agent = Agent(LocalModel(), output_type=output_type, retries=0, model_settings=settings)
    result = asyncio.run(agent.run('Plan a birthday party for a cat. 🎂 Answer with numbers, "quotes" and code.'))
    assert result.response.finish_reason == "stop"
    assert result.usage.output_tokens <= most
    assert result.usage.requests == 1


@pytest.mark.local
def test_required_lists_are_not_empty() -> None:
    """A list without a default gets an item, so that what follows in a graph has something to work on."""
    agent = Agent(LocalModel(), output_type=Plan, model_settings={"max_tokens": SHORT})
    result = asyncio.run(agent.run("Plan a todo app."))
    assert all(section.steps for section in result.output.sections)
    assert result.output.sections


@pytest.mark.local
def test_output_fits_a_larger_budget() -> None:
    """A higher `max_tokens` gives a string more room."""

    class Story(BaseModel):
        text: str

    agent = Agent(LocalModel(), output_type=Story)
    prompt = "Write one long paragraph on how to build a todo app."
    short = asyncio.run(agent.run(prompt, model_settings={"max_tokens": 40}))
    long = asyncio.run(agent.run(prompt, model_settings={"max_tokens": 100}))
    assert short.usage.output_tokens <= 40
    assert len(long.output.text) > len(short.output.text)


@pytest.mark.local
def test_too_small_a_budget() -> None:
    """Where not even the shortest JSON fits into `max_tokens`, Pydantic AI's own error says so."""
    with pytest.raises(OutputTokenLimitExceeded, match="max_tokens"):
        asyncio.run(Agent(LocalModel(), output_type=Plan, model_settings={"max_tokens": 4}).run("Plan a todo app."))


@pytest.mark.local
def test_unsatisfiable_pattern_is_reported() -> None:
    """A grammar that cannot be used is reported; free text never passes for JSON."""
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": "^.{100}$"}}, "required": ["a"]}
    with pytest.raises(UserError, match="could not be made into a grammar"):
        asyncio.run(Agent(LocalModel(), output_type=StructuredDict(schema)).run("Hello"))


@pytest.mark.local
@pytest.mark.anyio
async def test_schemas_by_hand() -> None:
    """JSON schema's rarer forms are obeyed too."""
    forms: dict[str, Any] = {
        "constant": {"const": {"a": [1, None]}},
        "whatever": True,
        "one": {"oneOf": [{"type": "integer"}, {"type": "null"}]},
        "all": {"allOf": [{"type": "boolean"}]},
        "several": {"type": ["integer", "null"]},
        "untyped": {"properties": {"b": {"type": "boolean"}}},
        "none": {"type": "array", "items": {"type": "integer"}, "maxItems": 0},
        "nothing": {"type": "array", "prefixItems": []},
        "open": {"type": "object"},
        "closed": {"type": "object", "additionalProperties": False},
        "keyed": {"type": "object", "patternProperties": {"^[a-z]{3}$": {"type": "integer"}}, "minProperties": 2},
        "positive": {"type": "number", "minimum": 0},
        "thirds": {"type": "number", "multipleOf": 3, "maximum": 0},
        "point": {"type": "number", "minimum": 0.123, "maximum": 0.123},
    }
    schema = {"type": "object", "properties": forms, "required": list(forms)}
    result = await Agent(LocalModel(), output_type=StructuredDict(schema), retries=0).run("Hello")
    made = cast("dict[str, Any]", result.output)
    assert list(made) == list(forms)
    assert made["constant"] == {"a": [1, None]}
    assert made["all"] in (True, False)
    assert set(made["untyped"]) == {"b"}
    assert (made["none"], made["nothing"], made["closed"]) == ([], [], {})
    assert made["open"]
    assert all(len(key) == 3 for key in made["keyed"])
    assert made["positive"] >= 0
    assert made["thirds"] % 3 == 0
    assert made["point"] == 0.123


@pytest.mark.local
def test_retry_tells_the_model() -> None:
    """Output that a validator rejects is asked for again, in the same conversation."""
    agent = Agent(LocalModel(), output_type=Cat, retries=1)

    @agent.output_validator
    def second_time(ctx: Any, output: Cat) -> Cat:
        if not ctx.retry:
            msg = "Take another number."
            raise ModelRetry(msg)
        return output

    assert asyncio.run(agent.run("How many lives has a cat?")).usage.requests == 2


@pytest.mark.local
@pytest.mark.anyio
async def test_typed_stream() -> None:
    """A typed answer can be watched while it grows and ends as the type."""
    agent = Agent(LocalModel(), output_type=Plan, model_settings={"max_tokens": SHORT})
    async with agent.run_stream("Plan a todo app.") as stream:
        async with aclosing(stream.stream_output(debounce_by=None)) as partial:
            seen = [output async for output in partial]
        assert isinstance(await stream.get_output(), Plan)
    assert len(seen) > 1


@pytest.mark.local
def test_a_prompt_that_leaves_too_little_for_its_type() -> None:
    """Typed output is not begun where the prompt leaves no room to end it."""
    small = LocalModel(slots=1, context=128)
    with pytest.raises(ModelContextWindowExceededError, match=r"which leaves \d+ of the \d+ that the answer may take"):
        asyncio.run(Agent(small, output_type=Plan).run("hello " * 60))
    assert asyncio.run(Agent(small, output_type=Cat).run("hello " * 60)).output.kind == "cat"
