"""Declaring graphs, and running them by their own methods."""

from __future__ import annotations

import asyncio
import copy
import threading
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from types import new_class
from typing import Annotated, Any, Generic, Literal, TypeVar, cast

import anyio
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from scripted import Still, asked, echo, others, says
from stagegraph import DeclarationError, Graph, InputError, NotRunningError, RunError, Runner, Stage, current_call, step


class Text(BaseModel):
    body: str


class Word(BaseModel):
    text: str


def stage(name: str = "") -> Stage[str, str]:
    return Stage(str, Agent(output_type=str, instructions=f"I am {name}.", name=name or None))


@step
async def shout(text: str) -> str:
    return text.upper()


@step
async def double(text: str) -> str:
    return text * 2


@step
async def length(text: str) -> int:
    return len(text)


class Inner(Graph[str, str]):
    """One stage and one step."""

    write = stage("write")
    shout = shout

    async def flow(self, text: str) -> str:
        return await self.shout(await self.write(text))


class Outer(Graph[Text, Word]):
    """Two instances of one graph class, and a stage of its own."""

    first = Inner()
    second = Inner()
    judge = stage("judge")

    async def flow(self, text: Text) -> Word:
        a = await self.first(text.body)
        b = await self.second(a + "!")
        return Word(text=await self.judge(b))


def keys(run) -> list[str]:
    return [call.key for call in run.root.walk()]


async def test_data_moves_through_stages_steps_and_nested_graphs():
    """Values are ordinary return values; two instances of one graph class have separate paths and keys."""
    run = await Outer().run(Text(body="hi"), model=echo())
    assert (run.output, run.status, run.graph) == (Word(text="HI!"), "succeeded", "Outer")
    assert keys(run) == ["", "first", "first.write", "first.shout", "second", "second.write", "second.shout", "judge"]
    assert [call.path for call in run.root.walk()] == keys(run)
    assert run.call("second.write").input == "HI!"
    run = await Outer().run(Text(body="hi"), model=says("one", "two", "three"))  # the run's model, however deep
    assert (run.output, run.usage.requests) == (Word(text="three"), 3)


async def test_a_second_call_in_the_same_place_is_numbered():
    """Calling one node again in the same place gives `#1`, `#2`, ... and keeps the path."""

    class Loop(Graph[str, str]):
        double = double

        async def flow(self, text: str) -> str:
            for _ in range(3):
                text = await self.double(text)
            return text

    run = await Loop().run("a")
    assert run.output == "a" * 8
    assert keys(run)[1:] == ["double", "double#1", "double#2"]
    assert {call.path for call in run.calls()} == {"double"}


async def test_nodes_may_be_set_in_init():
    """A graph may be parametrized: nodes set in `__init__` have their attribute's name."""

    class Made(Graph[str, str]):
        def __init__(self, text: str) -> None:
            self.write = Stage(str, Agent(output_type=str, instructions=text))

        async def flow(self, text: str) -> str:
            return await self.write(text)

    def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(info.instructions or "")])

    one, two = Made("Be brief."), Made("Be long.")
    model = FunctionModel(answer)
    assert (await one.run("x", model=model)).output == "Be brief."
    assert (await two.run("x", model=model)).output == "Be long."
    assert keys(await one.run("x", model=model)) == ["", "write"]


async def test_nodes_may_stand_in_lists_tuples_and_dicts():
    """Nodes inside collections have paths such as `experts.0` and `tools.fast`, however deep they stand."""

    class Crowd(Graph[str, list[str]]):
        pair = (double, shout)

        def __init__(self) -> None:
            self.experts = [stage("a"), stage("b")]
            self.tools = {"fast": Inner(), "deep": {"er": [length]}}

        async def flow(self, text: str) -> list[str]:
            said = [await expert(text) for expert in self.experts]
            fast = await self.tools["fast"](text)
            await self.tools["deep"]["er"][0](text)
            return [*said, fast, await self.pair[1](await self.pair[0](text))]

    run = await Crowd().run("a", model=echo())
    assert run.output == ["a", "a", "A", "AA"]
    expected = ["experts.0", "experts.1", "tools.fast", "tools.fast.write", "tools.fast.shout", "tools.deep.er.0"]
    assert keys(run)[1:] == [*expected, "pair.0", "pair.1"]


async def test_a_subclass_may_redeclare_or_remove_a_node():
    """It runs at the path of the one it replaces, which still finds its calls; a name set to something else is none."""

    class Quiet(Inner):
        shout = double

    class Short(Inner):
        shout = None

        async def flow(self, text: str) -> str:
            return await self.write(text)

    run = await Quiet().run("ab", model=echo())
    assert run.output == "abab"
    assert [call.key for call in run.calls(Inner.shout)] == ["shout"]
    assert [call.key for call in run.calls(Quiet.shout)] == ["shout"]
    run = await Short().run("ab", model=echo())
    assert run.output == "ab"
    with pytest.raises(DeclarationError, match=r"not part of Short, which has: write"):
        run.calls(double)


T = TypeVar("T")


class Twice(Graph[T, list[T]], Generic[T]):
    """A generic graph."""

    async def flow(self, value: T) -> list[T]:
        return [value, value]


class TwiceWord(Twice[Word]):
    """The generic graph for one type."""


async def test_a_generic_graph_checks_the_type_it_was_given():
    """A subclass that fills in a type variable takes and gives that type."""
    run = await TwiceWord().run({"text": "a"})
    assert run.output == [Word(text="a"), Word(text="a")]
    with pytest.raises(RunError, match="Word"):
        await TwiceWord().run({"nope": 1})


@dataclass
class Shop:
    name: str
    stock: int


async def test_deps_reach_every_stage_and_a_selector_narrows_them():
    """Tools see the run's deps as `ctx.deps`; `Stage(deps=)` gives an agent only what it needs."""
    seen: list[object] = []

    def with_tool() -> Agent[object, str]:
        agent = Agent(output_type=str, deps_type=object)

        @agent.tool
        def look(ctx: RunContext[object]) -> str:
            seen.append(ctx.deps)
            return "ok"

        return agent

    class Deep(Graph[str, str]):
        whole = Stage(str, with_tool())

        async def flow(self, text: str) -> str:
            return await self.whole(text)

    class Uses(Graph[str, str]):
        deep = Deep()
        narrow = Stage(str, with_tool(), deps=lambda shop: shop.stock)

        async def flow(self, text: str) -> str:
            assert current_call().deps is shop
            return await self.narrow(await self.deep(text))

    shop = Shop("corner", 7)
    await Uses().run("x", model=TestModel(), deps=shop)
    assert seen == [shop, 7]


def test_run_sync_runs_without_a_loop():
    """Scripts need no event loop of their own, may run twice in a row, and use a thread, also beside a running loop."""
    graph = Outer()
    assert [graph.run_sync(Text(body="hi"), model=echo()).output.text for _ in range(2)] == ["HI!", "HI!"]
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(Inner().run_sync("a", model=echo()).output))
    thread.start()
    thread.join()
    assert found == ["A"]

    async def beside() -> str:
        return (await asyncio.to_thread(lambda: Inner().run_sync("a", model=echo()))).output

    assert asyncio.run(beside()) == "A"


async def test_run_sync_inside_a_loop_says_what_to_write_instead():
    """Where a loop runs, `run_sync` is refused at once with the line to write, and nothing is left behind."""
    before = others()
    with pytest.raises(NotRunningError, match=r"write `await Inner\(\)\.run\(\.\.\.\)` instead"):
        Inner().run_sync("a", model=echo())
    assert others() == before


async def test_run_and_runner_run_are_the_same():
    """`graph.run(...)` and `runner.run(graph, ...)` give the same record."""
    options = {"run_id": "r1", "tags": ("a",), "session_id": "s", "user_id": "u", "metadata": {"k": 1}}
    one = await Inner().run("a", model=echo(), **options)
    two = await Runner().run(Inner(), "a", model=echo(), **options)
    for run in (one, two):
        assert (run.id, run.tags, run.session_id, run.user_id, dict(run.metadata)) == ("r1", ("a",), "s", "u", {"k": 1})
    assert (one.output, keys(one)) == (two.output, keys(two))


def test_the_flow_must_be_an_async_function():
    """A `flow` that is not async, or that yields, is refused when the class is written."""
    with pytest.raises(DeclarationError, match=r"Sync\.flow must be `async def flow"):

        class Sync(Graph[str, str]):
            def flow(self, text: str) -> str:
                return text

    with pytest.raises(DeclarationError, match="with no `yield` in it"):

        class Yields(Graph[str, str]):
            async def flow(self, text: str):
                yield text


@pytest.mark.parametrize("name", ["run", "run_sync", "mermaid", "as_tool", "as_agent", "flow"])
async def test_a_node_may_not_hide_what_every_graph_has(name: str):
    """A node called `run`, declared or set in `__init__`, would take away the graph's own `run`; the error says so."""
    with pytest.raises(DeclarationError, match=rf"\.{name}: every graph has a method `{name}`"):
        type("Hides", (Graph,), {name: shout})

    class Hides(Still):
        def __init__(self) -> None:
            setattr(self, name, shout)

    if name != "flow":
        with pytest.raises(DeclarationError, match=rf"Hides\.{name}: every graph has a method `{name}`"):
            await Runner().run(Hides(), "a")


@pytest.mark.parametrize("name", ["label", "kind", "takes", "gives", "name", "tree", "input_type", "nodes", "call"])
async def test_a_node_may_have_any_other_name(name: str):
    """What the framework keeps about a node stands in one dunder, so that users may call a classifier `label`."""

    class Uses(Graph[str, str]):
        async def flow(self, text: str) -> str:
            return await getattr(self, name)(text)

    declared = type("Declares", (Uses,), {name: shout})
    run = await Runner().run(declared(), "a")
    assert [call.path for call in run.calls()] == [name]


@pytest.mark.parametrize("name", ["_private", "__dunder__"])
def test_a_private_name_is_no_name_of_a_node(name: str):
    """Names of nodes are parts of paths, which people read; the error says so."""
    with pytest.raises(DeclarationError, match="must not begin with an underscore"):
        type("Hides", (Graph,), {name: shout})


async def test_the_same_node_twice_in_one_graph_is_refused():
    """A call could not say which of two names it means, so the error names both and the remedy."""

    class Double(Still):
        one = shout
        two = shout

    with pytest.raises(
        DeclarationError, match=r"the same step twice, as `one` and `two`.*make a second Step for `two`"
    ):
        await Double().run("a")


async def test_a_graph_that_contains_itself_is_refused():
    """Recursion in the declaration has no end of paths; the error says how to write it."""

    class Endless(Still):
        def __init__(self) -> None:
            self.again = Wrapper(self)

    class Wrapper(Still):
        def __init__(self, inner: Endless) -> None:
            self.inner = inner

    with pytest.raises(DeclarationError, match=r"Endless contains itself at `again\.inner`.*fan out over that"):
        await Endless().run("a")


async def test_one_stage_may_stand_in_two_graphs():
    """It has two paths, each call goes to the graph that made it, and errors name it by the graph that runs."""
    shared = stage("shared")

    class Low(Graph[str, str]):
        write = shared

        async def flow(self, text: str) -> str:
            return await self.write(text)

    class High(Graph[str, str]):
        own = shared
        low = Low()

        async def flow(self, text: str) -> str:
            return await self.low(await self.own(text))

    class Wrong(Graph[int, str]):
        second = shared

        async def flow(self, number: int) -> str:
            return await self.second(number)  # type: ignore[arg-type]

    run = await High().run("a", model=echo())
    assert [(call.key, call.path) for call in run.calls(shared)] == [("low.write", "low.write"), ("own", "own")]
    with pytest.raises(RunError, match=r"stage `second` was given int 3, but it takes str"):
        await Wrong().run(3)


async def test_a_stage_that_the_graph_does_not_declare_is_refused():
    """The error names the stage, the graph, where the call was, and the line to write."""
    elsewhere = stage("elsewhere")

    class Low(Graph[str, str]):
        async def flow(self, text: str) -> str:
            return await elsewhere(text)

    class High(Graph[str, str]):
        low = Low()

        async def flow(self, text: str) -> str:
            return await self.low(text)

    with pytest.raises(RunError) as caught:
        await High().run("a", model=echo())
    assert isinstance(caught.value.__cause__, DeclarationError)
    text = str(caught.value)
    assert "at `low`, the flow of Low called stage `elsewhere`, which Low does not declare" in text
    assert "write `elsewhere = ...` in the class body of Low and call `self.elsewhere(...)`" in text
    elsewhere = Inner.write
    with pytest.raises(RunError, match=r"it is declared as `inner\.write`, in another graph"):
        await type("Other", (Low,), {"inner": Inner()})().run("a", model=echo())


async def test_a_flow_that_returns_the_wrong_type_is_an_error_that_names_the_graph():
    """The output is checked against the declared type, and the error says which graph, what came and what should."""

    class Liar(Graph[str, Word]):
        async def flow(self, text: str) -> Word:
            return text

    class High(Graph[str, Word]):
        low = Liar()

        async def flow(self, text: str) -> Word:
            return await self.low(text)

    with pytest.raises(RunError) as caught:
        await High().run("a")
    assert "graph Liar (`low`) returned" in str(caught.value)
    assert "str" in str(caught.value)
    assert "Word" in str(caught.value)
    assert [call.key for call in caught.value.failures] == ["low"]

    class Forgets(Graph[str, str]):
        async def flow(self, text: str) -> str:
            await anyio.lowlevel.checkpoint()

    with pytest.raises(RunError, match="graph Forgets returned None"):
        await Forgets().run("a")


async def test_a_node_of_the_wrong_type_gets_no_call():
    """A value of the wrong type stops at the node's door: the model is not asked."""
    prompts: list[str] = []

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        prompts.append(asked(messages))
        return ModelResponse([TextPart("x")])

    class Wrong(Graph[int, str]):
        write = stage("write")

        async def flow(self, number: int) -> str:
            return await self.write(number)

    with pytest.raises(RunError) as caught:
        await Wrong().run(3, model=FunctionModel(answer))
    assert "stage `write` was given" in str(caught.value)
    assert "int" in str(caught.value)
    assert "takes str" in str(caught.value)
    assert prompts == []


async def test_the_outer_door_turns_data_into_the_input_type():
    """`run` takes a dict where the graph takes a model; what does not fit is refused with the field's name."""
    run = await Outer().run({"body": "hi"}, model=echo())
    assert run.input == Text(body="hi")
    with pytest.raises(RunError, match=r"does not fit Text, which Outer takes: body: Field required"):
        await Outer().run({}, model=echo())


CALLS: list[Coroutine] = []
FORGOTTEN = r"Forgets failed: Text was given a coroutine as `body` \(is an `await` missing before a call\?\)$"


@pytest.mark.parametrize(
    ("where", "said"),
    [
        ("input", r"coroutine .*, but it \w+ str: write `await` before the call"),
        ("output", r"coroutine .*, but it \w+ str: write `await` before the call"),
        ("use", r"'coroutine' object has no attribute 'upper' \(is an `await` missing"),
        ("index", r"'coroutine' object is not subscriptable \(is an `await` missing"),
        ("model", FORGOTTEN),
    ],
)
async def test_a_forgotten_await_is_named(where: str, said: str):
    """It is the commonest slip in a flow, so the error says what to write, and Python warns of nothing."""

    class Forgets(Graph[str, str]):
        shout = shout
        double = double

        async def flow(self, text: str) -> str:
            call = self.shout(text)
            if where == "input":
                return await self.double(call)
            if where == "model":
                return Text(body=call).body  # type: ignore[arg-type]
            if where == "output":
                return call
            if where == "index":
                CALLS.append(call)
                return call["x"]  # type: ignore[index]
            try:
                return call.upper()  # type: ignore[attr-defined]
            finally:
                call.close()  # no warning of it in this suite

    with pytest.raises(RunError, match=said):
        await Forgets().run("a")
    while CALLS:
        CALLS.pop().close()


async def test_an_error_that_has_to_do_with_no_call_has_no_such_hint():
    """A `TypeError` beside a call that was awaited is not blamed on an `await`."""

    class Adds(Graph[str, str]):
        shout = shout

        async def flow(self, text: str) -> str:
            call = self.shout(text)
            return await call + len(text)  # type: ignore[operator]

    with pytest.raises(RunError, match=r"TypeError: can only concatenate str \(not \"int\"\) to str$"):
        await Adds().run("a")


async def test_a_type_that_is_known_nowhere_is_refused():
    """A forward reference that cannot be found says what to do."""

    class Late(Graph["Nowhere", str]):
        async def flow(self, value: object) -> str:
            return ""

    with pytest.raises(DeclarationError, match="the type 'Nowhere' is not known at module level"):
        await Late().run("a")


class Early(Graph["list[Letter]", 'dict[str, "Letter"]']):
    async def flow(self, letters: list[Letter]) -> dict[str, Letter]:
        return {letter.text: letter for letter in letters}


class Nested(Graph[list["Letter"], "Letter"]):
    async def flow(self, letters: list[Letter]) -> Letter:
        return letters[0]


class Letter(BaseModel):
    text: str


async def test_a_type_that_is_defined_later_may_stand_inside_another_one():
    """Names of types are looked up wherever they stand, and what comes in is validated all through."""
    data: Any = [{"text": "a"}]
    assert (await Early().run(data)).output == {"a": Letter(text="a")}
    assert (await Nested().run(data)).output == Letter(text="a")
    with pytest.raises(InputError, match=r"0\.text: Field required"):
        await Nested().run(cast("Any", [{"x": 1}]))


async def test_the_flow_decides_in_plain_python_what_runs_next():
    """Loops, branches and ordinary exceptions work: what a step raises can be caught where it is called."""

    @step
    async def long_enough(text: str) -> str:
        if len(text) < 4:
            raise ValueError("too short")
        return text

    class Retry(Graph[str, str]):
        check = long_enough
        double = double

        async def flow(self, text: str) -> str:
            while True:
                try:
                    return await self.check(text)
                except ValueError:
                    text = await self.double(text)

    run = await Retry().run("a")
    assert run.output == "aaaa"
    assert [(call.key, call.status) for call in run.calls(long_enough)] == [
        ("check", "failed"),
        ("check#1", "failed"),
        ("check#2", "succeeded"),
    ]


async def test_a_tool_cannot_call_a_node_and_says_why():
    """Nodes are called by flows; an agent's tool that tries is told what to do."""
    agent = Agent(output_type=str)
    asked_for = stage("inner")

    @agent.tool_plain
    async def ask() -> str:
        return await asked_for("x")

    class Sneaky(Graph[str, str]):
        inner = asked_for
        outer = Stage(str, agent)

        async def flow(self, text: str) -> str:
            return await self.outer(text)

    def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart("ask", {})])

    with pytest.raises(RunError, match=r"stage `outer` called stage `inner`: only the flow of a graph calls nodes"):
        await Sneaky().run("a", model=FunctionModel(answer))


def test_a_graph_without_a_flow_cannot_be_made():
    """A graph class that says nothing about how data moves cannot be instantiated."""

    class Empty(Graph[str, str]):
        write = stage("write")

    with pytest.raises(TypeError, match="flow"):
        Empty()


@pytest.mark.parametrize("frozen", [True, False])
async def test_a_graph_may_be_a_dataclass(frozen: bool):
    """Nodes are told apart by identity: one may have no hash, and two may be equal."""

    @dataclass(frozen=frozen)
    class Times(Graph[str, str]):
        rounds: int = 2
        twice = double

        async def flow(self, text: str) -> str:
            for _ in range(self.rounds):
                text = await self.twice(text)
            return text

    class Both(Graph[str, str]):
        def __init__(self) -> None:
            self.one, self.other = Times(2), Times(2)

        async def flow(self, text: str) -> str:
            return await self.other(await self.one(text))

    assert (await Times(3).run("a")).output == "a" * 8
    done = await Both().run("a")
    assert done.output == "a" * 16
    assert keys(done) == ["", "one", "one.twice", "one.twice#1", "other", "other.twice", "other.twice#1"]
    assert "one (Times)" in Both().mermaid()


def test_a_mixin_does_not_hide_the_types_of_a_graph():
    """A generic class in front of a graph has types of its own; the graph's doors stay where they were."""
    Anything = TypeVar("Anything")

    class Mixin(Generic[Anything]):
        pass

    class Mixed(Mixin, Inner):
        pass

    assert (
        (Mixed().__node__.input_type.name, Mixed().__node__.output_type.name)
        == (Inner().__node__.input_type.name, Inner().__node__.output_type.name)
        != ("Any", "Any")
    )


async def test_what_does_not_fit_a_model_of_the_flow_is_told_in_full():
    """Other values that a model refuses keep pydantic's own words."""

    class Wrong(Graph[str, str]):
        async def flow(self, text: str) -> str:
            return Text.model_validate({"body": 3}).body

    with pytest.raises(
        RunError, match=r"ValidationError: 1 validation error for Text\nbody\n  Input should be a valid"
    ):
        await Wrong().run("a")


@pytest.mark.parametrize(
    ("node", "written"),
    [(Inner, r"Inner\(\)"), (Stage, r"Stage\(Input, Agent\(\.\.\.\)\)"), (type(shout), r"Step\(function\)")],
)
def test_a_class_is_no_node(node: type, written: str):
    """`inner = Inner` is a slip that would be met inside a run, in words about `__init__`."""
    with pytest.raises(DeclarationError, match=rf"Has\.inner is the class \w+, not a node: write `inner = {written}`"):
        type("Has", (Graph,), {"inner": node})


async def test_a_graph_may_keep_classes():
    """One that is defined in it, or annotated, is no slip: a graph may be made out of a class that it was given."""

    class Keeps(Graph[str, str]):
        class Part(Graph[str, str]):
            shout = shout

            async def flow(self, text: str) -> str:
                return await self.shout(text)

        made_of: type[Graph[str, str]] = Part

        def __init__(self) -> None:
            self.part = self.made_of()

        async def flow(self, text: str) -> str:
            return await self.part(text)

    assert (await Keeps().run("a")).output == "A"


@pytest.mark.parametrize(
    "flow",
    [
        "async def flow(self, a: str, b: str) -> str: ...",
        "async def flow(self) -> str: ...",
        "async def flow(self, a: str, *, b: str) -> str: ...",
    ],
)
def test_a_flow_takes_one_value(flow: str):
    """Another number of values is met when the class is written, not inside a run."""
    made: dict[str, object] = {}
    exec(flow, made)  # noqa: S102 - written above
    with pytest.raises(
        DeclarationError, match=r"Has\.flow\(self.*\) -> 'str' must take one value|Has\.flow\(self.*must take"
    ):
        type("Has", (Graph,), {"flow": made["flow"]})


def test_a_flow_may_have_defaults():
    """What a flow takes beside its value has defaults, for calls in tests."""

    class Has(Graph[str, str]):
        async def flow(self, text: str, times: int = 1, **more: str) -> str:
            return text * times

    assert Has().run_sync("a").output == "a"


def test_an_agent_is_no_stage():
    """An agent in the place of a stage would be in no record: the class says so; other agents are annotated or private."""
    agent = Agent(output_type=str)
    with pytest.raises(
        DeclarationError, match=r"Has\.triage is a Pydantic AI agent, .*: write `triage = Stage\(Input, agent"
    ):
        type("Has", (Graph,), {"triage": agent})
    with pytest.raises(
        DeclarationError, match=r"a stage has the type of its input and an agent: write Stage\(Ticket, "
    ):
        Stage(agent)
    with pytest.raises(DeclarationError, match=r"a stage has the type of its input and an agent"):
        Stage(str)

    class Keeps(Graph[str, str]):
        shared = agent
        say = Stage(str, shared)
        helper: Agent = Agent()
        _other = Agent()

        async def flow(self, text: str) -> str:
            return await self.say(text)

    assert list(Keeps().__node__.tree.nodes) == ["", "say"]
    assert copy.copy(Keeps.say).agent is agent


Wrote = TypeVar("Wrote")


async def test_a_flow_that_is_annotated_otherwise_is_refused():
    """The types of a graph are those in its brackets; a flow that says something else is a slip, told before it runs."""

    class Takes(Graph[str, str]):
        async def flow(self, text: int) -> str:
            return str(text)

    class Returns(Graph[str, list[str]]):
        async def flow(self, text: str) -> str:
            return text

    with pytest.raises(
        DeclarationError, match=r"the flow of Takes takes int, but .* Graph\[str, str\]: write str in both"
    ):
        await Takes().run("a")
    with pytest.raises(DeclarationError, match=r"flow of Returns returns str, .* Graph\[str, list\[str\]\]"):
        await Returns().run("a")


@pytest.mark.parametrize(
    ("takes", "gives", "written", "returned"),
    [
        (str, str, object, Any),
        (int, float, float, int),
        (str, Sequence[str], str | None, list[str]),
        (str | int, Literal["a", "b"], str, str),
        (str, Wrote, Wrote, str),
        (Text, None, BaseModel, None),
        (Annotated[str, "x"], list[str], str, list),
        (dict[str, int], bool, Mapping, bool),
        ("Nowhere", str, "Nowhere", str),
    ],
    ids=repr,
)
def test_types_that_may_fit_are_left_to_the_type_checker(takes: Any, gives: Any, written: Any, returned: Any):
    """Wider and narrower types, numbers, protocols, type variables and unknown names are no slip."""

    async def flow(self: object, value: object) -> object:
        return value

    flow.__annotations__ = {"value": written, "return": returned}
    if takes == "Nowhere":
        takes = str
    graph = new_class("Has", (Graph[takes, gives],), exec_body=lambda body: body.update(flow=flow))
    assert graph().__node__.input_type is not None
