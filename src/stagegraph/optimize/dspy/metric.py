"""A metric about typed runs, in the form in which DSPy's optimizers call theirs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import dspy

from stagegraph.nodes.stage import stages_of
from stagegraph.optimize.evaluation.metric import Metric, grader_of
from stagegraph.optimize.evaluation.shown import stage_feedback
from stagegraph.optimize.lms.loop import run_here
from stagegraph.schema.errors import TuningError

from .fields import from_dspy
from .predictors import RunPrediction, StagePredict
from .program import end_evaluation, in_executor

if TYPE_CHECKING:
    from stagegraph.record.run import Run


def dspy_metric(metric: Metric, *, limit: int = 8_000) -> Callable[..., Any]:
    """A metric as DSPy's optimizers call theirs: with two, three or five arguments.

    `(gold, prediction)` and `(gold, prediction, trace)` give a number, which most optimizers expect. A score with
    objectives is a `dspy.Prediction` that has them. With the name of a predictor, as `dspy.GEPA` asks for feedback, it
    is a `dspy.Prediction(score, feedback)` whose feedback has all calls of that stage, the worst first.

    Args:
        metric: `(example, run) -> Score | float | bool`, sync or async. It is asked once per run.
        limit: Characters of one feedback.

    Raises (when it is called):
        TuningError: the metric failed, returned something that is no score, or got a prediction without a run.
        TuningStopped: instead of it, where one of DSPy's evaluations would make a score of 0 out of it.
    """
    grader = grader_of(metric)

    def face(
        gold: dspy.Example, prediction: Any, trace: Any = None, pred_name: str | None = None, pred_trace: Any = None
    ) -> Any:
        run = None
        try:
            run = _run_of(prediction, grader.name)
            example = from_dspy(gold, run.tree.root)
            score = run_here(grader(example, run), "await graded(metric, example, run)")
        except Exception as error:
            if in_executor():
                end_evaluation(error, None if run is None else run.tree.root)
            raise
        if pred_name is not None:
            path = _path(run, pred_name, pred_trace)
            feedback = stage_feedback(run, score, path, expected=example.expected, limit=limit)
            return dspy.Prediction(score=score.value, feedback=feedback)
        if score.objectives and trace is None:
            return dspy.Prediction(score=score.value, objective_scores=dict(score.objectives))
        return score.value

    face.__name__ = grader.name
    face.__doc__ = getattr(metric, "__doc__", None)
    return face


def _run_of(prediction: object, metric: str) -> Run[Any, Any]:
    if isinstance(prediction, RunPrediction):
        return prediction.run
    msg = (
        f"the metric {metric} was shown {type(prediction).__name__}, which is of no run: optimize a "
        "GraphModule, or return its prediction from the module around it"
    )
    raise TuningError(msg)


def _path(run: Run[Any, Any], name: str, pred_trace: Any) -> str:
    """The stage of a predictor."""
    for predictor, *_ in pred_trace or ():
        if isinstance(predictor, StagePredict):
            return predictor.path
    last = name.rpartition(".")[2]
    for path in stages_of(run.tree.root):
        if last in {path, path.replace(".", "__")}:
            return path
    msg = f"there is no predictor `{name}` in {run.graph}"
    raise TuningError(msg)
