"""The declared types of nodes: what fits, what is validated, and what comes back from JSON as it was."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Annotated, Any, Generic, Literal, NewType, NotRequired, Optional, Protocol, TypeVar, Union

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import AliasChoices, AliasPath, BaseModel, Field, JsonValue, ValidationError, computed_field
from pydantic_ai import Agent, BinaryContent, ImageUrl, StructuredDict
from pydantic_ai.models.test import TestModel
from typing_extensions import TypeAliasType, TypedDict

from scripted import echo
from stagegraph import Graph, InputError, Run, RunError, Runner, Stage, step
from stagegraph.journal import MemoryJournal
from stagegraph.schema.schema import Schema


class Model(BaseModel):
    number: int = 1


class Child(Model):
    pass


T = TypeVar("T")
Bound = TypeVar("Bound", bound=Model)


class Box(BaseModel, Generic[T]):
    inside: T


@dataclass
class Data:
    text: str


class Row(TypedDict):
    name: str
    age: NotRequired[int]


class Tree(TypedDict):
    children: list[Tree]


class Named(Protocol):
    name: str


class Mood(Enum):
    GOOD = "good"


class Strict(BaseModel, strict=True):
    when: datetime
    tags: frozenset[str]
    pair: tuple[int, str]
    mood: Mood
    price: Decimal


Id = NewType("Id", int)
Names = TypeAliasType("Names", list[str])


FITS = [
    (str, "a"),
    (int, 1),
    (float, 1.5),
    (float, 1),
    (None, None),
    (type(None), None),
    (Any, ...),
    (object, 3),
    (Model, Model()),
    (Model, Child()),
    (Data, Data("x")),
    (Mood, Mood.GOOD),
    (list[Model], [Model(), Child()]),
    (list[Model], []),
    (list, [1, "a"]),
    (set[int], {1}),
    (frozenset[str], frozenset({"a"})),
    (Sequence[int], (1, 2)),
    (dict[str, Model], {"a": Model()}),
    (Mapping[str, int], {"a": 1}),
    (tuple[int, str], (1, "a")),
    (tuple[int, ...], (1, 2, 3)),
    (tuple[int, ...], ()),
    (tuple[()], ()),
    (int | None, None),
    (Optional[Model], Model()),  # noqa: UP045
    (Union[int, str], "a"),  # noqa: UP007
    (Literal["a", 1], 1),
    (Annotated[int, Field(gt=0)], 1),
    (Id, 3),
    (Names, ["a"]),
    (JsonValue, {"a": [1, None, {"b": True}]}),
    (T, ...),
    (Bound, Child()),
    (Named, Model()),
    (Row, {"name": "a"}),
    (Row, {"name": "a", "age": 3}),
    (Tree, {"children": [{"children": []}]}),
    (Box[int], Box[int](inside=1)),
    (list[list[int]], [[1], []]),
    (type, int),
]

DOES_NOT_FIT = [
    (str, 1),
    (str, None),
    (int, "1"),
    (int, 1.0),
    (float, "1"),
    (None, 0),
    (Model, {"number": 1}),
    (Child, Model()),
    (Data, {"text": "x"}),
    (Mood, "good"),
    (list[Model], [Model(), 1]),
    (list[Model], (Model(),)),
    (set[int], {"a"}),
    (Sequence[int], ["a"]),
    (dict[str, Model], {1: Model()}),
    (dict[str, Model], {"a": 1}),
    (tuple[int, str], (1,)),
    (tuple[int, str], (1, "a", 2)),
    (tuple[int, str], ("a", 1)),
    (tuple[int, ...], (1, "a")),
    (tuple[int, ...], [1]),
    (int | None, "a"),
    (Literal["a", 1], "b"),
    (Literal[1], True),
    (Annotated[int, Field(gt=0)], "a"),
    (Id, "a"),
    (Names, [1]),
    (Bound, Data("x")),
    (Row, {}),
    (Row, {"name": 1}),
    (Row, {"name": "a", "age": "old"}),
    (Row, [("name", "a")]),
    (Tree, {"children": [{"children": 1}]}),
    (list[list[int]], [[1], ["a"]]),
]


@pytest.mark.parametrize(("type_", "value"), FITS, ids=str)
def test_a_value_of_the_type_fits(type_: Any, value: object) -> None:
    """An instance check accepts what a type checker would accept."""
    assert Schema(type_).is_instance(value)


@pytest.mark.parametrize(("type_", "value"), DOES_NOT_FIT, ids=str)
def test_a_value_of_another_type_does_not_fit(type_: Any, value: object) -> None:
    """An instance check coerces nothing, however close a value looks."""
    assert not Schema(type_).is_instance(value)


@pytest.mark.parametrize(("type_", "value"), FITS, ids=str)
def test_what_fits_already_passes_the_outer_door_as_it_is(type_: Any, value: object) -> None:
    """Validation neither copies nor changes a value that has the type."""
    result = Schema(type_).validate(value)
    assert result is value


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        ("no number", Strict(when=datetime(2026, 1, 2, tzinfo=UTC), tags=frozenset({"a"}), pair=(1, "b"),
                             mood=Mood.GOOD, price=Decimal("1.10"))),
        (None, None),
        (Model | Data, Data("x")),
        (Data | Model, Model(number=3)),
        (Row, {"name": "a", "age": 3}),
        (list[Model], [Model(), Model(number=2)]),
        (dict[str, tuple[int, str]], {"a": (1, "b")}),
        (bytes, bytes(range(256))),
        (list[bytes], [b"\xff", b""]),
        (dict[str, bytes | None], {"a": b"\x80", "b": None}),
        (BinaryContent, BinaryContent(b"\x89PNG\xff", media_type="image/png")),
        (list[ImageUrl | BinaryContent], [ImageUrl(url="https://x/y.png"), BinaryContent(b"\xfe", media_type="a/b")]),
        (float, math.inf),
        (Box[int], Box[int](inside=4)),
        (set[int], {3, 1}),
        (datetime, datetime(2026, 1, 2, 3, 4, 5, 6, tzinfo=UTC)),
        (Decimal, Decimal("0.10")),
        (Id, 5),
        (Names, ["ä", "\u2028", ""]),
        (Mood, Mood.GOOD),
        (JsonValue, {"a": [1, 2.5, None, {"b": True}]}),
        (Literal["a", 1], 1),
    ],
    ids=str,
)  # fmt: skip
def test_json_brings_a_value_back_as_it_was(type_: Any, value: object) -> None:
    """What is dumped, written as JSON and loaded is equal and of the same type, for strict models and bytes as well."""
    schema = Schema(type(value) if type_ == "no number" else type_)
    again = schema.load(json.loads(schema.recorded(value).plain))
    assert again == value
    assert type(again) is type(value)


def test_not_a_number_survives_json() -> None:
    """A metric that came out as NaN is no reason to lose a record."""
    schema = Schema(list[float])
    assert math.isnan(schema.load(json.loads(schema.recorded([math.nan]).plain))[0])


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
                    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner)))  # fmt: skip
def test_any_json_survives(value: Any) -> None:
    """`JsonValue` takes whatever JSON can say, and gives it back."""
    schema = Schema(JsonValue)
    assert schema.load(json.loads(schema.recorded(value).plain)) == value


def test_what_does_not_fit_its_type_is_dumped_as_it_can_be() -> None:
    """A failed call may hold a wrong value; its record still shows it."""
    assert json.loads(Schema(Model).recorded({"x": Data("a")}).plain) == {"x": {"text": "a"}}
    assert "object" in Schema(Model).recorded(object()).plain


@pytest.mark.parametrize(
    ("type_", "name"),
    [
        (Model, "Model"),
        (int, "int"),
        (None, "None"),
        (int | None, "int | None"),
        (Literal["a"], "Literal['a']"),
        (Box[int], "Box[int]"),
        (Annotated[Model | Data, Field(description="x")], "Model | Data"),
        (list[Annotated[Model, {"un": "hashable"}]], "list[Model]"),
        (Optional[Model], "Model | None"),  # noqa: UP045
        (Mapping[str, tuple[Model, ...]], "Mapping[str, tuple[Model, ...]]"),
        (dict[str, list[Id]], "dict[str, list[Id]]"),
        (Names, "Names"),
        (Any, "Any"),
        (tuple[()], "tuple[()]"),
        (Callable[[int], str], "collections.abc.Callable[[int], str]"),
    ],
    ids=str,
)
def test_a_name_says_neither_modules_nor_annotations(type_: Any, name: str) -> None:
    """Messages name a type as it stands in the code, without what is only there for validation."""
    assert Schema(type_).name == name


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    kind: Literal["dog"] = "dog"


@step
async def wrong(text: str) -> Annotated[Cat | Dog, Field(discriminator="kind")]:
    return text  # type: ignore[return-value]


async def test_an_annotated_type_is_named_by_its_models_where_it_is_missed() -> None:
    """The message about a wrong value says which models it should have been."""
    with pytest.raises(RunError, match=r"returned str 'x', but it gives Cat \| Dog: "):
        await Runner().run(wrong, "x")


def test_a_graph_with_any_annotation_can_be_drawn() -> None:
    """What stands in `Annotated` need not be hashable, and the arrows are those of the type itself."""

    class Drawn(Graph[str, str]):
        make = Stage(str, Agent(output_type=Cat))
        take = Stage(Annotated[Cat, {"un": "hashable"}], Agent())

        async def flow(self, text: str) -> str:
            return await self.take(await self.make(text))

    chart = Drawn().mermaid()
    assert "Cat to str" in chart
    assert "-.->" in chart


@step
async def boxed(inside: Any) -> Box[int]:
    return Box(inside=inside)


async def test_a_generic_model_made_without_its_parameter_fits_by_what_it_holds() -> None:
    """`Box(inside=1)` is a `Box[int]`, as for a type checker; `Box(inside="a")` is none."""
    run = await Runner().run(boxed, 1)
    assert run.output.inside == 1
    assert Run.from_json(run.to_json(), boxed).output == Box[int](inside=1)
    assert Schema(list[Box[int]]).is_instance([Box(inside=1), Box[int](inside=2)])
    with pytest.raises(RunError, match=r"but it gives Box\[int\]"):
        await Runner().run(boxed, "a")


THING: Any = StructuredDict({"type": "object", "properties": {"a": {"type": "string"}}}, name="Thing")


async def test_a_structured_dict_is_a_dict() -> None:
    """What an agent with `StructuredDict` gives is a plain dict; it goes through JSON and is replayed."""
    stage = Stage(str, Agent(output_type=THING))
    model = TestModel(custom_output_args={"a": "b"})
    async with Runner(model, journal=MemoryJournal()) as runner:
        run = await runner.run(stage, "x")
        again = await runner.run(stage, "x", replay=run)
    assert run.output == again.output == Run.from_json(run.to_json(), stage).output == {"a": "b"}
    assert again.usage.requests == 0
    assert stage.__node__.output_type.adapter.json_schema()["properties"] == {"a": {"type": "string"}}
    assert not stage.__node__.output_type.is_instance("a")


class Titled(BaseModel):
    number: int = Field(alias="theNumber")
    text: str = Field("", validation_alias=AliasChoices("t", AliasPath("deep", 0)), serialization_alias="T")

    @computed_field
    @property
    def double(self) -> int:
        return 2 * self.number


def test_each_reader_gets_the_names_it_knows() -> None:
    """The record has field names, outsiders what the JSON schema says, a model what it would answer; all are read."""
    schema = Schema(list[Titled])
    value = [Titled(theNumber=3, t="x")]
    assert json.loads(schema.recorded(value).plain) == [{"number": 3, "text": "x"}]
    assert schema.show(value) == json.loads(schema.show_json(value)) == [{"theNumber": 3, "T": "x", "double": 6}]
    assert schema.answer(value) == [{"theNumber": 3, "t": "x"}]
    shown = schema.adapter.json_schema(mode="serialization")["$defs"]["Titled"]["properties"]
    assert shown.keys() == schema.show(value)[0].keys()
    for data in (
        json.loads(schema.recorded(value).plain),
        schema.answer(value),
        [{"theNumber": 3, "text": "x", "double": 6}],
    ):
        assert schema.load(data) == value
        assert schema.recall(json.dumps(data)) == value
        assert schema.validate(data) == value


@step
async def older(row: Row) -> int:
    return row.get("age", 0) + 1


class Ages(Graph[Row, int]):
    older = older

    async def flow(self, row: Row) -> int:
        return await self.older(row)


@step
async def positive(number: Annotated[int, Field(gt=0)]) -> int:
    return number


@step
async def half(number: float) -> float:
    return number / 2


@pytest.mark.parametrize(
    ("node", "value", "output", "said"),
    [
        (Ages(), {"name": "a", "age": "3"}, 4, ""),  # coerced
        (Ages(), {}, None, "the input does not fit Row"),
        (Ages(), {"name": 1}, None, "the input does not fit Row"),
        (Ages(), {"name": "a", "age": "old"}, None, "the input does not fit Row"),
        (positive, 1, 1, ""),
        (positive, -1, None, "greater than 0"),
        (half, 3, 1.5, ""),  # a whole number is a float, as in Python itself
        (half, "much", None, "float"),
    ],
)
async def test_what_comes_in_is_validated_at_the_outer_door(node: Any, value: Any, output: Any, said: str) -> None:
    """Keys and values of typed dicts, and what stands in `Annotated`, are checked where data comes in."""
    if said:
        with pytest.raises(InputError, match=said):
            await Runner().run(node, value)
    else:
        assert (await Runner().run(node, value)).output == output


class Plain:
    """A class that Pydantic knows nothing of."""

    def __init__(self, text: str) -> None:
        self.text = text


@step
async def wrap(text: str) -> Plain:
    return Plain(text)


@step
async def unwrap(plain: Plain) -> str:
    return plain.text


class ThroughPlain(Graph[str, str]):
    wrap = wrap
    unwrap = unwrap

    async def flow(self, text: str) -> str:
        return await self.unwrap(await self.wrap(text))


async def test_any_class_may_pass_between_nodes() -> None:
    """A value that has no JSON passes as it is; only writing the record as JSON needs one, and says where."""
    async with Runner(echo()) as runner:
        run: Run[str, str] = await runner.run(ThroughPlain(), "x")
    assert run.output == "x"
    assert run.edges() == [("wrap", "unwrap")]
    with pytest.raises(RunError, match="call `wrap`: a value cannot be written as JSON") as caught:
        run.to_json()
    assert len(str(caught.value).splitlines()) == 1


def test_a_validation_error_is_pydantics_own() -> None:
    """Loading what does not fit says which field, as Pydantic does."""
    with pytest.raises(ValidationError, match="number"):
        Schema(Model).load({"number": "x"})
    with pytest.raises(ValidationError):
        Schema(dataclasses.make_dataclass("Other", [("x", int)])).load({})
