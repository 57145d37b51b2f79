"""A graph that an agent calls inside a run is a part of that run."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, RunContext
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.toolsets import FunctionToolset

from scripted import Tidy, Turnstile, Who, deletes, echo, fails, others, priced
from stagegraph import Graph, LimitError, Limits, Prompts, Run, RunError, Runner, Stage, current_call, step
from stagegraph.journal import MemoryJournal, RunFilter, SqliteJournal
from stagegraph.record.run import stored_run

INNER: list[str] = []
"""What the inner graph's model was asked."""


class Fact(BaseModel):
    text: str


class Lookup(Graph[str, Fact]):
    """Finds a fact."""

    search = Stage(str, Agent(output_type=str, instructions="Search."))

    async def flow(self, text: str) -> Fact:
        return Fact(text=await self.search(text))


def answering(*calls: ToolCallPart, then: str = "done") -> FunctionModel:
    """Stages with tools make these calls at once and then answer; other stages say what they were asked."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        parts = [part for message in messages for part in message.parts]
        if not info.function_tools:
            asked = str(parts[-1].content)  # type: ignore[union-attr]
            INNER.append(asked)
            return ModelResponse([TextPart(f"found {asked}")])
        if any(isinstance(part, ToolReturnPart) for part in parts):
            return ModelResponse([TextPart(then)])
        return ModelResponse(list(calls))

    return FunctionModel(answer)


TWO = answering(
    ToolCallPart("lookup", {"input": "cats"}, tool_call_id="c1"),
    ToolCallPart("lookup", {"input": "dogs"}, tool_call_id="c2"),
)


class Outer(Graph[str, str]):
    ask = Stage(str, Agent(output_type=str, tools=[Lookup().as_tool()]))

    async def flow(self, text: str) -> str:
        return await self.ask(text)


KEYS = ["", "ask", "ask.lookup[c1]", "ask.lookup[c1].search", "ask.lookup[c2]", "ask.lookup[c2].search"]


def keys(run: Run[Any, Any]) -> list[str]:
    return sorted(call.key for call in run.root.walk())


async def test_its_calls_are_below_the_calling_stage():
    """One run: typed calls under the stage, each tool call by itself, and each request is counted once."""
    journal = MemoryJournal()
    runner = Runner(TWO, journal=journal)
    run = await runner.run(Outer(), "go")
    assert (run.output, keys(run)) == ("done", KEYS)
    assert [call.input for call in run.calls(Lookup.search)] == ["cats", "dogs"]
    assert run.call("ask.lookup[c1]").output == Fact(text="found cats")
    assert run.usage.requests == run.call("ask").usage.requests == 4
    assert run.call("ask.lookup[c2]").usage.requests == 1
    (row,) = await journal.runs(RunFilter())
    assert row.requests == 4
    again = await stored_run(journal, row, Outer())
    assert keys(again) == KEYS
    assert again.call("ask.lookup[c1]").output == Fact(text="found cats")
    assert again.usage.requests == again.call("ask").usage.requests == 4
    copied = Run.from_json(run.to_json(), Outer())
    assert keys(copied) == KEYS
    assert copied.usage == run.usage


async def test_an_agent_of_a_graph_is_part_of_the_run_that_calls_it():
    """`as_agent()` inside a tool, a new object each time: the same as a tool."""

    async def lookup(ctx: RunContext[Any], input: str) -> str:  # noqa: A002
        found = await Lookup().as_agent().run(input, deps=ctx.deps, usage=ctx.usage)
        assert isinstance(found.output, Fact)
        return found.output.text

    class Asks(Graph[str, str]):
        ask = Stage(str, Agent(output_type=str, tools=[lookup]))

        async def flow(self, text: str) -> str:
            return await self.ask(text)

    run = await Runner(TWO).run(Asks(), "go", model=TWO)
    assert keys(run) == KEYS
    assert run.call("ask.lookup[c2].search").output == "found dogs"
    assert run.usage.requests == 4
    copied = Run.from_json(run.to_json(), Asks())  # the tree has no such graph: its values are plain data
    assert keys(copied) == KEYS
    assert copied.call("ask.lookup[c1]").output == {"text": "found cats"}
    assert keys(Run.from_json(copied.to_json(), Asks())) == KEYS


async def test_prompts_and_models_of_the_run_reach_it():
    """Its stages have paths below the calling stage; the calling agent's model serves where nothing else is set."""
    seen: list[str] = []

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append(str(info.instructions))
        return ModelResponse([TextPart("x")])

    path = "ask.lookup.search"
    assert path in Prompts.of(Outer())
    prompts = Prompts.of(Outer()).replace({path: "Search better."})
    await Runner(TWO).run(Outer(), "go", prompts=prompts, models={path: FunctionModel(model)})
    assert seen == ["Search better."] * 2

    class Own(Graph[str, str]):
        ask = Stage(str, Agent(TWO, output_type=str, tools=[Lookup().as_tool()]))

        async def flow(self, text: str) -> str:
            return await self.ask(text)

    assert (await Own().run("go")).call("ask.lookup[c1].search").output == "found cats"


async def test_it_gets_the_deps_of_the_calling_agent():
    """What the stage selects of the run's deps is what steps and stages of the inner graph see."""

    class Selects(Graph[str, str]):
        ask = Stage(
            str, Agent(output_type=str, deps_type=str, tools=[Who().as_tool(name="lookup")]), deps=lambda d: d["name"]
        )

        async def flow(self, text: str) -> str:
            return await self.ask(text)

    run = await Runner(TWO).run(Selects(), "go", deps={"name": "Ann"})
    assert run.call("ask.lookup[c1]").output == "cats for Ann"


async def test_a_resumed_run_asks_nothing_twice(tmp_path: Any):
    """Killed between the two tool calls of one agent: what was answered is recalled, inside and outside."""
    INNER.clear()

    class Flaky(Graph[str, Fact]):
        search = Stage(str, Agent(output_type=str))
        fail = Stage(str, Agent(output_type=str))

        async def flow(self, text: str) -> Fact:
            found = await self.search(text)
            if text == "dogs" and broken:
                raise RuntimeError("the process ends here")
            return Fact(text=found)

    class Whole(Graph[str, str]):
        ask = Stage(str, Agent(output_type=str, tools=[Flaky().as_tool(name="lookup")]))

        async def flow(self, text: str) -> str:
            return await self.ask(text)

    broken = True
    journal = SqliteJournal(tmp_path / "runs.db")
    runner = Runner(TWO, journal=journal)
    with pytest.raises(RunError, match=r"ask\.lookup\[c2\]") as caught:
        await runner.run(Whole(), "go")
    assert [call.key for call in caught.value.failures] == ["ask.lookup[c2]"]
    assert sorted(INNER) == ["cats", "dogs"]
    broken = False
    run = await runner.resume(caught.value.run.id, graph=Whole())
    assert sorted(INNER) == ["cats", "dogs"]
    assert (run.output, keys(run), run.usage.requests) == ("done", KEYS, 4)
    assert all(call.replayed for call in run.calls(Flaky.search))
    (row,) = await journal.runs(RunFilter())
    assert keys(await stored_run(journal, row, Whole())) == KEYS
    await journal.aclose()


async def test_a_replayed_stage_brings_its_inner_calls_with_it():
    """The record of the new run has them too, marked as replayed, and nothing is paid for."""
    runner = Runner(TWO, journal=(journal := MemoryJournal()))
    first = await runner.run(Outer(), "go")
    INNER.clear()
    run = await runner.run(Outer(), "go", replay=first)
    assert (INNER, keys(run), run.usage.requests) == ([], KEYS, 0)
    assert run.call("ask.lookup[c1]").output == Fact(text="found cats")
    assert all(call.replayed for call in run.calls())
    row = await journal.run(run.id)
    assert row is not None
    stored = await stored_run(journal, row, Outer())
    assert (keys(stored), stored.usage.requests) == (KEYS, 0)


async def test_limits_hold_inside_and_never_lock():
    """Each request counts once, and the calling stage, which waits, does not hold the last ones up."""
    assert (await Runner(TWO, limits=Limits(requests=4)).run(Outer(), "go")).output == "done"
    with anyio.fail_after(30):
        with pytest.raises(LimitError):
            await Runner(TWO, limits=Limits(requests=2)).run(Outer(), "go")
        with pytest.raises(LimitError):
            await Runner(TWO, limits=Limits(tokens=60)).run(Outer(), "go")


async def test_cancelling_the_run_cancels_it():
    """Nothing is left behind."""
    before, gate = others(), Turnstile()
    models = {"ask.lookup.search": gate.model}
    task = asyncio.create_task(Runner(TWO, models=None).run(Outer(), "go", models=models))
    with anyio.fail_after(30):
        await gate.crowd(2)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert gate.inside == []
    assert others() == before


async def test_a_question_inside_suspends_the_run():
    """The run waits, with the inner call's question; the answer finishes both."""

    class Asks(Graph[str, str]):
        ask = Stage(str, Agent(TWO_TIDY, output_type=str, tools=[Tidy().as_tool()]))

        async def flow(self, text: str) -> str:
            return await self.ask(text)

    runner = Runner(FunctionModel(deletes), journal=MemoryJournal())
    run = await runner.run(Asks(), "go")
    assert run.status == "suspended"
    (pending,) = run.pending
    assert pending.key.startswith("ask.tidy[c1].")
    done = await runner.resume(run.id, answers={pending.id: True})
    assert (done.status, done.output) == ("succeeded", "done")


TWO_TIDY = answering(ToolCallPart("tidy", {"input": "a"}, tool_call_id="c1"))


async def test_another_runner_keeps_user_and_session():
    """A graph with a runner of its own is a run of its own, found by the user and session of the calling run."""
    own = Runner(echo(), journal=MemoryJournal())

    class Asks(Graph[str, str]):
        ask = Stage(str, Agent(output_type=str, tools=[Lookup().as_tool(runner=own)]))

        async def flow(self, text: str) -> str:
            return await self.ask(text)

    run = await Runner(TWO).run(Asks(), "go", user_id="ann", session_id="talk", tags=("night",))
    assert keys(run) == ["", "ask"]
    for row in await own.journal.runs(RunFilter()):  # type: ignore[union-attr]
        labels = row.read_labels()
        assert (labels.user_id, labels.session_id, labels.tags) == ("ann", "talk", ("night",))
        assert labels.metadata == {"called_by": run.id}
    same = Runner(TWO)

    class Same(Graph[str, str]):
        ask = Stage(str, Agent(output_type=str, tools=[Lookup().as_tool(runner=same)]))

        async def flow(self, text: str) -> str:
            return await self.ask(text)

    assert keys(await same.run(Same(), "go")) == KEYS


async def test_a_step_that_runs_an_agent():
    """Graphs of agents in a step are below the step."""
    helper = Agent(TWO, tools=[Lookup().as_tool()])

    @step
    async def help_me(text: str) -> str:
        assert current_call().key == "helped"
        return (await helper.run(text)).output

    class Steps(Graph[str, str]):
        helped = help_me

        async def flow(self, text: str) -> str:
            return await self.helped(text)

    run = await Runner(echo()).run(Steps(), "go")
    found = [call.output for call in run.calls() if call.path == "helped.lookup.search"]
    assert found == ["cats", "dogs"]  # the runner's model goes before that of the calling agent


async def test_a_failure_inside_is_named():
    """The error names the innermost call, and the stage's own retries still apply to it."""
    models = {"ask.lookup.search": fails(RuntimeError("the stove is cold"))}
    with pytest.raises(RunError, match=r"ask\.lookup\[c\d\]\.search.*the stove is cold") as caught:
        await Runner(TWO).run(Outer(), "go", models=models)
    assert {call.path for call in caught.value.failures} == {"ask.lookup.search"}


async def test_a_tool_may_offer_the_graph_that_it_belongs_to():
    """A recursion that the model decides on ends when the model ends it."""
    toolset = FunctionToolset[Any]()

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        parts = [part for message in messages for part in message.parts]
        text = str(parts[0].content)  # type: ignore[union-attr]
        if len(text) > 2 or len(parts) > 1:
            return ModelResponse([TextPart(text)])
        return ModelResponse([ToolCallPart("deep", {"input": f"{text}!"}, tool_call_id="c")])

    class Deep(Graph[str, str]):
        ask = Stage(str, Agent(FunctionModel(answer), output_type=str, toolsets=[toolset]))

        async def flow(self, text: str) -> str:
            return await self.ask(text)

    toolset.add_tool(Deep().as_tool())
    run = await Deep().run("a")
    assert [call.input for call in run.calls(Deep.ask)] == ["a", "a!", "a!!"]


async def test_costs_are_counted_once():
    """Dollars of inner requests are in the run once."""
    model, _ = priced("0.25", tokens=7)
    run = await Runner(TWO).run(Outer(), "go", models={"ask.lookup.search": model})
    assert run.call("ask.lookup[c1]").cost is not None
    assert str(run.call("ask.lookup[c1]").cost) == "0.25"


async def test_an_agent_that_a_flow_runs_by_itself():
    """Its graphs are below the graph of the flow, apart from the nodes that it declares."""
    helper = Agent(TWO, tools=[Lookup().as_tool()])

    class Flow(Graph[str, str]):
        lookup = Lookup()

        async def flow(self, text: str) -> str:
            await self.lookup(text)
            return (await helper.run(text)).output

    run = await Flow().run("go", model=TWO)
    assert {call.path for call in run.root.walk()} == {"", "lookup", "lookup.search", "lookup~", "lookup~.search"}
    assert keys(Run.from_json(run.to_json(), Flow())) == keys(run)
    assert run.call("lookup~[c1]").output == Fact(text="found cats")


async def test_what_an_agent_made_by_itself_is_in_a_resumed_run(tmp_path: Any):
    """A tool that ran a graph of its own and was recorded: its calls and their usage are in the resumed run."""
    INNER.clear()

    async def lookup(input: str) -> str:  # noqa: A002
        return (await Lookup().as_agent().run(input)).output.text

    @step
    async def fail(text: str) -> str:
        if broken:
            raise RuntimeError("the process ends here")
        return text

    class Asks(Graph[str, str]):
        ask = Stage(str, Agent(output_type=str, tools=[lookup]))
        fail_ = fail

        async def flow(self, text: str) -> str:
            return await self.fail_(await self.ask(text))

    broken = True
    journal = SqliteJournal(tmp_path / "runs.db")
    runner = Runner(TWO, journal=journal)
    with pytest.raises(RunError) as caught:
        await runner.run(Asks(), "go")
    broken, other = False, Runner(TWO, journal=journal)
    run = await other.resume(caught.value.run.id, graph=Asks())
    assert [key for key in keys(run) if key.startswith("ask")] == KEYS[1:]
    assert (run.call("ask.lookup[c1].search").output, run.usage.requests) == ("found cats", 4)
    (row,) = await journal.runs(RunFilter())
    assert row.requests == 4
    await journal.aclose()


def test_charts_show_what_a_tool_offers_and_called():
    """The declared chart has the graph of a tool, and that of a run its calls."""
    assert "ask.lookup" in Outer().mermaid()
    run = Outer().run_sync("go", model=TWO)
    assert "ask.lookup[c1].search" in run.mermaid().replace("#91;", "[").replace("#93;", "]")
