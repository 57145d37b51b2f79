"""No call takes the answer to another question, and a run goes on with the input that it began with."""

from __future__ import annotations

import dataclasses
import logging
import typing
from collections.abc import AsyncIterator, Iterable
from pathlib import Path
from typing import Any, Protocol
from uuid import UUID, uuid4

import pytest
from pydantic import BaseModel, Field, SecretStr
from pydantic_ai import Agent, ToolReturn
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Graph, ReplayError, Run, RunError, Runner, Stage, as_completed, fan_out, step
from stagegraph.journal import SqliteJournal
from stagegraph.tracing import JournalRuns


class Base(BaseModel):
    number: int = 0


class Derived(Base):
    name: str = ""


class Approve(BaseModel):
    reason: str = ""


class Reject(BaseModel):
    reason: str = ""


class Hidden(BaseModel):
    number: int = 0
    name: str = Field("", exclude=True)


class Secret(BaseModel):
    key: SecretStr


class Order(BaseModel):
    what: str
    id: UUID = Field(default_factory=uuid4)


@pytest.fixture(name="sqlite")
async def _sqlite(tmp_path: Path) -> AsyncIterator[SqliteJournal]:
    journal = SqliteJournal(tmp_path / "runs.db")
    yield journal
    await journal.aclose()


PAIRS: list[tuple[Any, Any, Any]] = [
    (Base, Derived(name="a"), Derived(name="b")),
    (Approve | Reject, Approve(), Reject()),
    (Hidden, Hidden(name="a"), Hidden(name="b")),
    (Any, 1, True),
    (int | bool, 1, True),
    (dict[str, Any], {"a": (1,)}, {"a": [1]}),
    (bytes | str, b"YQ==", "YQ=="),
]


def saying(type_: Any) -> tuple[Graph[list[Any], list[str]], Graph[list[Any], list[str]]]:
    """Graphs that say of each value what it is: in a fan-out, and as the values come."""

    async def say(value: Any) -> str:
        if fails:
            raise fails.pop()
        return repr(value)

    say.__annotations__ = {"value": type_, "return": str}
    one, other = step(say), step(say)

    class Fans(Graph[list[Any], list[str]]):
        say = one

        async def flow(self, values: list[Any]) -> list[str]:
            return await fan_out(self.say, items)

    class Comes(Graph[list[Any], list[str]]):
        say = other

        async def flow(self, values: list[Any]) -> list[str]:
            found: list[str] = []
            async with as_completed(self.say, items) as outcomes:
                async for outcome in outcomes:
                    assert outcome.ok
                    found.append(outcome.value)
            return found

    return Fans(), Comes()


items: list[Any] = []
fails: list[Exception] = []


@pytest.mark.parametrize(("type_", "one", "other"), PAIRS, ids=lambda part: str(part)[:40])
async def test_answers_stay_with_their_items(sqlite: SqliteJournal, type_: Any, one: Any, other: Any) -> None:
    """Not stale when an item changes, nor swapped when the items are reversed, nor crossed after a resume."""
    fans, comes = saying(type_)
    async with Runner(journal=sqlite, tracing=None) as runner:
        items[:] = [one, other]
        run = await runner.run(fans, [])
        assert run.output == [repr(one), repr(other)]
        for changed in ([other, one], [other, other], [one, one], [other]):
            items[:] = changed
            assert (await runner.run(fans, [], replay=run)).output == [repr(item) for item in changed]
        items[:] = [one, other]
        fails.append(ConnectionError("gone"))
        with pytest.raises(RunError):
            await runner.run(comes, [], run_id="c")
        items.reverse()
        resumed = await runner.resume("c")
    assert sorted(resumed.output) == sorted([repr(one), repr(other)])
    for call in resumed.calls(type(comes).say):
        assert call.output == repr(items[int(call.key[4])])


paid: list[str] = []


@step
async def act(decision: Approve | Reject) -> str:
    paid.append(type(decision).__name__)
    if fails:
        raise fails.pop()
    return "paid" if isinstance(decision, Approve) else "kept"


class Payment(Graph[str, str]):
    decide = Stage(str, Agent(output_type=[Approve, Reject]))
    act = act

    async def flow(self, text: str) -> str:
        return await self.act(await self.decide(text))


async def test_a_payment_that_was_rejected_stays_rejected(sqlite: SqliteJournal) -> None:
    """A recorded `Reject` is no `Approve` after a crash, though their fields are equal."""
    asked: list[int] = []

    def decide(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked.append(len(messages))
        reject = next(tool for tool in info.output_tools if tool.name.endswith("Reject"))
        return ModelResponse([ToolCallPart(reject.name, {"reason": "no"})])

    paid.clear()
    fails.append(ConnectionError("gone"))
    async with Runner(FunctionModel(decide), journal=sqlite, tracing=None) as runner:
        with pytest.raises(RunError):
            await runner.run(Payment(), "buy", run_id="r")
        run = await runner.resume("r")
        assert (run.output, run.call("decide").output, run.rerun) == ("kept", Reject(reason="no"), {})
        assert (len(asked), paid) == (1, ["Reject", "Reject"])
        # Another answer for the same question has other consequences, also when that run is resumed.
        fails.append(ConnectionError("gone"))
        with pytest.raises(RunError):
            await runner.run(Payment(), "buy", run_id="s", replay=run, override={"decide": Approve(reason="no")})
        again = await runner.resume("s")
    assert (again.output, again.call("decide").output) == ("paid", Approve(reason="no"))
    assert paid[2:] == ["Approve", "Approve"]


# -- the input of a run


@step
async def wait(number: int) -> int:
    if fails:
        raise fails.pop()
    return number


def described(value: Any) -> str:
    return f"{type(value).__name__} {getattr(value, '__dict__', value)!r}"


def echoing(type_: Any) -> tuple[Graph[Any, int], list[str]]:
    """A graph whose step fails the first time, and what it was given each time that the step did not."""
    seen: list[str] = []

    class Echo(Graph[type_, int]):  # type: ignore[valid-type]
        wait = wait

        async def flow(self, value: Any) -> int:
            await self.wait(1)
            seen.append(described(value))
            return 1

    Echo.__name__ = f"Echo{len(names)}"
    names.append(Echo.__name__)
    return Echo(), seen


names: list[str] = []


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Base, Derived(number=1, name="n")),
        (Approve | Reject, Reject(reason="r")),
        (bytes, b"YWJj\xff"),
        (bytes | str, b"YWJj"),
        (dict[int, tuple[int, ...]], {1: (2,)}),
        (Order, {"what": "cup"}),
        (str, "half \ud800"),
        (Hidden, Hidden(number=3)),
        (Any, {"at": (b"x", True)}),
    ],
    ids=lambda part: str(part)[:40],
)
async def test_a_run_goes_on_with_the_input_that_it_began_with(sqlite: SqliteJournal, type_: Any, value: Any) -> None:
    """Type included; what the defaults of its type made at random is not made again."""
    graph, seen = echoing(type_)
    fails.append(ConnectionError("gone"))
    async with Runner(journal=sqlite, tracing=None) as runner:
        with pytest.raises(RunError) as caught:
            await runner.run(graph, value, run_id="r")
        began = caught.value.run.input
        await runner.resume("r")
    assert seen == [described(began)]
    assert isinstance(value, dict) or seen == [described(value)]


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Secret, Secret(key=SecretStr("s3cret"))),
        (Hidden, Hidden(name="s3cret")),
        (dict[str, Any], {"key": SecretStr("s3cret")}),
        (Any, object()),
    ],
    ids=lambda part: str(part).split(" at 0x")[0][:40],
)
async def test_a_run_whose_input_cannot_be_read_back_says_so_first(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, type_: Any, value: Any
) -> None:
    """It runs, and warns; it is not resumed with half of its input, but with the input given again."""
    journal = SqliteJournal(tmp_path / "runs.db")
    graph, seen = echoing(type_)
    fails.append(ConnectionError("gone"))
    async with Runner(journal=journal, tracing=None) as runner:
        with caplog.at_level(logging.WARNING, "stagegraph"), pytest.raises(RunError):
            await runner.run(graph, value, run_id="r")
        assert "resume(run_id, input=...)" in caplog.text
        with pytest.raises(ReplayError, match=r"does not hold its whole input.*resume\('r', input=\.\.\.\)"):
            await runner.resume("r")
        with pytest.raises(ReplayError, match="does not hold its whole input"):
            await runner.start_resume("r")
        await runner.resume("r", input=value)
        caplog.clear()
        await runner.run(graph, value)
        assert "resume(run_id" not in caplog.text
    await journal.aclose()
    assert seen == [described(value)] * 2
    assert not any(b"s3cret" in file.read_bytes() for file in tmp_path.iterdir())  # noqa: ASYNC240


async def test_an_input_whose_class_is_gone_is_no_other_one(sqlite: SqliteJournal) -> None:
    """The run is refused before anything runs, instead of going on with what its plain data looks like."""
    graph, seen = echoing(Base)
    fails.append(ConnectionError("gone"))
    async with Runner(journal=sqlite, tracing=None) as runner:
        with pytest.raises(RunError):
            await runner.run(graph, Derived(name="n"), run_id="r")
        row = await sqlite.run("r")
        assert row is not None
        await sqlite.put(dataclasses.replace(row, input_whole=(row.input_whole or "").replace("Derived", "Renamed")))
        with pytest.raises(ReplayError, match="the input of run 'r' cannot be read back as Base"):
            await runner.resume("r")
        await runner.resume("r", input=Derived(name="n"))
    assert seen == [described(Derived(name="n"))]


@step
async def seek(secret: Secret | Reject) -> Hidden:
    return Hidden(name="n" if isinstance(secret, Secret) else "")


class Seeks(Graph[Approve | Reject, int]):
    seek = seek

    async def flow(self, value: Approve | Reject) -> int:
        await self.seek(Secret(key=SecretStr("s3cret")))
        await self.seek(Reject(reason="r"))
        return 1


async def test_examples_are_made_of_whole_values_alone(sqlite: SqliteJournal) -> None:
    """Nothing is learnt from a masked secret or an excluded field that fell back to its default."""

    async with Runner(journal=sqlite, tracing=None) as runner:
        for decision in (Reject(reason="no"), Approve(reason="no")):
            await runner.run(Seeks(), decision)
    source = JournalRuns(sqlite)
    given = [example.input for example in await source.examples(Seeks())]
    assert given == [Approve(reason="no"), Reject(reason="no")]  # two inputs, with the same fields
    [example] = await source.examples(Seeks(), stage=Seeks.seek)
    assert (example.input, example.expected) == (Reject(reason="r"), Hidden())
    assert source.skipped == {"the record does not hold the whole input": 2, "the same input again": 1}


# -- programs behave with a journal as without one


class Object:
    """It has no JSON."""


class Silent(Model):
    """A model that asks for a tool once, and serializes nothing by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.requests = 0

    @property
    def model_name(self) -> str:
        return "silent"

    @property
    def system(self) -> str:
        return "test"

    async def request(
        self, messages: list[ModelMessage], model_settings: Any, model_request_parameters: ModelRequestParameters
    ) -> ModelResponse:
        self.requests += 1
        if isinstance(messages[-1], ModelRequest) and len(messages) > 1:
            return ModelResponse([TextPart("done")])
        return ModelResponse([ToolCallPart("look", {}, tool_call_id="1")])


def looking(result: Any) -> tuple[Graph[str, str], list[str]]:
    agent, looked = Agent(), list[str]()

    @agent.tool_plain
    def look() -> Any:
        looked.append("look")
        return result() if callable(result) else result

    class Looks(Graph[str, str]):
        ask = Stage(str, agent)

        async def flow(self, text: str) -> str:
            answer = await self.ask(text)
            if fails:
                raise fails.pop()
            return answer

    return Looks(), looked


@pytest.mark.parametrize(
    "result",
    [
        lambda: ToolReturn("fine", metadata=Object()),
        lambda: ToolReturn("fine", metadata={"found": [Object()]}),
        lambda: {"found": [(1, b"x")], "none": float("nan")},
    ],
)
async def test_a_tool_may_return_any_object(
    sqlite: SqliteJournal, caplog: pytest.LogCaptureFixture, result: Any
) -> None:
    """Where no record can hold it, that one operation has none; a run that failed later is resumed all the same."""
    graph, looked = looking(result)
    without = await Runner(Silent(), tracing=None).run(graph, "x")
    model = Silent()
    fails.append(ConnectionError("gone"))
    with caplog.at_level(logging.WARNING, "stagegraph"):
        async with Runner(model, journal=sqlite, tracing=None) as runner:
            with pytest.raises(RunError, match="ConnectionError"):
                await runner.run(graph, "x", run_id="r")
            run = await runner.resume("r")
    assert (run.output, run.rerun) == (without.output, {})
    assert (model.requests, looked) == (2, ["look"] * 2)  # once without a journal, and once with one
    assert Run.from_json(run.to_json(), graph).output == "done"


async def test_an_operation_without_a_record_is_made_again(
    sqlite: SqliteJournal, caplog: pytest.LogCaptureFixture
) -> None:
    """An agent that is interrupted after such a tool runs it again, which is said once."""
    agent, looked = Agent(), list[str]()

    @agent.tool_plain
    def find() -> Any:
        looked.append("find")
        return ToolReturn("fine", metadata=Object())

    @agent.output_validator
    def check(text: str) -> str:
        if fails:
            raise fails.pop()
        return text

    class Finds(Graph[str, list[str]]):
        find = Stage(str, agent)

        async def flow(self, text: str) -> list[str]:
            return await fan_out(self.find, [text] * 3)

    class Model(Silent):
        async def request(self, *args: Any, **kwargs: Any) -> ModelResponse:
            answer = await super().request(*args, **kwargs)
            for part in answer.parts:
                if isinstance(part, ToolCallPart):
                    part.tool_name = "find"
            return answer

    fails.append(ConnectionError("gone"))
    with caplog.at_level(logging.WARNING, "stagegraph"):
        async with Runner(Model(), journal=sqlite, tracing=None) as runner:
            with pytest.raises(RunError):
                await runner.run(Finds(), "x", run_id="r")
            run = await runner.resume("r")
    assert run.output == ["done"] * 3
    assert 3 < len(looked) <= 6
    said = [record for record in caplog.records if "has no record" in record.getMessage()]
    assert len(said) == 1


async def test_half_a_surrogate_pair_in_the_arguments_of_a_tool(sqlite: SqliteJournal) -> None:
    """A provider that gives arguments as data may give one; the call is recorded all the same."""
    agent, looked = Agent(), list[str]()

    @agent.tool_plain
    def look(text: str) -> str:
        looked.append(text)
        return text

    class Half(Silent):
        async def request(self, *args: Any, **kwargs: Any) -> ModelResponse:
            answer = await super().request(*args, **kwargs)
            for part in answer.parts:
                if isinstance(part, ToolCallPart):
                    part.args = {"text": "\udcff"}
            return answer

    class Looks(Graph[str, str]):
        ask = Stage(str, agent)

        async def flow(self, text: str) -> str:
            return await self.ask(text)

    async with Runner(Half(), journal=sqlite, tracing=None) as runner:
        run = await runner.run(Looks(), "\ud800")
        assert (await runner.run(Looks(), "\ud800", replay=run)).rerun == {}
    assert (run.output, looked) == ("done", ["\udcff"])


Names = typing.TypedDict("Names", {"name": str, "more": list})  # noqa: UP013


class Named(Protocol):
    number: int


@step
async def whole(names: Names) -> Names:
    return {**names, "more": [(1, b"x")]}


@step
async def number_of(named: Named) -> int:
    return named.number


@step
async def total(numbers: Iterable[int]) -> int:
    return sum(numbers)


@step
async def half(text: str) -> str:
    return text + "\udcff"


@step
async def first(values: dict[str, Any]) -> int:
    return next(values["numbers"])


@pytest.mark.parametrize(
    ("node", "given", "output", "recalls"),
    [
        (whole, lambda: {"name": "x", "more": [1]}, {"name": "x", "more": [(1, b"x")]}, True),
        (number_of, lambda: Base(number=3), 3, False),
        (total, lambda: [1, 2], 3, True),
        (total, lambda: iter([1, 2]), 3, False),
        (total, lambda: (number for number in range(3)), 3, False),
        (first, lambda: {"numbers": iter([7, 8])}, 7, False),
        (half, lambda: "\udcff", "\udcff\udcff", True),
    ],
    ids=["typing.TypedDict", "Protocol", "list", "iterator", "generator", "nested", "surrogates"],
)
async def test_types_and_values_that_json_does_not_know(
    sqlite: SqliteJournal, node: Any, given: Any, output: Any, recalls: bool
) -> None:
    """A step gives what it gives without a journal; nothing is used up, paid twice in silence, or lost on the way."""
    assert (await Runner(tracing=None).run(node, given())).output == output
    async with Runner(journal=sqlite, tracing=None) as runner:
        run = await runner.run(node, given())
        again = await runner.run(node, given(), replay=run)
    assert (run.output, again.output) == (output, output)
    assert again.root.replayed is recalls
    lost = {node.__node__.name: "the input cannot be written down whole"}
    assert again.rerun == ({} if recalls else lost)
    reread = Run.from_json(run.to_json(), node)
    assert (reread.output, reread.edges()) == (output, [])


class Silenced:
    def __repr__(self) -> str:
        raise RuntimeError


class Tree(BaseModel):
    inside: list[Tree] = []


def circle() -> Tree:
    tree = Tree()
    tree.inside.append(tree)
    return tree


def nested(depth: int) -> list[Any]:
    found: list[Any] = []
    for _ in range(depth):
        found = [found]
    return found


@step
async def anything(value: Any) -> Any:
    return value


@step
async def tree_of(value: Tree) -> Tree:
    return value


@pytest.mark.parametrize(
    ("node", "value"),
    [
        (anything, Silenced()),
        (anything, nested(5_000)),
        (anything, circle().inside),
        (tree_of, circle()),
        (anything, 10**5_000),
    ],
    ids=["repr raises", "deep", "circle", "circle of models", "huge"],
)
async def test_odd_values_pass_as_without_a_journal(sqlite: SqliteJournal, node: Any, value: Any) -> None:
    """A journal never makes a call fail because of what it is given or gives; such a call is made again."""
    async with Runner(journal=sqlite, tracing=None) as runner:
        run = await runner.run(node, value)
        again = await runner.run(node, value, replay=run)
    assert run.output is value
    assert again.output is value
    assert again.rerun == {node.__node__.name: "the input cannot be written down whole"}


@step
async def any_model(value: BaseModel) -> BaseModel:
    return value


@step
async def any_models(values: list[BaseModel]) -> list[BaseModel]:
    return values


@pytest.mark.parametrize("node", [any_model, any_models], ids=["alone", "in a list"])
async def test_the_base_of_all_models_is_a_type_as_any(sqlite: SqliteJournal, node: Any) -> None:
    """`BaseModel` takes every model, and its record says which one it was."""
    for value in (Approve(reason="r"), Reject(reason="r"), Derived(name="n")):
        given = value if node is any_model else [value]
        async with Runner(journal=sqlite, tracing=None) as runner:
            run = await runner.run(node, given)
            again = await runner.run(node, given, replay=run)
        assert again.root.replayed
        assert again.output == given
        assert type(again.output if node is any_model else again.output[0]) is type(value)
    with pytest.raises(RunError, match="BaseModel"):
        await Runner(tracing=None).run(node, 3)
