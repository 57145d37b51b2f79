"""A run as JSON and back: nothing is lost, every value has its type again, and what does not fit is refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from typing import Any, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ImageUrl
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ThinkingPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from typing_extensions import TypedDict

from scripted import Tidy, Turnstile, deletes, echo, priced
from stagegraph import (
    Call,
    Graph,
    InputError,
    Limits,
    Node,
    ReplayError,
    Run,
    RunError,
    Runner,
    Stage,
    fan_out,
    feedback,
    settle,
    step,
)
from stagegraph.journal import MemoryJournal
from stagegraph.record.rows import RunRecord
from stagegraph.record.run import stored_run


class Mood(Enum):
    GOOD = "good"


class Cat(BaseModel):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(BaseModel, strict=True):
    kind: Literal["dog"] = "dog"
    born: datetime = datetime(2020, 1, 2, tzinfo=UTC)
    tricks: frozenset[str] = frozenset({"sit"})


@dataclass
class Pair:
    pet: Cat | Dog
    price: Decimal = Decimal("0.10")
    moods: list[Mood] = field(default_factory=list)


class Row(TypedDict):
    name: str
    pets: list[Cat | Dog]


@step
async def cat(number: int) -> Cat | Dog:
    return Cat(lives=number)


@step
async def dog(text: str | None) -> Cat | Dog | None:
    return Dog(tricks=frozenset({text})) if text else None


@step
async def pair(pet: Cat | Dog) -> Pair:
    return Pair(pet, moods=[Mood.GOOD])


@step
async def row(pairs: list[Pair]) -> Row:
    return {"name": "r", "pets": [one.pet for one in pairs]}


@step
async def raw(row: Row) -> tuple[bytes, BinaryContent, ImageUrl]:
    return b"\x00\xff", BinaryContent(b"\x89PNG\xff", media_type="image/png"), ImageUrl(url="https://x/y.png")


class Zoo(Graph[list[int], Row]):
    """Unions, strict models, dataclasses, typed dicts, lists, bytes and media between its nodes."""

    cat = cat
    dog = dog
    pair = pair
    row = row
    raw = raw

    async def flow(self, numbers: list[int]) -> Row:
        pets = await fan_out(self.cat, numbers)
        pets += [pet for pet in await fan_out(self.dog, ["roll", None]) if pet]
        row = await self.row(await fan_out(self.pair, pets))
        await self.raw(row)
        return row


def facts(call: Call) -> Iterator[tuple[Any, ...]]:
    """Everything that a tree of calls says."""
    for one in call.walk():
        yield (
            one.path, one.key, one.kind, one.status, one.input, one.output, one.error, one.usage, one.cost, one.started,
            one.duration, one.attempts, one.messages, one.replayed, [child.key for child in one.children],
        )  # fmt: skip


NAMES = [
    "id", "graph", "status", "input", "output", "error", "started", "duration", "metadata", "tags", "session_id",
    "user_id", "pending", "feedback", "rerun", "prompts_digest", "usage", "cost",
]  # fmt: skip


def assert_same(run: Run[Any, Any], again: Run[Any, Any]) -> None:
    """Two records say the same."""
    assert {name: getattr(again, name) for name in NAMES} == {name: getattr(run, name) for name in NAMES}
    assert list(facts(again.root)) == list(facts(run.root))
    assert again.edges() == run.edges()
    assert again.mermaid() == run.mermaid()
    assert [call.key for call in again.failures()] == [call.key for call in run.failures()]
    assert again.to_json() == run.to_json()


@pytest.fixture(name="zoo")
async def _zoo() -> Run[list[int], Row]:
    return await Runner().run(
        Zoo(), [3, 4], run_id="z", tags=("a", "b"), metadata={"n": [1, None]}, session_id="s", user_id="u"
    )


async def test_everything_comes_back_in_its_type(zoo: Run[list[int], Row]) -> None:
    """The graph's own models, dataclasses, unions and bytes, not dicts and strings."""
    again = Run.from_json(zoo.to_json(), Zoo)
    assert_same(zoo, again)
    assert again.call("dog[0]").output == Dog(tricks=frozenset({"roll"}))
    assert isinstance(again.call("pair[1]").output, Pair)
    assert again.call("pair[1]").output.moods == [Mood.GOOD]
    assert again.call("raw").output[0] == b"\x00\xff"
    assert [type(part) for part in again.call("raw").output] == [bytes, BinaryContent, ImageUrl]
    assert (again.id, again.metadata["n"], again.input) == ("z", [1, None], [3, 4])
    with pytest.raises(ReplayError, match="which Talk does not declare"):
        Run.from_json(zoo.to_json(), Talk)


async def test_the_text_is_json_that_others_can_read(zoo: Run[list[int], Row]) -> None:
    """One object with a format number and the run's rows; it loads as bytes or text, by the class or an instance."""
    data = json.loads(zoo.to_json())
    assert (data["format"], data["run"]["graph"], data["run"]["status"]) == (2, "Zoo", "succeeded")
    assert data["run"]["labels"] == {
        "metadata": {"n": [1, None]},
        "tags": ["a", "b"],
        "session_id": "s",
        "user_id": "u",
    }
    assert data["calls"][1]["output"] == {"kind": "cat", "lives": 3}
    assert_same(zoo, Run.from_json(zoo.to_json().encode(), Zoo()))


class Look(BaseModel):
    picture: BinaryContent


class Talk(Graph[str, str]):
    say = Stage(str, Agent(instructions="Say."), retries=1)
    look = Stage(Look, Agent())

    async def flow(self, text: str) -> str:
        first = await self.say(text)
        await self.look(Look(picture=BinaryContent(b"\xff\x00", media_type="image/png")))
        outcomes = await settle(self.say, ["bad", "good"])
        return first + "".join(outcome.value for outcome in outcomes if outcome.ok)


async def test_messages_usage_and_prices_come_back() -> None:
    """What agents and models said, media and thoughts included; tokens, dollars, caught failures."""

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        content = messages[0].parts[0].content  # type: ignore[union-attr]
        if content == "bad":
            raise ValueError(content)
        parts = [ThinkingPart("Hm.", signature="s"), TextPart("said \u2028 ä")]
        return ModelResponse(parts, provider_details={"x": 1})

    run = await Runner(FunctionModel(answer)).run(Talk(), "hello")
    again = Run.from_json(run.to_json(), Talk)
    assert [call.usage for call in again.root.walk()] == [call.usage for call in run.root.walk()]
    assert [call.error for call in again.root.walk()] == [call.error for call in run.root.walk()]
    assert again.call("say[0]").status == "failed"
    content = again.call("look").messages[0].parts[0].content  # type: ignore[union-attr]
    assert b"\xff\x00" in [getattr(part, "data", None) for part in content]
    assert again.call("look").input.picture.data == b"\xff\x00"
    model, _ = priced("0.123456789")
    priced_run = await Runner(model).run(Talk.say, "x")
    assert_same(priced_run, Run.from_json(priced_run.to_json(), Talk.say))
    assert priced_run.cost == Decimal("0.123456789")


async def failed(graph: Any, value: object, model: Any = None, **options: Any) -> Run[Any, Any]:
    with pytest.raises(RunError) as caught:
        await Runner(model).run(graph, value, **options)
    return caught.value.run


@step
async def fail(text: str) -> str:
    msg = f"no {text}"
    raise ValueError(msg)


class Fails(Graph[str, str]):
    say = Stage(str, Agent())
    fail = fail

    async def flow(self, text: str) -> str:
        return await self.fail(await self.say(text))


class Wrong(Graph[str, str]):
    say = Stage(str, Agent())

    async def flow(self, text: str) -> str:
        await self.say(text)
        return await self.say(7)  # type: ignore[arg-type]


async def test_failed_runs_come_back() -> None:
    """A step that raised, an input of the wrong type inside, an input that was refused, a limit."""
    by_step = await failed(Fails(), "x", echo())
    assert_same(by_step, Run.from_json(by_step.to_json(), Fails))
    by_type = await failed(Wrong(), "x", echo())
    again = Run.from_json(by_type.to_json(), Wrong)
    assert_same(by_type, again)
    assert again.call("say#1").input == 7
    refused = await failed(Zoo(), ["x"])
    assert refused.error is not None
    assert refused.error.type == InputError.__name__
    assert_same(refused, Run.from_json(refused.to_json(), Zoo))
    limited = await failed(Fails(), "x", echo(), limits=Limits(requests=0))
    assert limited.status == "failed"
    assert_same(limited, Run.from_json(limited.to_json(), Fails))


async def test_a_run_that_goes_on_or_is_cancelled_can_be_written_down() -> None:
    """A partial record is a record."""
    gate = Turnstile()
    async with Runner(gate.model) as runner:
        live = runner.start(Fails(), "x")
        await gate.crowd(1)
        partial = live.run
        text = partial.to_json()
        gate.open()
        with pytest.raises(RunError):
            await live.result()
    again = Run.from_json(text, Fails)
    assert (again.status, again.call("say").status, again.output) == ("running", "running", None)
    assert_same(partial, again)

    class Waits(Graph[str, list[str]]):
        say = Stage(str, Agent())

        async def flow(self, text: str) -> list[str]:
            return await fan_out(self.say, [text] * 3)

    gate = Turnstile()
    live = Runner(gate.model).start(Waits(), "x")
    await gate.crowd(3)
    await live.cancel()
    assert live.run.status == "cancelled"
    assert_same(live.run, Run.from_json(live.run.to_json(), Waits))


async def test_a_suspended_run_comes_back_with_its_questions() -> None:
    """What waits for an answer is part of the record, and so are scores and what had to run again."""
    runner = Runner(FunctionModel(deletes), journal=MemoryJournal())
    run = await runner.run(Tidy(), "x")
    assert run.status == "suspended"
    again = Run.from_json(run.to_json(), Tidy)
    assert_same(run, again)
    (pending,) = again.pending
    assert (pending.tool, pending.args, pending.key) == ("delete", {"path": "old.log"}, "clean")
    finished = await runner.resume(run.id, answers={pending.id: True})
    await feedback(finished.id, "good", value=True, runner=runner)
    await feedback(finished.id, "stars", 4, key="clean", comment="nice", runner=runner)
    scored = await runner.resume(run.id)
    reread = Run.from_json(scored.to_json(), Tidy)
    assert_same(scored, reread)
    assert [(score.name, score.value) for score in reread.feedback] == [("good", True), ("stars", 4)]
    assert reread.feedback[0].value is True


async def test_the_rows_of_a_journal_are_the_same_json() -> None:
    """A run has one JSON form, whether it comes from the process that ran it or from a journal."""
    journal = MemoryJournal()
    run = await Runner(FunctionModel(lambda _m, _i: ModelResponse([TextPart("yes")])), journal=journal).run(
        Talk(), "x", tags=("a",), metadata={"n": 1}
    )
    row = await journal.run(run.id)
    assert row is not None
    text = RunRecord(run=row, calls=await journal.calls(run.id), feedback=await journal.feedback(run.id)).to_json()
    again = Run.from_json(text, Talk)
    assert (again.input, again.output, again.tags, again.metadata) == ("x", run.output, ("a",), {"n": 1})
    assert [(c.key, c.output, c.usage) for c in again.root.walk()] == [
        (c.key, c.output, c.usage) for c in run.root.walk()
    ]
    assert again.edges() == run.edges()
    assert Run.from_json(again.to_json(), Talk).to_json() == again.to_json()


def changed(run: Run[Any, Any], *place: Any, to: Any) -> str:
    """The run's JSON with one thing changed."""
    data = json.loads(run.to_json())
    inside = data
    for name in place[:-1]:
        inside = inside[name]
    inside[place[-1]] = to
    return json.dumps(data)


ROOT, CALL = ("calls", 0), ("calls", 1)


@pytest.mark.parametrize(
    ("place", "to", "message"),
    [
        ((*CALL, "output"), {"kind": "cow"}, r"does not fit Zoo: output of `cat\[0\]` is no Cat \| Dog|is no .*Cat"),
        ((*CALL, "input"), "many", r"does not fit Zoo: input of `cat\[0\]` is no int"),
        ((*CALL, "path"), "cow", r"a call `cat\[0\]` of `cow`, which Zoo does not declare"),
        ((*CALL, "messages"), [{"kind": "x"}], r"messages of `cat\[0\]`"),
        ((*ROOT, "output"), {"name": 5}, "output of `Zoo`"),
        ((*ROOT, "input"), 5, "input of `Zoo`"),
        ((*CALL, "parent"), "nowhere", r"calls without a parent: \['cat\[0\]'\]"),
        (("calls",), [], "it has no calls"),
        (("format",), 1, "in format 1, and this version of stagegraph reads format 2"),
        (("format",), 3, "in format 3, and this version of stagegraph reads format 2"),
    ],
    ids=str,
)
async def test_a_record_that_does_not_fit_is_refused_at_its_call(
    zoo: Run[list[int], Row], place: tuple[Any, ...], to: Any, message: str
) -> None:
    """The error says which call it is and what it should have been."""
    with pytest.raises(ReplayError, match=message):
        Run.from_json(changed(zoo, *place, to=to), Zoo)


@pytest.mark.parametrize(
    ("place", "to"),
    [
        ((*CALL, name), value)
        for name, values in {
            "cost": ["much", [], "0.1.2"],
            "duration": ["long", None],
            "status": ["fine", None],
            "started": ["yesterday", "2026-01-01", None, []],
            "usage": ["none", 3],
            "attempts": ["two", 1.5],
            "replayed": ["maybe"],
            "key": [5, None],
            "parent": [5, "x", None, "cat[0]"],
            "position": ["first", None],
            "error": [5, {"type": "x"}],
            "input": ["many"],
            "messages": [5, ["x"]],
        }.items()
        for value in values
    ]
    + [(("run", "run_id"), None), (("run", "status"), "odd"), (("run", "labels", "tags"), "x"), (("edges",), [["a"]]),
       (("run", "labels", "metadata"), []), (("run", "labels"), 5), (("run",), []), (("calls",), [5]), (("feedback",), [{}])],
    ids=str,
)  # fmt: skip
async def test_a_damaged_record_is_refused(zoo: Run[list[int], Row], place: tuple[Any, ...], to: Any) -> None:
    """No field is taken as it comes."""
    with pytest.raises(ReplayError):
        Run.from_json(changed(zoo, *place, to=to), Zoo)


@pytest.mark.parametrize(
    "text", ["", "x", "[]", "null", "5", "{}", '{"format": 2}', '{"format": 2, "run": {}}', b"\xff\xfe", "[" * 100_000]
)
def test_garbage_is_no_record(text: str | bytes) -> None:
    """Whatever text it is, the error is a `ReplayError`."""
    with pytest.raises(ReplayError, match="no record of a run"):
        Run.from_json(text, Zoo)


@given(st.binary(max_size=100) | st.text(max_size=100) | st.recursive(
    st.none() | st.integers() | st.text(max_size=3), lambda inner: st.lists(inner) | st.dictionaries(
        st.sampled_from(["format", "run", "run_id", "edges", "calls", "path"]), inner)).map(json.dumps))  # fmt: skip
def test_no_text_breaks_the_reader(text: str | bytes) -> None:
    """Anything that is no record is refused in one way."""
    with pytest.raises(ReplayError):
        Run.from_json(text, Zoo)


data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner, max_size=3),
    max_leaves=10,
)  # fmt: skip


@step
async def same(value: Any) -> Any:
    if isinstance(value, dict) and value.get("fail"):
        raise ValueError(str(value))
    return value


class Any1(Graph[Any, Any]):
    same = same

    async def flow(self, value: Any) -> Any:
        outcomes = await settle(self.same, [value, [value]])
        return [outcome.value for outcome in outcomes if outcome.ok]


@given(data, st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), data, max_size=2))
def test_any_data_survives(value: Any, metadata: dict[str, Any]) -> None:
    """Inputs, outputs and metadata of any shape come back equal."""
    run = asyncio.run(Runner().run(Any1(), value, metadata=metadata))
    assert_same(run, Run.from_json(run.to_json(), Any1))


class Odd:
    """A class without JSON."""


@step
async def odd(text: str) -> Odd:
    return Odd()


@step
async def half(text: str) -> str:
    return text + "\ud800"


@step
async def half_fails(text: str) -> str:
    raise OSError(text + "\udcff")


async def test_what_cannot_be_json_is_named_by_its_call() -> None:
    """A value without JSON: the call is named, in one line."""
    run = await Runner().run(odd, "x")
    with pytest.raises(RunError, match="call `odd`: a value cannot be written as JSON") as caught:
        run.to_json()
    assert "\n" not in str(caught.value)


async def test_a_text_that_is_no_unicode_comes_back() -> None:
    """Models do send half a surrogate pair: it is in the record, which can be written to a file, and comes back."""
    run = await Runner().run(half, "\udcff")
    text = run.to_json()
    again = Run.from_json(text.encode(), half)
    assert (again.input, again.output) == ("\udcff", "\udcff\ud800")
    assert json.loads(text)["run"]["output"] == "??"


async def test_an_error_text_of_any_kind_is_written() -> None:
    """A file name that is no Unicode in an error does not cost the record."""
    run = await failed(half_fails, "x")
    again = Run.from_json(run.to_json().encode(), half_fails)
    assert again.root.error is not None
    assert again.root.error.message == "x\\udcff"


@step
async def waits(seconds: float) -> float:
    if seconds < 0:
        raise TimeoutError(seconds)
    await asyncio.sleep(seconds)
    return 1 / seconds


def no_model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    del messages, info
    raise ModelHTTPError(503, "m")


@pytest.mark.parametrize(
    ("node", "given", "limits", "cause"),
    [
        (waits, "soon", None, "input"),
        (waits, 3600.0, Limits(seconds=0.01), "seconds"),
        (Stage(str, Agent(FunctionModel(no_model), name="asks")), "x", Limits(requests=0), "limit"),
        (Stage(str, Agent(FunctionModel(no_model), name="asks")), "x", None, "model"),
        (waits, -1.0, None, "timeout"),
        (waits, 0.0, None, None),
    ],
    ids=["input", "seconds", "limit", "model", "timeout", "own fault"],
)
async def test_what_kind_of_failure_ended_a_run_is_recorded(
    node: Node[Any, Any], given: object, limits: Limits | None, cause: str | None
) -> None:
    """Who reads the run knows it as well as who waited for it."""
    journal = MemoryJournal()
    with pytest.raises(RunError) as caught:
        await Runner(journal=journal, limits=limits).run(node, given)
    run = caught.value.run
    row = await journal.run(run.id)
    assert row is not None
    stored = await stored_run(journal, row, node)
    again = Run.from_json(run.to_json(), node)
    assert [one.error.cause for one in (run, stored, again) if one.error] == [cause] * 3
