"""One metric for every optimizer: what a user writes about a typed run, as DSPy's optimizers call it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dspy

from stagegraph.nodes.stage import stages_of
from stagegraph.schema.errors import TuningError

from ._feedback import stage_feedback
from ._loop import run_here
from ._provider import raise_through_evaluation
from ._trace import RunPrediction
from .data import from_dspy
from .grading import Metric, grader_of, wants_failed_runs

if TYPE_CHECKING:
    from stagegraph.data.score import Score
    from stagegraph.record.run import Run

__all__ = ["Metric", "dspy_metric", "wants_failed_runs"]


def dspy_metric(metric: Metric, *, limit: int = 8_000) -> Callable[..., Any]:
    """A metric as DSPy's optimizers call theirs: with two, three or five arguments.

    `(gold, prediction)` and `(gold, prediction, trace)` give a plain number, which is what most optimizers want; a
    score with objectives is a `dspy.Prediction` that has them. With the name of a predictor, as `dspy.GEPA` asks for
    feedback, it is a `dspy.Prediction(score, feedback)` whose feedback tells of all calls of that stage, worst first.

    Args:
        metric: `(example, run) -> Score | float | bool`, sync or async. It is asked once per run.
        limit: Characters of one feedback.

    Raises (when it is called):
        TuningError: the metric raised, gave what is no score, or was shown a prediction that is of no run.
    """
    grader = grader_of(metric)

    def face(
        gold: dspy.Example, prediction: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None
    ) -> Any:
        try:
            run = _run_of(prediction, grader.name)
            example = from_dspy(gold, run.tree.root)
            score = run_here(grader(example, run), "await graded(metric, example, run)")
        except Exception as error:  # DSPy would take it for a score of 0
            raise_through_evaluation(error)
            raise
        if pred_name is not None:
            path = _path(run, pred_name, pred_trace)
            feedback = stage_feedback(run, score, path, expected=example.expected, limit=limit)
            return dspy.Prediction(score=score.value, feedback=feedback)
        if score.objectives and trace is None:
            return _with_objectives(score)
        return score.value

    face.__name__ = grader.name
    face.__doc__ = getattr(metric, "__doc__", None)
    return face


def _with_objectives(score: Score) -> dspy.Prediction:
    return dspy.Prediction(score=score.value, objective_scores=dict(score.objectives))


def _run_of(prediction: object, metric: str) -> Run[Any, Any]:
    if isinstance(prediction, RunPrediction):
        return prediction.run
    msg = (
        f"the metric {metric} was shown {type(prediction).__name__}, which is of no run: optimize a "
        "GraphModule, or return its prediction from the module around it"
    )
    raise TuningError(msg)


def _path(run: Run[Any, Any], name: str, pred_trace: Any) -> str:
    """The stage that a predictor stands for."""
    for predictor, *_ in pred_trace or ():
        path = getattr(predictor, "path", None)
        if isinstance(path, str):
            return path
    last = name.rpartition(".")[2]
    for path in stages_of(run.tree.root):
        if last in {path, path.replace(".", "__")}:
            return path
    msg = f"there is no predictor `{name}` in {run.graph}"
    raise TuningError(msg)
