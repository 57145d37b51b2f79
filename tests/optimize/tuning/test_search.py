"""The search: what it solves, what it leaves alone, when it stops, and what it makes of trouble."""

import asyncio
import threading
import types
from collections import Counter
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from rules import POOL, coupled, learner, rows, searched, separate, student
from words import asked, before, shaky

from stagegraph import Example, Graph, Run, Score, Stage, TuningError, fan_out, note, optimize, step
from stagegraph.optimize import Budget, Proposal

pytestmark = pytest.mark.anyio


@step
async def together(parts: list[str]) -> str:
    return "|".join(parts)


class Joined(Graph[str, str]):
    """A step between two stages."""

    a = Stage(str, Agent(instructions="a: begin"))
    join = together
    c = Stage(str, Agent(instructions="c: end"))

    async def flow(self, text: str) -> str:
        return await self.c(await self.join(await fan_out(self.a, [text, text + "!"])))


@pytest.mark.parametrize("metric", [separate, coupled])
async def test_all_faults_are_repaired(metric: Any) -> None:
    """A reflection model that reads the notes repairs every stage, also when one repair alone changes no score."""
    result = await searched(metric, proposer=None, reflection_model=learner())
    assert result.candidates[0].mean == 0
    assert result.candidates[result.best].mean == 1
    assert {path: "RULE-" + path in prompt.instructions for path, prompt in result.prompts.items()} == dict.fromkeys(
        "abc", True
    )
    assert result.spent.proposals == 3
    assert result.stopped == "every validation example scored as well as can be"
    assert result.error is None


async def test_every_call_of_a_fan_out_reaches_the_proposer() -> None:
    """All calls of the stage in all runs of the step come, the worst first, and no more than the characters allow."""
    seen: list[Proposal] = []

    def metric(_example: Example[str], run: Run[str, str]) -> Score:
        second = run.calls(Wide.each)  # type: ignore[arg-type]
        return Score(0.0, [call.note(f"note {place}", weight=1 + place) for place, call in enumerate(second)])

    class Wide(Graph[str, list[str]]):
        each = Stage(str, Agent(instructions="each"))

        async def flow(self, text: str) -> list[str]:
            return await fan_out(self.each, [f"{text}{number} " + "x" * size for number, size in enumerate(sizes)])

    def propose(proposal: Proposal) -> None:
        seen.append(proposal)

    sizes = [10] * 5
    await searched(metric, graph=Wide(), proposer=propose, budget=Budget(runs=12))
    records = seen[0].records
    assert len(records) == 3 * 5
    assert [record["feedback"] for record in records] == [f"- note {n}" for n in (4, 3, 2, 1, 0) for _ in range(3)]
    assert {record["call"] for record in records} == {f"each[{n}]" for n in range(5)}
    sizes = [9_000] * 40
    await searched(metric, graph=Wide(), proposer=propose, budget=Budget(runs=12), val=rows("w", 3))
    records = seen[-1].records
    assert sum(len(str(value)) for record in records for value in record.values()) <= 24_000
    assert records[0]["feedback"] == "- note 39"
    assert len(records) >= 5


async def test_a_failed_run_counts_with_what_it_did_until_then() -> None:
    """It scores 0, the failed call is told why, and the calls before it are in the proposer's records."""
    seen: list[Proposal] = []

    class Breaks(Graph[str, str]):
        a = Stage(str, Agent(instructions="a: x"))
        b = Stage(str, Agent(instructions="b: y"), retries=0)

        async def flow(self, text: str) -> str:
            return await self.b(await self.a(text))

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if (info.instructions or "").startswith("b"):
            raise ValueError("b broke")
        return ModelResponse([TextPart(asked(messages) + " from a")])

    def propose(proposal: Proposal) -> None:
        seen.append(proposal)

    result = await searched(
        lambda *_: 1.0, graph=Breaks(), model=FunctionModel(answer), proposer=propose, budget=Budget(runs=12)
    )
    assert result.candidates[0].scores == [0, 0, 0]
    first = next(one for one in seen if one.path == "b")
    assert all("b broke" in record["feedback"] and record["input"].endswith("from a") for record in first.records)


async def test_a_stage_without_blame_is_never_changed() -> None:
    """Notes about one stage change that stage alone; praise, which has no weight, changes nothing and ends by itself."""

    def metric(_example: Example[str], run: Run[str, str]) -> Score:
        return Score(0.5, [call.note("worse than ever") for call in run.calls() if call.path == "b"])

    changed: Counter[str] = Counter()

    def propose(proposal: Proposal) -> str:
        changed[proposal.path] += 1
        return f"{proposal.text}!"

    await searched(metric, proposer=propose, budget=Budget(runs=60))
    assert set(changed) == {"b"}
    result = await searched(
        lambda _example, run: Score(0.5, [call.note("nice", weight=0) for call in run.calls()]), stagnation=3
    )
    assert len(result.candidates) == 1
    assert "nothing got better in 3" in result.stopped


async def test_a_verdict_alone_finds_its_way_back() -> None:
    """Without notes, the stages that the result came from are blamed before those that led nowhere."""
    seen: dict[str, Proposal] = {}

    class Aside(Graph[str, str]):
        a = Stage(str, Agent(instructions="a: begin"))
        idle = Stage(str, Agent(instructions="idle: nothing comes of it"))
        c = Stage(str, Agent(instructions="c: end"))

        async def flow(self, text: str) -> str:
            await self.idle(text)
            return await self.c(await self.a(text))

    def propose(proposal: Proposal) -> str | None:
        seen[proposal.path] = proposal
        return POOL(proposal)

    def metric(_example: Example[str], run: Run[str, str]) -> float:
        return 0.5 * ("aok" in run.output) + 0.5 * ("cok" in run.output)

    result = await searched(metric, graph=Aside(), proposer=propose)
    assert result.candidates[result.best].mean == 1
    assert set(seen) == {"a", "c"}
    record = seen["a"].records[0]
    assert "The final result scored 0" in record["feedback"]
    assert "went into `c`" in record["feedback"]


async def test_a_note_on_a_step_goes_to_the_stages_before_it() -> None:
    """A step has no text, so what it got is what has to become better; by key and by path alike."""

    for target in ("join", "join#0"):
        paths: set[str] = set()

        def metric(_example: Example[str], run: Run[str, str]) -> Score:
            key = next(call.key for call in run.calls() if call.path == "join")
            return Score(0.2, [note("join" if target == "join" else key, "too short")])  # noqa: B023

        def propose(proposal: Proposal) -> None:
            paths.add(proposal.path)  # noqa: B023
            assert "too short" in proposal.records[0]["feedback"]

        result = await searched(metric, graph=Joined(), proposer=propose, budget=Budget(runs=30), stagnation=2)
        assert result.error is None
        assert paths == {"a"}


def rate_limited(after: int, times: int = 10_000) -> FunctionModel:
    """A provider that says 429 some times, after some requests."""
    error = ModelHTTPError(429, "student", {"message": "slow down"})
    return shaky(student()[0], error, lambda number: after < number <= after + times)[0]


async def test_a_provider_in_trouble_for_a_moment_changes_nothing() -> None:
    """A 429 that goes away is waited for, and no run scores 0 for it."""
    calm = await searched(proposer=POOL)
    shaky = await searched(proposer=POOL, model=rate_limited(5, times=2))
    assert shaky.error is None
    assert [one.scores for one in shaky.candidates] == [one.scores for one in calm.candidates]


async def test_a_provider_that_is_gone_ends_the_search_with_the_best_so_far() -> None:
    """Nothing that was found is lost, and no candidate is blamed."""
    result = await searched(proposer=POOL, model=rate_limited(50))
    assert isinstance(result.error, TuningError)
    assert "429" in str(result.error)
    assert result.candidates
    assert result.best == max(range(len(result.candidates)), key=lambda i: result.candidates[i].mean)
    with pytest.raises(TuningError, match="429"):
        await searched(proposer=POOL, model=rate_limited(0))


async def test_a_reflection_model_in_trouble_is_waited_for_and_then_ends_the_search() -> None:
    """Its 429 is retried; when it stays, the search ends with what it has instead of going on for nothing."""

    def limited(times: int) -> tuple[FunctionModel, Counter[str]]:
        return shaky(learner(), ModelHTTPError(429, "learner"), lambda number: number <= times)

    fine = await searched(proposer=None, reflection_model=limited(2)[0])
    assert fine.error is None
    assert fine.candidates[fine.best].mean == 1
    model, count = limited(1_000)
    gone = await searched(proposer=None, reflection_model=model)
    assert "429" in str(gone.error)
    assert count["all"] == 3
    assert len(gone.candidates) == 1


@pytest.mark.parametrize("answer", ["", "   ", "```\n```", "\x00", "word " * 50_000])
async def test_rubbish_from_the_reflection_model_is_safe(answer: str) -> None:
    """No text, the same text or a huge one: the search goes on and ends, and the seed stays the best."""
    model = FunctionModel(lambda _messages, _info: ModelResponse([TextPart(answer)]))
    result = await searched(proposer=None, reflection_model=model, budget=Budget(runs=30), stagnation=3)
    assert result.best == 0
    assert result.prompts == result.seed


async def test_a_cancelled_search_stops_paying() -> None:
    """Its thread ends with what it was waiting for, and nothing more is asked."""
    model, requests = student()
    begun = anyio.Event()
    gone = threading.Event()

    async def act(_messages: list[ModelMessage], _info: AgentInfo) -> None:
        if requests["c"] >= 5:
            loop.call_soon_threadsafe(begun.set)
            try:
                await anyio.sleep_forever()
            finally:
                gone.set()

    loop = asyncio.get_running_loop()
    task = asyncio.create_task(searched(model=before(model, act)))
    with anyio.fail_after(20):
        await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await asyncio.to_thread(gone.wait, 10)
    assert requests["c"] <= 5 + 3


def test_the_functions_stay_functions() -> None:
    """A file of the package never takes the place of the function that it is named after."""
    for name in optimize.__all__:
        for _ in range(2):
            assert not isinstance(getattr(optimize, name), types.ModuleType), name
