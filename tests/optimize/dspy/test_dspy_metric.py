"""One metric for every optimizer of DSPy."""

import asyncio
import inspect
import threading
from typing import Any

import dspy
import pytest
from words import ROWS, Doc, Rated, Words, grade, scripted

from stagegraph import Example, Run, Score, TuningError
from stagegraph.optimize import GraphModule, TuningStopped, dspy_metric, graded, to_dspy

GOLD = to_dspy(ROWS, Words())


def raises(_example: Any, _run: Any) -> float:
    raise KeyError("gone")


@pytest.fixture(scope="module")
def prediction() -> Any:
    return GraphModule(Words(), model=scripted())(text="a bc")


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
    assert asyncio.run(graded(metric, ROWS[0], prediction.run)) == Score(0.5)
    faces[0](GOLD[0], prediction, [], "plan", [])
    assert found == [0.5] * 8
    assert len(asked_for) == 1


def test_a_broken_metric_ends_an_evaluation() -> None:
    """DSPy would go on with zeros."""
    module = GraphModule(Words(), model=scripted())
    with pytest.raises(TuningStopped, match="KeyError"):
        dspy.Evaluate(devset=GOLD, metric=dspy_metric(raises), num_threads=2)(module)


def test_objectives_reach_gepa(prediction: Any) -> None:
    """As a prediction where GEPA scores, as a number where a demo is bootstrapped."""
    face = dspy_metric(lambda _example, _run: Score(0.5, objectives={"brevity": -3.0}))
    scored = face(GOLD[0], prediction)
    assert (scored.score, scored.objective_scores) == (0.5, {"brevity": -3.0})
    assert face(GOLD[0], prediction, []) == 0.5


def test_what_was_expected_reaches_the_reflection_model(prediction: Any) -> None:
    """Where a number is all that the metric gives."""
    told = dspy_metric(lambda _example, _run: 0.25)(GOLD[0], prediction, [], "plan", [])
    assert 'Expected in the end: {"total": 6}' in told.feedback


def test_a_prediction_of_no_run_is_an_error() -> None:
    """Of another module, say."""
    with pytest.raises(TuningError, match="of no run"):
        dspy_metric(grade)(GOLD[0], dspy.Prediction(total=1))
