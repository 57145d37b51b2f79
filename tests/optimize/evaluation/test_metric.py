"""One metric for every optimizer: asked once a run, with feedback that tells of every call of a stage."""

import asyncio
import inspect
import math
import threading
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import dspy
import numpy as np
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from words import ROWS, Doc, Rate, Rated, Words, asked, grade, says, scripted

from stagegraph import Example, Graph, Note, Run, Score, Stage, TuningError, fan_out, note, step
from stagegraph.optimize import (
    GraphModule,
    TuningStopped,
    credited,
    dspy_metric,
    graded,
    stage_feedback,
    to_dspy,
    wants_failed_runs,
)
from stagegraph.optimize.evaluation.blame import blame
from stagegraph.optimize.evaluation.report import Trial
from stagegraph.optimize.evaluation.shown import records

GOLD = to_dspy(ROWS, Words())


@pytest.fixture(scope="module")
def prediction() -> Any:
    return GraphModule(Words(), model=scripted())(text="a bc")


def run_of(prediction: Any) -> Run[Doc, Rated]:
    return prediction.run


def test_the_face_takes_two_three_and_five_arguments(prediction: Any) -> None:
    """A number for most optimizers, a score with feedback for GEPA."""
    face = dspy_metric(grade)
    inspect.signature(face).bind(None, None, None, None, None)
    assert face(GOLD[0], prediction) == 0.0
    assert isinstance(face(GOLD[0], prediction, None), float)
    assert isinstance(face(GOLD[0], prediction, []), float)
    module = GraphModule(Words())
    told = face(GOLD[0], prediction, [], "rate__judge", [(module.rate__judge, {}, prediction)])
    assert isinstance(told, dspy.Prediction)
    assert told.score == 0.0
    assert "bc: expected 4" in told.feedback
    assert "a: expected 2" in told.feedback
    assert face.__name__ == "grade"


@pytest.mark.parametrize("asynchronous", [False, True])
def test_a_metric_is_asked_once_per_run(prediction: Any, asynchronous: bool) -> None:
    """By eight threads at once, on two event loops, for the score and for every feedback."""
    asked_for: list[str] = []

    def judge(_example: Example[Doc], run: Run[Doc, Rated]) -> float:
        asked_for.append(run.id)
        return 0.5

    async def judge_later(example: Example[Doc], run: Run[Doc, Rated]) -> float:
        await asyncio.sleep(0)
        return judge(example, run)

    metric = judge_later if asynchronous else judge
    faces = [dspy_metric(metric), dspy_metric(metric)]
    found: list[float] = []
    threads = [threading.Thread(target=lambda face=face: found.append(face(GOLD[0], prediction))) for face in faces * 4]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asyncio.run(graded(metric, ROWS[0], run_of(prediction))) == Score(0.5)
    faces[0](GOLD[0], prediction, [], "plan", [])
    assert found == [0.5] * 8
    assert len(asked_for) == 1


def test_whoever_asks_first_may_be_cancelled(prediction: Any) -> None:
    """The others still get their answer: somebody asks again."""

    async def main() -> None:
        entered, times = asyncio.Event(), 0

        async def judge(_example: Example[Any], _run: Run[Any, Any]) -> float:
            nonlocal times
            times += 1
            entered.set()
            if times == 1:
                await asyncio.Event().wait()
            return 1.0

        first = asyncio.ensure_future(graded(judge, ROWS[0], run_of(prediction)))
        await entered.wait()
        second = asyncio.ensure_future(graded(judge, ROWS[0], run_of(prediction)))
        await asyncio.wait({second}, timeout=0)
        first.cancel()
        assert await second == Score(1.0)
        assert times == 2

    asyncio.run(main())


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (True, 1.0),
        (False, 0.0),
        (3, 3.0),
        (0.25, 0.25),
        (Score(0.5), 0.5),
        (Decimal("0.5"), 0.5),
        (Fraction(1, 2), 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(1), 1.0),
        (np.True_, 1.0),
    ],
    ids=repr,
)
def test_numbers_and_truths_are_scores(value: Any, score: float, prediction: Any) -> None:
    """And so are scores."""
    assert dspy_metric(lambda _example, _run: value)(GOLD[0], prediction) == score


def raises(_example: Any, _run: Any) -> float:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (raises, "raised KeyError: 'gone'"),
        (lambda _e, _r: math.nan, "finite"),
        (lambda _e, _r: math.inf, "finite"),
        (lambda _e, _r: None, "did you forget `return`"),
        (lambda _e, _r: "good", "str 'good'; it gives a number"),
        (lambda _e, _r: 1j, "complex 1j; it gives a number"),
        (lambda _e, _r: Score(1, notes=["text"]), "among its notes"),
        (lambda _e, _r: Score(1, notes=[note("rate.juge", "typo")]), "did you mean `rate.judge`"),
        (lambda _e, _r: Score(1, notes=[note("rate[7].judge", "typo")]), "no call of the run"),
    ],
)
def test_what_is_no_score_is_an_error(metric: Callable[..., Any], message: str, prediction: Any) -> None:
    """It names the metric, the example and the run."""
    with pytest.raises(TuningError, match=message) as caught:
        dspy_metric(metric)(GOLD[0], prediction)
    assert ROWS[0].id in str(caught.value)
    assert prediction.run.id in str(caught.value)


def test_a_broken_metric_ends_an_evaluation() -> None:
    """DSPy would go on with zeros."""
    module = GraphModule(Words(), model=scripted())
    with pytest.raises(TuningStopped, match="KeyError"):
        dspy.Evaluate(devset=GOLD, metric=dspy_metric(raises), num_threads=2)(module)


def failing_run() -> Run[Doc, Rated]:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if asked(messages) == "bc":
            raise ValueError("no idea")
        return scripted().function(messages, info)  # type: ignore[misc,operator,return-value]

    async def later(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return await answer(messages, info)  # type: ignore[misc]

    return GraphModule(Words(), model=FunctionModel(later))(text="a bc").run


def test_a_failed_run_scores_nothing_and_says_why() -> None:
    """At the call that failed; the metric is not asked."""
    run = failing_run()
    score = asyncio.run(graded(raises, ROWS[0], run))
    assert score.value == 0
    assert [note.target for note in score.notes] == ["rate[1].judge"]
    assert "no idea" in score.notes[0].text


def test_a_metric_may_want_failed_runs() -> None:
    """It sees the partial record."""

    @wants_failed_runs
    def patient(_example: Example[Doc], run: Run[Doc, Rated]) -> float:
        return 0.1 * sum(call.ok for call in run.calls())

    assert asyncio.run(graded(patient, ROWS[0], failing_run())).value > 0


def test_objectives_reach_gepa(prediction: Any) -> None:
    """As a prediction where GEPA scores, as a number where a demo is bootstrapped."""
    face = dspy_metric(lambda _example, _run: Score(0.5, objectives={"brevity": -3.0}))
    scored = face(GOLD[0], prediction)
    assert (scored.score, scored.objective_scores) == (0.5, {"brevity": -3.0})
    assert face(GOLD[0], prediction, []) == 0.5


def test_a_prediction_of_no_run_is_an_error() -> None:
    """Of another module, say."""
    with pytest.raises(TuningError, match="of no run"):
        dspy_metric(grade)(GOLD[0], dspy.Prediction(total=1))


def test_feedback_has_all_calls_worst_first(prediction: Any) -> None:
    """By the weight of their notes; then what was said of the stage and of the run."""
    run = run_of(prediction)
    first, second = run.calls(Rate.judge)
    score = Score(
        0.5,
        notes=[first.note("small", 0.5), second.note("big", 2), note("rate.judge", "in general"), Note("", "overall")],
        objectives={"cost": -1.0},
    )
    text = stage_feedback(run, score, "rate.judge")
    order = ["scored 0.5", "cost: -1", "in general", "overall", "rate[1].judge", "big", "rate[0].judge", "small"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    other = stage_feedback(run, score, "plan")
    assert "overall" in other
    assert "big" not in other
    assert "Nothing was noted" in stage_feedback(run, Score(1.0), "plan")


def test_a_final_verdict_alone_still_shows_every_call(prediction: Any) -> None:
    """With what each was given, answered, and what was made of it."""
    text = stage_feedback(run_of(prediction), Score(0.25), "rate.judge")
    assert "scored 0.25" in text
    assert all(f"Call `rate[{index}].judge`" in text for index in range(2))


def test_feedback_keeps_to_its_limit() -> None:
    """The worst calls stay, and it says how many were left out."""
    run = GraphModule(Words(), model=scripted())(text=" ".join(f"w{index}" for index in range(50))).run
    notes = [call.note(f"note {index} " + "x" * 300, weight=index) for index, call in enumerate(run.calls(Rate.judge))]
    text = stage_feedback(run, Score(0, notes=notes), "rate.judge", limit=2_000)
    assert len(text) <= 2_000
    assert "note 49" in text
    assert "note 1 " not in text
    assert "more calls of this stage, " in text
    huge = Score(0, notes=[run.calls(Rate.judge)[0].note("y" * 10_000)])
    assert len(stage_feedback(run, huge, "rate.judge", limit=1_000)) <= 1_000


class Code(BaseModel):
    text: str


class Report(BaseModel):
    code: Code
    passed: bool


@step
async def check(code: Code) -> Report:
    return Report(code=code, passed="ok" in code.text)


class Coder(Graph[list[str], list[Report]]):
    """What a stage wrote is judged in a step."""

    write = Stage(str, Agent(output_type=str, instructions="Write."))
    check = check

    async def one(self, task: str) -> Report:
        return await self.check(Code(text=await self.write(task)))

    async def flow(self, tasks: list[str]) -> list[Report]:
        return await fan_out(self.one, tasks)


def test_what_is_noted_at_a_step_goes_to_the_stage_that_made_its_input() -> None:
    """Steps are never tuned; along the recorded edges the note finds who can do better."""
    long = "x" * 70

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(f"{asked(messages)} {long}")])

    run = GraphModule(Coder(), model=FunctionModel(answer))(input=["ok", "bad"]).run
    notes = [call.note("tests failed") for call in run.calls(Coder.check) if not call.output.passed]
    assert list(credited(run, notes)) == ["write[1]"]
    text = stage_feedback(run, Score(0.5, notes=notes), "write")
    assert "seen at `check[1]`: tests failed" in text
    assert text.index("write[1]") < text.index("write[0]")
    assert "its answer went into `check[1]`, which gave" in text


class Cut(BaseModel):
    parts: list[str]


class Polish(Graph[str, str]):
    """Something that decides an `if`, something that is cut up and put together, and something that is said last."""

    gate = Stage(str, Agent(output_type=bool, instructions="gate"))
    cut = Stage(str, Agent(output_type=Cut, instructions="cut"))
    polish = Stage(str, Agent(instructions="polish"))

    async def flow(self, text: str) -> str:
        await self.gate(text)
        cut = await self.cut(text)
        return await self.polish(max(cut.parts, key=len))


def polished() -> Run[str, str]:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if info.output_tools:
            args = {"response": True} if info.instructions == "gate" else {"parts": ["x", asked(messages) * 40]}
            return ModelResponse([ToolCallPart(info.output_tools[0].name, args)])
        return ModelResponse([TextPart(f"{asked(messages)} made shiny")])

    return Polish().run_sync("ab", model=FunctionModel(answer))


@pytest.mark.parametrize("stored", [False, True])
def test_a_verdict_goes_back_from_the_output(stored: bool) -> None:
    """In both faces: what a call was given, answered, what was made of it, and more blame for those on the way."""
    run = polished()
    if stored:
        run = Run.from_json(run.to_json(), Polish())
    trial = Trial(Example("ab", "AB"), run, Score(0.25))
    assert blame(run, trial.score) == {"polish": 0.75, "cut": 0.75, "gate": 0.375}
    (record,) = records([trial], "cut")
    told = f"given: {record['input']}\nanswered: {record['output']}\n{record['feedback']}"
    for text in (told, stage_feedback(run, Score(0.25), "cut", expected="AB")):
        assert "given: ab\n" in text
        assert 'answered: {"parts": ["x", "abab' in text
        assert "its answer went into `polish`, which gave: abab" in text
        assert "scored 0.25" in text
        assert "Expected in the end: AB" in text
    face = dspy_metric(lambda _example, _run: 0.25)
    prediction = GraphModule(Polish())._predicted(run, None)
    (gold,) = to_dspy([Example("ab", "AB")], Polish())
    assert "Expected in the end: AB" in face(gold, prediction, [], "cut", []).feedback


def test_the_way_back_from_a_failure_begins_where_it_failed() -> None:
    """A run without an output has no result to go back from."""
    run = failing_run()
    assert blame(run, Score(0.0)) == {"plan": 0.5, "rate.judge": 1.0}


@step
async def same(text: str) -> str:
    return text


class Twofold(Graph[str, str]):
    """A step that is two stages away from where it began."""

    plan = Stage(str, Agent(instructions="plan"))
    write = Stage(str, Agent(instructions="write"))
    other = Stage(str, Agent(instructions="other"))
    check = same

    async def flow(self, text: str) -> str:
        await self.other(text)
        return await self.check(await self.write(await self.plan(text)))


def test_the_nearest_stage_earns_most_of_what_a_step_found() -> None:
    """Those before it may be at fault as well, those that had no part in it are not."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(f"{asked(messages)} {info.instructions}")])

    run = Twofold().run_sync("ab", model=FunctionModel(answer))
    notes = [run.call("check").note("wrong", 2.0)]
    assert blame(run, Score(0.5, notes)) == {"write": 1.0, "plan": 0.5}
    found = credited(run, notes)
    assert {key: [(one.target, one.weight) for one in earned] for key, earned in found.items()} == {
        "write": [("check", 1.0)],
        "plan": [("check", 0.5)],
    }
    assert "- later, seen at `check`: wrong" in stage_feedback(run, Score(0.5, notes), "plan")
    assert "Nothing was noted" in stage_feedback(run, Score(0.5, notes), "other")


def test_a_note_on_a_call_is_not_about_its_namesake() -> None:
    """The first call of a stage has the stage's path as its key; the second one did nothing."""

    class Again(Graph[str, str]):
        write = Stage(str, Agent(instructions="write"))

        async def flow(self, text: str) -> str:
            return await self.write(await self.write(text))

    run = Again().run_sync("ab", model=says("one", "two"))
    first, second = run.calls(Again.write)
    assert (first.key, second.key) == ("write", "write#1")
    assert list(credited(run, [first.note("bad")])) == ["write"]
    assert list(credited(run, [second.note("bad")])) == ["write#1"]


def test_a_note_on_a_graph_is_for_the_stages_inside(prediction: Any) -> None:
    """`rate[1]` is one branch."""
    found = credited(run_of(prediction), [note("rate[1]", "odd")])
    assert list(found) == ["rate[1].judge"]
