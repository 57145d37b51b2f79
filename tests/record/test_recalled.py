"""What is recalled equals what was recorded, type included, or the call runs again and the run says why."""

from __future__ import annotations

import dataclasses
import json
import math
import os
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from pathlib import Path
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar, Union
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AliasChoices,
    AliasPath,
    BaseModel,
    Field,
    PlainSerializer,
    PrivateAttr,
    RootModel,
    Secret,
    SecretStr,
    SerializeAsAny,
    computed_field,
    create_model,
    field_serializer,
    field_validator,
)
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from typing_extensions import TypedDict

from stagegraph import Graph, Limits, Run, RunError, Runner, Stage, step
from stagegraph.journal import MemoryJournal, SqliteJournal

LOST = ("the output cannot be written down whole", "the input cannot be written down whole")
EXAMPLES = int(os.environ.get("STAGEGRAPH_SEEDS", "60"))


class Approve(BaseModel):
    reason: str


class Reject(BaseModel):
    reason: str


class Answer(BaseModel):
    text: str
    sources: list[str] = []


class Ask(BaseModel):
    text: str


class Base(BaseModel):
    number: int = 0


class Derived(Base):
    extra: str = "e"


class Twin(Base):
    extra: str = "e"


class Loose(BaseModel):
    """Defaults that nobody validates, as many people write them."""

    score: float = 0
    comment: str = None  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]
    parts: list[int] = ()  # type: ignore[assignment] # pyright: ignore[reportAssignmentType]


@dataclass(frozen=True, slots=True)
class Measured:
    value: float = 0
    more: tuple[float, ...] = ()


class Measure(NamedTuple):
    value: float


class Holder(BaseModel):
    items: list[Base] = []
    anything: Any = None
    decision: Approve | Reject | None = None


class Hidden(BaseModel):
    shown: int = 0
    hidden: int = Field(0, exclude=True)


class Key(BaseModel):
    key: SecretStr


class Masked(BaseModel):
    key: str

    @field_serializer("key")
    def mask(self, _key: str) -> str:
        return "***"


class Named(BaseModel):
    """Its fields have names that Pydantic's description of a type uses as well."""

    type: float | str = 0.0
    config: Masked | Base | None = None
    default: dict[str, Approve | Reject] = {}
    metadata: Any = None


class Scored(BaseModel, frozen=True):
    score: float = 0  # Pydantic leaves it an integer


class Typed(BaseModel):
    type: Literal["typed"]
    fields: list[Base] = []


class Private(BaseModel):
    shown: int = 0
    _seen: int = PrivateAttr(0)


class Open(BaseModel, extra="allow"):
    number: int = 0


class Louder(BaseModel):
    text: str

    @field_validator("text")
    @classmethod
    def shout(cls, text: str) -> str:
        return text + "!"


class Names(RootModel[list[Any]]):
    pass


class Tree(BaseModel):
    value: Any = 0
    inside: list[Tree] = []


class Level(StrEnum):
    LOW = "low"


class Rank(IntEnum):
    FIRST = 1


class Mood(Enum):
    GOOD = (1, 2)


@dataclass
class Point:
    x: float = 0.0


@dataclass
class Point3(Point):
    z: Any = 0.0


@dataclass
class Counted:
    x: int
    count: int = field(init=False, default=0)


class Row(TypedDict, total=False):
    name: str | bytes
    decision: Approve | Reject


class Pair(NamedTuple):
    first: int
    second: Any = None


T = TypeVar("T")


class Box(BaseModel, Generic[T]):
    inside: T


class Object:
    """It has no JSON."""


class Text(str):
    __slots__ = ()


def same(value: Any, again: Any) -> bool:
    """Whether two values look the same in every part; written here without a look at how the library does it."""
    return described(value) == described(again)


def described(value: Any) -> Any:
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    if isinstance(value, SecretStr):
        return kind, value.get_secret_value()
    if isinstance(value, BaseModel):
        state = {**value.__dict__, **(value.model_extra or {}), **(value.__pydantic_private__ or {})}
        return kind, {name: described(one) for name, one in state.items()}
    if dataclasses.is_dataclass(value):
        return kind, {one.name: described(getattr(value, one.name)) for one in dataclasses.fields(value)}
    if isinstance(value, dict):
        return kind, [(described(key), described(one)) for key, one in value.items()]
    if isinstance(value, (set, frozenset)):
        return kind, sorted(map(repr, map(described, value)))
    if isinstance(value, (list, tuple, deque)):
        return kind, list(map(described, value)), getattr(value, "maxlen", None)
    if isinstance(value, datetime):
        zone = value.tzinfo.key if isinstance(value.tzinfo, ZoneInfo) else value.utcoffset()
        return kind, value.replace(tzinfo=None).isoformat(), zone
    if type(value) is int:
        return kind, hex(value)  # of any length
    return (kind, repr(value)) if not isinstance(value, (Enum, Object)) else (kind, id(value))


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


class Strict(BaseModel, strict=True):
    number: float
    name: str = "n"


class Measures(TypedDict):
    number: float


class Raw(BaseModel, ser_json_bytes="base64", val_json_bytes="base64"):
    data: bytes


@dataclass
class Tags:
    x: int
    names: set[str]


class Required(BaseModel):
    number: int = Field(exclude=True)


class Shown(BaseModel):
    item: SerializeAsAny[Base]


made: list[object] = []


def makes(type_: Any, value: object) -> Graph[int, int]:
    """A graph whose one step gives this value."""

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


def takes(type_: Any, value: object) -> Graph[int, int]:
    """A graph whose one step is given this value."""

    async def take(given: Any) -> int:
        made.append(given)
        return len(made)

    take.__annotations__ = {"given": type_, "return": int}
    node = step(take)

    class Takes(Graph[int, int]):
        take = node

        async def flow(self, number: int) -> int:
            return await self.take(value)

    return Takes()


async def recalled(type_: Any, value: object) -> bool:
    """Whether a replay recalls an output; if so, it is the one that was made, and so it is in the run's JSON."""
    made.clear()
    graph = makes(type_, value)
    async with Runner(journal=MemoryJournal(), tracing=None) as runner:
        run = await runner.run(graph, 1)
        again = await runner.run(graph, 1, replay=run)
    call = again.call("make")
    assert same(call.output, value)
    if not call.replayed:
        assert again.rerun["make"] in LOST
        assert len(made) == 2
        return False
    assert (again.rerun, len(made)) == ({}, 1)
    assert same(Run.from_json(run.to_json(), graph).call("make").output, value)
    return True


RECALLED: list[tuple[Any, list[Any]]] = [
    (Approve | Reject, [Approve(reason="x"), Reject(reason="x")]),
    (Answer | Ask, [Answer(text="x"), Ask(text="x")]),
    (Base, [Base(), Derived(), Derived(extra="f"), Twin(), Base.model_construct(number=3.0)]),
    (list[Base], [[Derived()], [Base(), Twin(number=3)]]),
    (dict[str, tuple[Approve | Reject, ...]], [{"a": (Reject(reason="r"), Approve(reason="a"))}]),
    (Holder, [Holder(items=[Twin()], anything=(b"x", {1: {2}}), decision=Reject(reason="r")), Holder(anything=True)]),
    (Annotated[Approve | Reject, Field(description="x")], [Reject(reason="r")]),
    (bytes | str, [b"YWJj", "YWJj", b"\xff"]),
    (str | bytes, [b"a", "a"]),
    (date | str, [date(2026, 1, 2), "2026-01-02"]),
    (datetime | date, [date(2026, 1, 2), datetime(2026, 1, 2)]),  # noqa: DTZ001 - without a time zone
    (UUID | str, [UUID(int=1), str(UUID(int=1))]),
    (Path | str, [Path("a"), "a"]),
    (timedelta | str, [timedelta(1), "P1D"]),
    (Decimal | float | int | str, [Decimal("1.0"), Decimal(1), 1.0, 1, "1"]),
    (list[int] | tuple[int, ...], [[1], (1,)]),
    (list | tuple, [[1], (1, (2,))]),
    (set[int] | frozenset[int] | list[int], [{1}, frozenset({1}), [1]]),
    (dict[str | int, int], [{1: 1}, {"1": 1}, {1: 1, "1": 2}]),
    (dict[Any, int], [{None: 1}, {(1, "a"): 1}, {True: 1}, {1.5: 1}, {b"a": 1}, {date(2026, 1, 1): 1}]),
    (int | bool, [1, True]),
    (int, [1, True, 10**40]),
    (float, [1, 1.0, math.nan, math.inf, -0.0]),
    (float | str, ["NaN", math.nan, math.inf, "Infinity", "1.0", 1.0]),
    (str, ["half \ud800", "NaN", ""]),
    (Any, [1, True, 1.0, "1", b"1", (1,), {1, "1"}, {"$x": {"$y": 1}}, {"$tuple": [1]}, Decimal("1.10"), Path("a")]),
    (object, [date(2026, 1, 1), UUID(int=1), timedelta(1, 2, 3), deque([1]), OrderedDict(a=1)]),
    (dict[str, Any], [{"a": b"x", "b": {"c": (1, {2})}}, {"b": 1, "a": 2}]),
    (
        datetime,
        [
            datetime(2026, 7, 1, tzinfo=ZoneInfo("Europe/Berlin")),
            datetime(2026, 7, 1, tzinfo=timezone(timedelta(hours=2))),
            datetime(2026, 7, 1, 1, 2, 3, 4, tzinfo=UTC),
        ],
    ),
    (Level | str, [Level.LOW, "low"]),
    (Rank | int, [Rank.FIRST, 1]),
    (Mood | int, [Mood.GOOD, 1]),
    (Literal[1, True, "1"], [1, True, "1"]),
    (Point, [Point(), Point3(), Point3(z=(1,)), Point(math.inf)]),
    (dict[str, Point], [{"a": Point(1.0), "b": Point3(1.0)}]),
    (Row, [{"name": b"x"}, {"name": "x", "decision": Reject(reason="r")}]),
    (Pair, [Pair(1, (2,)), Pair(1, [2])]),
    (Pair | tuple[int, int], [Pair(1, 2), (1, 2)]),
    (Box[int], [Box[int](inside=1), Box(inside=1)]),
    (Box[Base], [Box[Base](inside=Twin())]),
    (Names, [Names(["a", (b"b",)])]),
    (Tree, [Tree(inside=[Tree(value=(1,))])]),
    (Open, [Open(more=(1,), most=b"x"), Open(more=[1])]),
    (BaseModel, [Approve(reason="x"), Reject(reason="x")]),
    (list[BaseModel], [[Reject(reason="x"), Derived()]]),
    (TypeVar("Bound", bound=BaseModel), [Reject(reason="x")]),
    (Hidden, [Hidden(shown=3)]),
    (Private, [Private(shown=3)]),
    (deque[int | str], [deque([1, "1"])]),
    (Loose, [Loose(), Loose(score=2, comment="x", parts=[1]), Loose(score=0)]),
    (list[Loose], [[Loose(), Loose(comment="x")]]),
    (Measured, [Measured(), Measured(2), Measured(1, (1, 2.5)), Measured(True)]),
    (Measure, [Measure(1), Measure(1.0)]),
    (list[ModelMessage], [[ModelRequest([UserPromptPart("x")]), ModelResponse([TextPart("y")])]]),
    (Scored, [Scored(), Scored(score=1), Scored(score=0.0)]),
    (Point, [Point(1), Point(1.0)]),
    (Named, [Named(type=math.inf, config=Derived(), default={"type": Reject(reason="r")}, metadata=(1,))]),
    (Aliased, [Aliased(theNumber=3)]),
    (dict[str, list[Aliased]], [{"a": [Aliased(theNumber=3)]}]),
    (Optionally, [Optionally(theNumber=3), Optionally()]),
    (Choices, [Choices(a=3)]),
    (Deep, [Deep(deep={"number": 3})]),
    (Swapped, [Swapped(first=1, second=2), Swapped(first=2, second=1)]),
    (Computed, [Computed(number=3)]),
    (Derived | Base, [Derived(extra="f"), Base()]),
    (Strict, [Strict(number=-math.inf), Strict(number=1.0, name="NaN")]),
    (Measures, [{"number": -math.inf}]),
    (Raw, [Raw(data=b"\xff")]),
    (dict[Level, int], [{Level.LOW: 1}]),
    (set[str], [{"a", "b", "c"}]),
    (Level, [Level.LOW]),
    (Tags, [Tags(1, {"n", "m"})]),
    (list[Base | int], [[Base(number=1), 3]]),
    (str | None, [None, "\u2028 \U0001f600 \0 </script>"]),
    (Shown, [Shown(item=Derived())]),
    (Named | Typed, [Typed(type="typed"), Typed(type="typed", fields=[Twin()])]),
]

AGAIN: list[tuple[Any, Any]] = [
    (Any, Object()),
    (Any, Base()),
    (Any, SecretStr("s3cret")),
    (dict[str, Any], {"key": SecretStr("s3cret")}),
    (Key | Approve, Key(key=SecretStr("s3cret"))),
    (Masked | Approve, Masked(key="s3cret")),
    (list[Masked], [Masked(key="s3cret")]),
    (Annotated[str, PlainSerializer(lambda _: "***")] | int, "s3cret"),
    (Hidden, Hidden(hidden=5)),
    (list[Required], [Required(number=5)]),
    (list[SecretStr], [SecretStr("s3cret")]),
    (Secret[int], Secret(5)),
    (object, object()),
    (Louder, Louder(text="a")),
    (str, Text("a")),
    (int, Rank.FIRST),
    (str, Level.LOW),
    (dict[str, int], defaultdict(int, a=1)),
    (deque[int], deque([1], maxlen=2)),
    (int, 10**4301),
    (list[int], [*range(1000), -(10**5000)]),
    (Named | Approve, Named(type="t", config=Masked(key="s3cret"))),
]


@pytest.mark.parametrize(("type_", "values"), RECALLED, ids=[str(type_)[:60] for type_, _ in RECALLED])
async def test_what_is_open_in_a_type_is_recalled_as_it_was(type_: Any, values: list[Any]) -> None:
    """Members of unions, subclasses, kinds of containers and all that `Any` leaves open come back as they were."""
    for value in values:
        assert await recalled(type_, value), value


@pytest.mark.parametrize(("type_", "value"), AGAIN, ids=[str(type_)[:60] for type_, _ in AGAIN])
async def test_what_a_record_cannot_hold_is_made_again(type_: Any, value: object) -> None:
    """Secrets, what is left out, and objects without JSON: nothing else takes their place, and no secret is written."""
    assert not await recalled(type_, value)
    journal = MemoryJournal()
    run = await Runner(journal=journal).run(makes(type_, value), 1)
    assert "s3cret" not in str(await journal.calls(run.id))


async def test_state_that_json_never_shows_counts() -> None:
    """A private attribute, a field that `init=False` keeps out, and what was changed after validation."""
    private = Private()
    private._seen = 3
    counted = Counted(1)
    counted.count = 3
    changed = Base()
    changed.number = "3"  # type: ignore[assignment]
    for type_, value in [
        (Private, private),
        (Counted, counted),
        (Base, changed),
    ]:
        assert not await recalled(type_, value)
    assert await recalled(Counted, Counted(1))


@pytest.mark.parametrize(("type_", "values"), RECALLED, ids=[str(type_)[:60] for type_, _ in RECALLED])
async def test_different_inputs_never_share_an_answer(type_: Any, values: list[Any]) -> None:
    """A replay with another value in place of one runs, whatever the declared type leaves out."""
    async with Runner(journal=MemoryJournal(), tracing=None) as runner:
        for value in values:
            made.clear()
            run = await runner.run(takes(type_, value), 1)
            again = await runner.run(takes(type_, value), 1, replay=run)
            assert (again.call("take").replayed, again.rerun) == (True, {})
            for other in values:
                if other is not value:
                    replay = await runner.run(takes(type_, other), 1, replay=run)
                    assert not replay.call("take").replayed
                    assert replay.rerun == {"take": "the input"}


@pytest.mark.parametrize(("type_", "value"), AGAIN, ids=[str(type_)[:60] for type_, _ in AGAIN])
async def test_an_input_without_a_record_is_never_taken_for_another(type_: Any, value: object) -> None:
    """Its call runs again, and the run says why."""
    async with Runner(journal=MemoryJournal(), tracing=None) as runner:
        run = await runner.run(takes(type_, value), 1)
        again = await runner.run(takes(type_, value), 1, replay=run)
    assert not again.call("take").replayed
    assert again.rerun == {"take": "the input cannot be written down whole"}


async def test_a_record_without_what_is_left_out_on_purpose_can_be_read() -> None:
    """A masked secret stays masked; what its type misses is shown as the data that there is."""
    run = await Runner(tracing=None).run(makes(Key, Key(key=SecretStr("s3cret"))), 1)
    assert "s3cret" not in run.to_json()
    again = Run.from_json(run.to_json(), makes(Key, None)).call("make").output
    assert str(again.key) == "*" * 10
    run = await Runner(tracing=None).run(makes(Required, Required(number=5)), 1)
    assert Run.from_json(run.to_json(), makes(Required, None)).call("make").output == {}


async def test_no_secret_is_in_the_journal(tmp_path: Path) -> None:
    """A type that masks its value keeps it out of the file."""
    journal = SqliteJournal(tmp_path / "runs.db")
    await Runner(journal=journal).run(makes(Key, Key(key=SecretStr("s3cret"))), 1)
    await journal.aclose()
    assert not any(b"s3cret" in file.read_bytes() for file in tmp_path.iterdir())  # noqa: ASYNC240


async def test_numbers_that_json_cannot_say_are_texts_in_it() -> None:
    """So that any reader takes the file."""
    run = await Runner(tracing=None).run(makes(Strict, Strict(number=math.nan)), 1)

    def refuse(text: str) -> None:
        raise ValueError(text)

    json.loads(run.to_json(), parse_constant=refuse)


async def test_records_by_field_name_with_computed_fields_are_read_as_before() -> None:
    """What an earlier version wrote still loads."""
    run = await Runner(tracing=None).run(makes(Optionally, Optionally(theNumber=3)), 1)
    data = json.loads(run.to_json())
    assert data["calls"][1]["output"] == {"number": 3}
    data["calls"][1]["output"] = {"number": 4, "other": 8}
    again = Run.from_json(json.dumps(data), makes(Optionally, None))
    assert again.call("make").output == Optionally(theNumber=4)


class Asks(Graph[str, int]):
    """A stage whose output its record does not hold, asked twice."""

    ask = Stage(str, Agent(output_type=Hidden))

    async def flow(self, text: str) -> int:
        first = await self.ask(text)
        second = await self.ask(text + "!")
        return first.hidden + second.hidden


async def test_a_resumed_run_asks_no_model_again_for_what_its_record_lost() -> None:
    """The answers of models are recorded by themselves, so that the output is made from them once more."""
    asked: list[int] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked.append(len(messages))
        return ModelResponse([ToolCallPart(info.output_tools[0].name, {"hidden": 5})])

    async with Runner(FunctionModel(answer), journal=MemoryJournal()) as runner:
        with pytest.raises(RunError):
            await runner.run(Asks(), "x", run_id="r", limits=Limits(requests=1))
        assert len(asked) == 1
        run = await runner.resume("r", limits=Limits(requests=10))
    assert (run.output, len(asked)) == (10, 2)
    assert run.rerun == {"ask": LOST[0]}


class Emptied(Graph[list[int], list[int]]):
    """Its flow changes what it was given, and what its step gave."""

    @step
    async def copy(numbers: list[int]) -> list[int]:  # type: ignore[misc]  # noqa: N805
        return [*numbers]

    async def flow(self, numbers: list[int]) -> list[int]:
        first = await self.copy(numbers)
        second = await self.copy(first)
        first.pop()
        numbers.clear()
        return [*await self.copy(first), *second]


async def test_a_value_that_changes_is_recorded_as_it_was_given() -> None:
    """An input as it was at the beginning of its call; a value that has changed is another one."""
    journal = MemoryJournal()
    async with Runner(journal=journal, tracing=None) as runner:
        run = await runner.run(Emptied(), [1, 2])
        again = await runner.run(Emptied(), [1, 2], replay=run)
    assert again.output == run.output == [1, 1, 2]
    for one in (run, again):
        rows = await journal.calls(one.id)
        assert [(row.key, row.input, row.output) for row in rows] == [
            ("", "[1,2]", "[1,1,2]"),
            ("copy", "[1,2]", "[1,2]"),
            ("copy#1", "[1,2]", "[1,2]"),
            ("copy#2", "[1]", "[1]"),
        ]
    assert all(call.replayed for call in again.calls())


# -- any type, and any value of it

_TEXTS = st.text(max_size=3)
_LEAVES: list[tuple[Any, st.SearchStrategy[Any]]] = [
    (int, st.integers()),
    (str, _TEXTS),
    (bytes, st.binary(max_size=3)),
    (bool, st.booleans()),
    (float, st.floats()),
    (None, st.none()),
    (date, st.dates()),
    (datetime, st.datetimes(timezones=st.none() | st.just(UTC) | st.just(ZoneInfo("Europe/Berlin")))),
    (timedelta, st.timedeltas()),
    (Decimal, st.decimals(allow_nan=False, allow_infinity=False)),
    (UUID, st.uuids()),
    (Path, _TEXTS.filter(lambda text: "\0" not in text and text.isprintable()).map(Path)),
    (Level, st.just(Level.LOW)),
    (Rank, st.just(Rank.FIRST)),
    (Literal["a", 1], st.sampled_from(["a", 1])),
    (SecretStr, _TEXTS.map(SecretStr)),
    (Base, st.builds(Base, number=st.integers()) | st.builds(Derived, extra=_TEXTS) | st.builds(Twin, extra=_TEXTS)),
    (Approve, st.builds(Approve, reason=_TEXTS)),
    (Reject, st.builds(Reject, reason=_TEXTS)),
    (Hidden, st.builds(Hidden, shown=st.integers(0, 1), hidden=st.integers(0, 1))),
    (Masked, st.builds(Masked, key=_TEXTS)),
    (Louder, st.builds(Louder, text=_TEXTS)),
    (Key, st.builds(Key, key=_TEXTS)),
    (Point, st.builds(Point, x=st.floats()) | st.builds(Point3, z=st.binary(max_size=2))),
    (Counted, st.builds(Counted, x=st.integers())),
    (Row, st.fixed_dictionaries({}, optional={"name": _TEXTS | st.binary(max_size=2)})),
    (Pair, st.builds(Pair, st.integers(), st.booleans() | st.integers(0, 1))),
]
_HASHABLE = _LEAVES[:15]
_ANYTHING = st.recursive(
    st.one_of([strategy for _, strategy in _LEAVES]) | st.builds(Object),
    lambda inner: (
        st.lists(inner, max_size=2)
        | st.tuples(inner)
        | st.dictionaries(_TEXTS | st.integers(0, 1) | st.booleans(), inner, max_size=2)
    ),
    max_leaves=4,
)


def _made_of(inner: st.SearchStrategy[tuple[Any, st.SearchStrategy[Any]]]) -> st.SearchStrategy[Any]:
    def model(one: tuple[Any, Any]) -> tuple[Any, Any]:
        cls = create_model("Made", inside=(one[0], ...), __base__=Base, __module__=__name__)
        return cls, one[1].map(lambda value: cls.model_construct(number=0, inside=value))

    hashable = st.sampled_from(_HASHABLE)
    return st.one_of(
        inner.map(lambda one: (list[one[0]], st.lists(one[1], max_size=2))),
        inner.map(lambda one: (tuple[one[0], ...], st.lists(one[1], max_size=2).map(tuple))),
        st.tuples(hashable, inner).map(
            lambda two: (dict[two[0][0], two[1][0]], st.dictionaries(two[0][1], two[1][1], max_size=2))
        ),
        hashable.map(lambda one: (set[one[0]], st.sets(one[1], max_size=3))),
        hashable.map(lambda one: (frozenset[one[0]], st.frozensets(one[1], max_size=3))),
        st.tuples(inner, inner).map(lambda two: (Union[two[0][0], two[1][0]], two[0][1] | two[1][1])),  # noqa: UP007
        inner.map(model),
    )


TYPES = st.recursive(
    st.sampled_from([*_LEAVES, (Any, _ANYTHING), (object, _ANYTHING)]),
    _made_of,
    max_leaves=4,
)
VALUES = TYPES.flatmap(lambda one: st.tuples(st.just(one[0]), one[1], one[1]))


@given(VALUES)
@settings(max_examples=EXAMPLES, deadline=None)
async def test_any_value_of_any_type_comes_back_or_runs_again(drawn: tuple[Any, Any, Any]) -> None:
    """A recorded output is recalled as it was or made again, and two inputs share an answer only if they are the same."""
    type_, value, other = drawn
    await recalled(type_, value)
    async with Runner(journal=MemoryJournal(), tracing=None) as runner:
        run = await runner.run(takes(type_, value), 1)
        again = await runner.run(takes(type_, other), 1, replay=run)
    assert not again.call("take").replayed or same(value, other)


# -- a record that somebody has changed


@pytest.mark.parametrize(
    "whole",
    [
        '{"$subprocess.Popen": {"args": "ls"}}',
        '{"$os.system": "ls"}',
        '{"$builtins.eval": ["1"]}',
        f'{{"${Reject.__module__}.Holder": {{}}}}',
        f'{{"${Reject.__module__}.Reject": {{}}}}',
        f'{{"${Reject.__module__}.Reject": [1, 2]}}',
        f'{{"${Reject.__module__}.Rank": "FIRST"}}',
        '{"$zoned": ["2026-01-01", "../../etc/passwd", 0]}',
        '{"$set": [[]]}',
        '{"$float": "x"}',
        '{"$": 1}',
        '{"$Path": 3}',
        "{",
        "[" * 100_000,
        "7",
    ],
    ids=lambda text: text[:40],
)
async def test_a_changed_record_is_never_an_exception_nor_another_class(whole: str) -> None:
    """A name in a file leads only to a class that the declared type mentions; anything else is made again."""
    journal, graph = MemoryJournal(), makes(Approve | Reject, Reject(reason="x"))
    made.clear()
    async with Runner(journal=journal) as runner:
        run = await runner.run(graph, 1)
        row = next(row for row in await journal.calls(run.id) if row.key == "make")
        await journal.put(dataclasses.replace(row, output_whole=whole))
        again = await runner.run(graph, 1, replay=run)
    assert again.rerun == {"make": "the output cannot be read back"}
    assert again.call("make").output == Reject(reason="x")
    assert len(made) == 2


async def test_a_class_that_is_gone_is_made_again() -> None:
    """A record of a class that no longer exists under its name cannot be read back."""
    journal = MemoryJournal()
    before: Callable[[], type[Base]] = lambda: type("Gone", (Base,), {"__module__": __name__})  # noqa: E731
    kind = before()
    graph = makes(Base, kind(number=1))
    async with Runner(journal=journal) as runner:
        run = await runner.run(graph, 1)
        assert (await runner.run(graph, 1, replay=run)).rerun == {}
        second = before()  # now two classes have the name
        again = await runner.run(makes(Base, Base()), 1, replay=run)
    assert second is not kind
    assert again.rerun == {"make": "the output cannot be read back"}


async def test_a_record_of_before_is_read_as_before() -> None:
    """A run of an earlier version has plain JSON alone, and so it still is where that determines a value."""
    journal, graph = MemoryJournal(), makes(Answer, Answer(text="x"))
    async with Runner(journal=journal) as runner:
        run = await runner.run(graph, 1)
        row = next(row for row in await journal.calls(run.id) if row.key == "make")
        assert (row.input, row.output, row.output_whole) == ("1", '{"text":"x","sources":[]}', None)
        text = json.loads(run.to_json())
    for one in (text["run"], *text["calls"]):
        del one["input_whole"], one["output_whole"]
    assert Run.from_json(json.dumps(text), graph).call("make").output == Answer(text="x")


async def test_readers_of_plain_json_see_no_tags() -> None:
    """The plain value stays what pages, exports and servers show."""
    journal = MemoryJournal()
    run = await Runner(journal=journal).run(makes(dict[str, Any], {"at": date(2026, 1, 1), "raw": b"x"}), 1)
    row = next(row for row in await journal.calls(run.id) if row.key == "make")
    assert json.loads(row.output or "") == {"at": "2026-01-01", "raw": "eA=="}
    assert "$" not in (row.output or "")
