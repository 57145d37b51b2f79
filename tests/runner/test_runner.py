"""Running: many runs at once, what they share, and that nothing is left behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import anyio
import pytest
from pydantic import ValidationError
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from scripted import Tidy, Turnstile, deletes, echo, fails, others, says
from stagegraph import (
    DeclarationError,
    Graph,
    InputError,
    Limits,
    NotRunningError,
    PromptError,
    Prompts,
    ReplayError,
    RunError,
    Runner,
    Stage,
    fan_out,
    step,
)
from stagegraph.journal import MemoryJournal


@step
async def double(number: int) -> int:
    return number * 2


@step
async def more(number: int) -> int:
    return number + 1


class Write(Graph[str, list[str]]):
    """One stage over the words of a text."""

    write = Stage(str, Agent(output_type=str, instructions="Write."))

    async def flow(self, text: str) -> list[str]:
        return await fan_out(self.write, text.split())


async def test_a_runner_runs_graphs_stages_and_steps():
    """Any node can be run by itself, and the record says what it was."""
    runner = Runner(model=echo())
    runs = [await runner.run(Write(), "a b"), await runner.run(Write.write, "c"), await runner.run(double, 2)]
    assert [run.output for run in runs] == [["a", "b"], "c", 4]
    assert [run.graph for run in runs] == ["Write", "write", "double"]
    assert [run.root.kind for run in runs] == ["graph", "stage", "step"]
    assert [run.root.key for run in runs] == ["", "write", "double"]


async def test_a_model_of_the_runner_for_a_stage_that_no_graph_has_is_refused():
    """When the run begins, with the name that was meant; other graphs that the runner knows may have the stage."""

    class Read(Graph[str, str]):
        read = Stage(str, Agent(output_type=str))

        async def flow(self, text: str) -> str:
            return await self.read(text)

    runner = Runner(fails(AssertionError("it was asked")), models={"read": says("seen"), "wirte": says("other")})
    with pytest.raises(DeclarationError, match=r"there is no stage `wirte` \(did you mean `write`\?\)"):
        await runner.run(Write(), "a")
    runner = Runner(echo(), models={"read": says("seen"), "write": says("said")})
    with pytest.raises(DeclarationError, match=r"no stage `read`.*runner\.add\(graph\)"):
        await runner.run(Write(), "a")
    runner.add(Read())
    assert [(await runner.run(graph, "a")).output for graph in (Write(), Read())] == [["said"], "seen"]


async def test_what_cannot_be_run_is_refused():
    """With the line to write, or the name that was meant, before anything runs."""
    for go in (Runner().run, Runner().start):
        with pytest.raises(DeclarationError, match=r"write Write\(\)"):
            await go(Write, "a")
    with pytest.raises(DeclarationError, match="a runner runs graphs, stages and steps, not"):
        await Runner().run(lambda value: value, "a")
    with pytest.raises(DeclarationError, match=r"no stage `wirte` \(did you mean `write`\?\)"):
        await Runner(echo()).run(Write(), "a", models={"wirte": says("other")})
    with pytest.raises(PromptError, match=r"`writ` \(did you mean `write`\?\)"):
        await Runner(model=fails(AssertionError("it was asked"))).run(Write(), "a", prompts=Prompts({"writ": "x"}))
    for option in ("max_concurrency", "fan_out_limit"):
        with pytest.raises(DeclarationError, match=rf"Runner\({option}=0\): at least 1"):
            Runner(**{option: 0})
    said = r"Runner\.start\(\) was called where no event loop is running.*run_sync"
    with pytest.raises(NotRunningError, match=said):
        await asyncio.to_thread(Runner().start, double, 1)


async def test_an_option_that_does_not_exist_is_refused():
    """A misspelt limit would limit nothing: every way to run says which word it does not know, before anything runs."""
    graph, runner, model = Write(), Runner(journal=MemoryJournal()), fails(AssertionError("it was asked"))
    by_graph, by_id = (runner.run, runner.start), (graph.run, runner.resume, runner.start_resume)
    for go, given in [*((go, (graph, "a")) for go in by_graph), *((go, ("a",)) for go in by_id)]:
        with pytest.raises(TypeError, match=r"unexpected keyword argument `limit`; did you mean `limits`\?"):
            await go(*given, model=model, limit=Limits(requests=1))
    with pytest.raises(TypeError, match="sesion_id") as caught:
        await asyncio.to_thread(Write().run_sync, "a", sesion_id="s")
    assert caught.value.__context__ is None


async def test_many_runs_at_once_on_one_runner():
    """Runs on one runner share nothing that shows: each has its input, output and id."""
    runner = Runner(model=echo(), max_concurrency=5)
    runs = {}
    async with anyio.create_task_group() as group:

        async def one(number: int) -> None:
            runs[number] = await runner.run(Write(), f"{number} x{number}")

        for number in range(60):
            group.start_soon(one, number)
    assert {number: run.output for number, run in runs.items()} == {n: [f"{n}", f"x{n}"] for n in range(60)}
    assert len({run.id for run in runs.values()}) == 60


@pytest.mark.parametrize("most", [1, 3])
async def test_max_concurrency_bounds_requests_across_runs(most: int):
    """However many runs and branches there are, only so many requests are in flight, and all are made in the end."""
    gate = Turnstile()
    runner = Runner(model=gate.model, max_concurrency=most)
    runs = [runner.start(Write(), "a b c d") for _ in range(3)]
    with anyio.fail_after(30):
        await gate.crowd(most)
        await anyio.wait_all_tasks_blocked()
        assert len(gate.inside) == most
        gate.open()
        outputs = [(await run.result()).output for run in runs]
    assert outputs == [["a", "b", "c", "d"]] * 3
    assert gate.most == most
    assert len(gate.seen) == 12


async def test_a_slot_is_free_again_after_failure_and_cancellation():
    """Requests that fail or are cancelled give their slot back."""
    gate = Turnstile()
    runner = Runner(max_concurrency=1)
    with pytest.raises(RunError):
        await runner.run(Write(), "a b", model=fails(*[ConnectionError("down")] * 2))
    live = runner.start(Write(), "a b", model=gate.model)
    with anyio.fail_after(30):
        await gate.crowd(1)
        await live.cancel()
        assert (await runner.run(Write(), "a b", model=echo())).output == ["a", "b"]


async def test_a_run_that_waits_for_its_own_limit_holds_no_slot():
    """Requests that a dollar limit keeps waiting do not take the place of other runs' requests."""
    gate = Turnstile()
    runner = Runner(max_concurrency=2)
    waiting = runner.start(Write(), "a b c", model=gate.model, limits=Limits(tokens=1000))
    with anyio.fail_after(30):
        await gate.crowd(1)
        await anyio.wait_all_tasks_blocked()
        assert gate.inside == ["a"]  # the first of a stage goes alone
        assert (await runner.run(Write(), "x", model=echo())).output == ["x"]
        gate.open()
        assert (await waiting.result()).output == ["a", "b", "c"]


def test_one_runner_may_serve_several_event_loops_one_after_another():
    """A runner with a shared limit works in a second `asyncio.run`, and in another thread."""
    runner = Runner(model=echo(), max_concurrency=1)
    outputs = [asyncio.run(runner.run(Write(), "a b")).output for _ in range(2)]
    thread = threading.Thread(target=lambda: outputs.append(asyncio.run(runner.run(Write(), "a b")).output))
    thread.start()
    thread.join()
    assert outputs == [["a", "b"]] * 3


async def test_leaving_the_runner_waits_for_started_runs():
    """The block ends when the runs that were started in it have ended, and no task is left."""
    gate = Turnstile()
    before = others()
    with anyio.fail_after(30):
        async with Runner(model=gate.model) as runner:
            live = runner.start(Write(), "a b")
            await gate.crowd(2)
            gate.open()
        assert live.done
    assert (await live.result()).output == ["a", "b"]
    assert others() <= before


@pytest.mark.parametrize("how", ["task", "scope", "error"])
async def test_a_block_that_does_not_end_well_cancels_started_runs(how: str):
    """Failed, or cancelled while it waits for its runs, the runner ends them first, and no task is left."""
    gate = Turnstile()
    lives = []

    async def serve() -> None:
        async with Runner(model=gate.model) as runner:
            lives.append(runner.start(Write(), "a b"))
            if how == "error":
                await gate.crowd(2)
                raise LookupError("enough")

    before = others()
    with anyio.fail_after(30):
        if how == "error":
            with pytest.raises(LookupError, match="enough"):
                await serve()
            assert lives[0].done
        elif how == "task":
            task = asyncio.create_task(serve())
            await gate.crowd(2)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(serve)
                await gate.crowd(2)
                group.cancel_scope.cancel()
    assert lives[0].run.status == "cancelled"
    assert gate.inside == []
    assert others() <= before


async def test_data_is_validated_at_the_outer_door():
    """What does not fit is an `InputError` that names the fields; nothing was called."""
    with pytest.raises(InputError, match=r"the input does not fit int, which double takes") as caught:
        await Runner().run(double, "many")
    assert [call.status for call in caught.value.run.root.walk()] == ["failed"]
    assert caught.value.run.input == "many"
    assert isinstance(caught.value.__cause__, ValidationError)
    assert (await Runner().run(double, "4")).output == 8


async def test_a_runner_deploys_prompts_and_a_run_may_bring_its_own():
    """The run's goes before the runner's; candidates that run at once do not mix; the agent stays as it was."""

    def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(info.instructions or "")])

    graph, model = Write(), FunctionModel(answer)
    deployed, candidate = (Prompts.of(graph).replace({"write": text}) for text in ("Deployed.", "Candidate."))
    runner = Runner(model=model, prompts=deployed)
    runs = [
        await runner.run(graph, "x"),
        await runner.run(graph, "x", prompts=candidate),
        await Runner(model).run(graph, "x"),
    ]
    assert [run.output for run in runs] == [["Deployed."], ["Candidate."], ["Write."]]
    candidates = [Prompts.of(graph).replace({"write": f"Candidate {number}."}) for number in range(20)]
    lives = [runner.start(graph, "x y", prompts=one) for one in candidates]
    outputs = [(await live.result()).output for live in lives]
    assert outputs == [[f"Candidate {number}."] * 2 for number in range(20)]


async def test_model_names_are_resolved_once_per_runner(monkeypatch: pytest.MonkeyPatch):
    """A name such as `test` makes one model for all runs, so that providers keep their connections."""
    runner = Runner(model="test")
    first = (await runner.run(Write.write, "a")).call("write").messages
    assert "success" in str(first)
    with pytest.raises(RunError, match="'nothing:x' cannot be used"):
        await runner.run(Write.write, "a", model="nothing:x")


async def test_a_flow_that_keeps_a_task_of_its_own_cannot_change_the_end():
    """A task that a flow starts by itself and forgets comes too late for the record's status and events."""
    gate = Turnstile()
    kept: list[asyncio.Task[object]] = []

    class Leaky(Graph[str, str]):
        write = Write.write

        async def flow(self, text: str) -> str:
            kept.append(asyncio.create_task(self.write("late")))
            await gate.crowd(1)
            return text

    live = Runner(model=gate.model).start(Leaky(), "a")
    with anyio.fail_after(30):
        run = await live.result()
        gate.open()
        await asyncio.wait(kept)
    events = [event.type async for event in live.events()]
    assert run.status == "succeeded"
    assert events[-1] == "run_finished"


async def test_a_node_that_is_called_after_its_run_had_ended_is_refused():
    """A task that a flow starts and forgets cannot spend money behind the run's back; the error says what to write."""
    ended = anyio.Event()
    kept: list[asyncio.Task[object]] = []

    class Leaky(Graph[str, str]):
        write = Write.write

        async def late(self) -> str:
            await ended.wait()
            return await self.write("late")

        async def flow(self, text: str) -> str:
            kept.append(asyncio.create_task(self.late()))
            return text

    run = await Runner(model=echo()).run(Leaky(), "a")
    ended.set()
    with pytest.raises(
        NotRunningError, match=r"stage `write` was called after its run had ended: await it in the flow"
    ):
        await kept[0]
    assert run.calls() == []


async def test_usage_and_cost_add_up():
    """A run's usage is the sum of its calls; a price that is not known makes the cost unknown, never a guess."""
    run = await Runner(model=says("a")).run(Write(), "x y z")
    assert run.usage.requests == 3
    assert run.usage.output_tokens == sum(call.usage.output_tokens for call in run.calls()) > 0
    assert run.cost is None
    assert (await Runner().run(double, 1)).cost == 0


@pytest.mark.parametrize("deltas", [False, True])
async def test_a_request_without_an_answer_costs_nothing(deltas: bool):
    """It makes the cost of a run, which may succeed at the next attempt, no less known, also where a model streams."""

    def refuses(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        msg = "not now"
        raise ValueError(msg)

    async def streams(messages: list[ModelMessage], info: AgentInfo) -> AsyncIterator[str]:
        refuses(messages, info)
        yield "never"

    model = FunctionModel(refuses, stream_function=streams)
    live = Runner(model=model).start(Write(), "x", deltas=deltas)
    with pytest.raises(RunError) as caught:
        await live.result()
    assert caught.value.run.cost == 0


async def test_a_run_chooses_models_by_path():
    """For itself alone, before every other choice; so candidates of a tuning can differ in their models."""
    runner = Runner(models={"write": says("runner")})
    assert (await runner.run(Write(), "a", models={"write": says("run")})).output == ["run"]
    assert (await runner.run(Write(), "a")).output == ["runner"]


async def test_a_stage_runs_by_itself_beside_deployed_prompts():
    """The prompts of a runner are its graph's; a stage or a step of it has no paths, and runs as the code says."""

    class Outer(Graph[str, list[str]]):
        inner = Write()

        async def flow(self, text: str) -> list[str]:
            return await self.inner(text)

    runner = Runner(echo(), prompts=(prompts := Prompts.of(Outer())))
    assert (runner.prompts, Runner().prompts) == (prompts, Prompts())  # where tuning starts
    assert (await runner.run(Outer(), "a b")).output == ["a", "b"]
    assert (await runner.run(Write.write, "c")).output == "c"
    assert (await runner.run(double, 2)).output == 4


async def _upper(text: str) -> str:
    return text.upper()


async def test_a_what_if_needs_no_journal():
    """`override` puts an output in the place of a call; what did not run is told as ever; nobody can answer a question."""

    class Adds(Graph[int, int]):
        add = more

        async def flow(self, number: int) -> int:
            return await self.add(await self.add(number))

    run = await Runner().run(Adds(), 1, override={"add": 40})
    assert run.output == 41
    assert [call.replayed for call in run.calls()] == [True, False]
    with pytest.raises(ReplayError, match=r"`override` names `addd`"):
        await Runner().run(Adds(), 1, override={"addd": 40})
    with pytest.raises(DeclarationError, match=r"replay needs recorded runs"):
        await Runner().run(Adds(), 1, override={"add": 40}, replay="x")

    class Asks(Tidy):
        up = step(_upper)

        async def flow(self, text: str) -> str:
            return await self.clean(await self.up(text))

    with pytest.raises(RunError, match=r"a run without a journal cannot wait for it"):
        await Runner(FunctionModel(deletes)).run(Asks(), "a", override={"up": "b"})
