"""What is recalled is what was given: whatever JSON holds is not computed again, and nothing else takes its place."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    ConfigDict,
    Field,
    Secret,
    SecretStr,
    SerializeAsAny,
    computed_field,
)
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from typing_extensions import TypedDict

from stagegraph import Graph, Limits, Run, RunError, Runner, Stage, step
from stagegraph.journal import MemoryJournal, SqliteJournal

LOST = "the output cannot be written down whole"

made: list[object] = []


def making(type_: Any, value: object) -> Graph[int, int]:
    """A graph whose one step gives this value, and whose output does not hold it."""

    async def make(number: int) -> Any:
        made.append(value)
        return value

    make.__annotations__ = {"number": int, "return": type_}

    node = step(make)

    class Makes(Graph[int, int]):
        make = node

        async def flow(self, number: int) -> int:
            await self.make(number)
            return number

    return Makes()


async def twice(type_: Any, value: object) -> tuple[Run[int, int], Run[int, int]]:
    """A run, and its replay."""
    made.clear()
    graph = making(type_, value)
    async with Runner(journal=MemoryJournal()) as runner:
        run = await runner.run(graph, 1)
        return run, await runner.run(graph, 1, replay=run)


def name_of(part: object) -> str:
    """The name of a type or value in the name of a test, which is the same in every process."""
    return type(part).__name__ if isinstance(part, (set, frozenset)) else str(part).split(" at 0x")[0]


class Aliased(BaseModel):
    number: int = Field(alias="theNumber")


class Optionally(BaseModel):
    number: int = Field(0, alias="theNumber", serialization_alias="N")


class Choices(BaseModel):
    number: int = Field(validation_alias=AliasChoices(AliasPath("deep", 0), "a", "b"))


class Deep(BaseModel):
    number: int = Field(validation_alias=AliasPath("deep", "number"))


class Swapped(BaseModel):
    first: int = Field(alias="second")
    second: int = Field(alias="first")


class Computed(BaseModel, extra="forbid"):
    number: int

    @computed_field
    @property
    def double(self) -> int:
        return 2 * self.number


class Base(BaseModel):
    number: int = 0


class Sub(Base):
    more: int = 1


@dataclass
class Point:
    x: float


@dataclass
class Point3(Point):
    z: float = 0.0


class Lax(BaseModel):
    number: float


class Strict(BaseModel, strict=True):
    number: float
    name: str = "n"


class Row(TypedDict):
    number: float


class Raw(BaseModel):
    model_config = ConfigDict(ser_json_bytes="base64", val_json_bytes="base64")

    data: bytes


@dataclass
class Tags:
    x: int
    names: set[str]


class Level(Enum):
    LOW = "low"


class Hidden(BaseModel):
    number: int = Field(0, exclude=True)


class Required(BaseModel):
    number: int = Field(exclude=True)


class Key(BaseModel):
    key: SecretStr


class Holder(BaseModel):
    items: list[Base]
    points: dict[str, Point] = {}


class Shown(BaseModel):
    item: SerializeAsAny[Base]


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Aliased, Aliased(theNumber=3)),
        (dict[str, list[Aliased]], {"a": [Aliased(theNumber=3)]}),
        (Optionally, Optionally(theNumber=3)),
        (Choices, Choices(a=3)),
        (Deep, Deep(deep={"number": 3})),
        (Swapped, Swapped(first=1, second=2)),
        (Computed, Computed(number=3)),
        (Base, Base(number=3)),
        (Sub | Base, Sub(more=3)),
        (Holder, Holder(items=[Base(number=3)], points={"a": Point(1.0)})),
        (Hidden, Hidden(number=0)),
        (Lax, Lax(number=math.inf)),
        (Strict, Strict(number=-math.inf)),
        (list[Point], [Point(math.inf)]),
        (Row, {"number": -math.inf}),
        (float, math.inf),
        (float | str, "Infinity"),
        (Raw, Raw(data=b"\xff")),
        (dict[Level, int], {Level.LOW: 1}),
        (set[str], {"a", "b", "c"}),
        (frozenset[int], frozenset({3, 1})),
        (tuple[int, ...], (1, 2)),
        (bytes, b"\xff\x00"),
        (Decimal, Decimal("1.10")),
        (datetime, datetime(2026, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))),
        (Level, Level.LOW),
        (Tags, Tags(1, {"n"})),
        (list[Base | int], [Base(number=1), 3]),
        (str | None, None),
        (str, "\u2028 \U0001f600 \0 </script>"),
        (Base, Sub()),
        (list[Base], [Base(), Sub()]),
        (Holder, Holder(items=[Sub()])),
        (Holder, Holder(items=[], points={"a": Point3(1.0)})),
        (Shown, Shown(item=Sub())),
        (float | str, math.inf),
    ],
    ids=name_of,
)
async def test_what_json_can_hold_is_recalled_as_it_was(type_: Any, value: object) -> None:
    """Neither names nor numbers make a paid call run again, and the record comes back from a file."""
    run, again = await twice(type_, value)
    assert len(made) == 1
    assert again.call("make").replayed
    assert again.call("make").output == value
    assert type(again.call("make").output) is type(value)
    assert again.rerun == {}
    reread = Run.from_json(run.to_json(), making(type_, value))
    assert reread.call("make").output == value


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Key, Key(key=SecretStr("hunter2"))),
        (list[SecretStr], [SecretStr("hunter2")]),
        (Secret[int], Secret(5)),
        (Hidden, Hidden(number=5)),
        (list[Required], [Required(number=5)]),
        (object, object()),
    ],
    ids=name_of,
)
async def test_what_json_loses_is_made_again(type_: Any, value: object) -> None:
    """Nothing masked, left out or cut takes the place of a value; the run says why a call was made again."""
    _, again = await twice(type_, value)
    assert made == [value, value]
    assert again.call("make").output is value
    assert again.rerun == {"make": LOST}


async def test_a_record_without_what_is_left_out_on_purpose_can_be_read() -> None:
    """A masked secret stays masked; what its type misses is shown as the data that there is."""
    run, _ = await twice(Key, Key(key=SecretStr("hunter2")))
    assert "hunter2" not in run.to_json()
    again = Run.from_json(run.to_json(), making(Key, None)).call("make").output
    assert str(again.key) == "*" * 10
    run, _ = await twice(Required, Required(number=5))
    assert Run.from_json(run.to_json(), making(Required, None)).call("make").output == {}


async def test_no_secret_is_in_the_journal(tmp_path: Path) -> None:
    """A type that masks its value keeps it out of the file."""
    journal = SqliteJournal(tmp_path / "runs.db")
    await Runner(journal=journal).run(making(Key, Key(key=SecretStr("hunter2"))), 1)
    await journal.aclose()
    assert not any(b"hunter2" in file.read_bytes() for file in tmp_path.iterdir())  # noqa: ASYNC240


async def test_what_stands_in_a_text_is_no_number() -> None:
    """The texts that stand for numbers that JSON cannot say are only numbers where the type says so."""
    _, again = await twice(Strict, Strict(number=1.0, name="NaN"))
    assert again.call("make").output == Strict(number=1.0, name="NaN")
    run, _ = await twice(Lax, Lax(number=math.nan))

    def refuse(text: str) -> None:
        raise ValueError(text)

    json.loads(run.to_json(), parse_constant=refuse)


async def test_records_by_field_name_with_computed_fields_are_read_as_before() -> None:
    """What an earlier version wrote still loads."""
    run, _ = await twice(Optionally, Optionally(theNumber=3))
    data = json.loads(run.to_json())
    assert data["calls"][1]["output"] == {"number": 3}
    data["calls"][1]["output"] = {"number": 4, "other": 8}
    again = Run.from_json(json.dumps(data), making(Optionally, None))
    assert again.call("make").output == Optionally(theNumber=4)


class Asks(Graph[str, int]):
    """A stage whose output its record does not hold, asked twice."""

    ask = Stage(str, Agent(output_type=Hidden))

    async def flow(self, text: str) -> int:
        first = await self.ask(text)
        second = await self.ask(text + "!")
        return first.number + second.number


async def test_a_resumed_run_asks_no_model_again_for_what_its_record_lost() -> None:
    """The answers of models are recorded by themselves, so that the output is made from them once more."""
    asked: list[int] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked.append(len(messages))
        return ModelResponse([ToolCallPart(info.output_tools[0].name, {"number": 5})])

    async with Runner(FunctionModel(answer), journal=MemoryJournal()) as runner:
        with pytest.raises(RunError):
            await runner.run(Asks(), "x", run_id="r", limits=Limits(requests=1))
        assert len(asked) == 1
        run = await runner.resume("r", limits=Limits(requests=10))
    assert (run.output, len(asked)) == (10, 2)
    assert run.rerun == {"ask": LOST}
