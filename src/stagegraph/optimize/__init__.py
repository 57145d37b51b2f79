"""Optimization: a graph as a DSPy program, one metric for every optimizer, data from and to DSPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagegraph.schema.docs import lazy_names as _lazy_names
from stagegraph.schema.errors import needs_extra as _needs_extra

if TYPE_CHECKING:
    from stagegraph.optimize.dspy.fields import from_dspy, to_dspy
    from stagegraph.optimize.dspy.finetuning import BootstrapFinetune
    from stagegraph.optimize.dspy.metric import dspy_metric
    from stagegraph.optimize.dspy.module import GraphModule
    from stagegraph.optimize.dspy.program import TuningStopped
    from stagegraph.optimize.dspy.teleprompter import GEPA
    from stagegraph.optimize.evaluation.blame import credited
    from stagegraph.optimize.evaluation.budget import Budget
    from stagegraph.optimize.evaluation.compare import Comparison, compare
    from stagegraph.optimize.evaluation.data import examples, from_pydantic_evals, stratified_split, to_pydantic_evals
    from stagegraph.optimize.evaluation.evaluate import evaluate
    from stagegraph.optimize.evaluation.judge import Judge, judge
    from stagegraph.optimize.evaluation.metric import Metric, graded, wants_failed_runs
    from stagegraph.optimize.evaluation.report import Report, ReportRow
    from stagegraph.optimize.evaluation.shown import stage_feedback
    from stagegraph.optimize.lms.lm import lm
    from stagegraph.optimize.tuning.options import TuningOptions
    from stagegraph.optimize.tuning.proposers import Candidates, Proposal
    from stagegraph.optimize.tuning.tune import Preview, Tuning, preview, tune
else:
    # A name is loaded when it is asked for: DSPy takes seconds.
    __getattr__ = _lazy_names(
        __name__,
        {
            "dspy.fields": ("from_dspy", "to_dspy"),
            "dspy.finetuning": ("BootstrapFinetune",),
            "dspy.metric": ("dspy_metric",),
            "dspy.module": ("GraphModule",),
            "dspy.program": ("TuningStopped",),
            "dspy.teleprompter": ("GEPA",),
            "evaluation.blame": ("credited",),
            "evaluation.budget": ("Budget",),
            "evaluation.compare": ("Comparison", "compare"),
            "evaluation.data": ("examples", "from_pydantic_evals", "stratified_split", "to_pydantic_evals"),
            "evaluation.evaluate": ("evaluate",),
            "evaluation.judge": ("Judge", "judge"),
            "evaluation.metric": ("Metric", "graded", "wants_failed_runs"),
            "evaluation.report": ("Report", "ReportRow"),
            "evaluation.shown": ("stage_feedback",),
            "lms.lm": ("lm",),
            "tuning.options": ("TuningOptions",),
            "tuning.proposers": ("Candidates", "Proposal"),
            "tuning.tune": ("Preview", "Tuning", "preview", "tune"),
        },
        lambda name: _needs_extra("optimize", name, "dspy", "gepa"),
    )

__all__ = [  # noqa: RUF022 - plain order, as a test wants it
    "BootstrapFinetune",
    "Budget",
    "Candidates",
    "Comparison",
    "GEPA",
    "GraphModule",
    "Judge",
    "Metric",
    "Preview",
    "Proposal",
    "Report",
    "ReportRow",
    "Tuning",
    "TuningOptions",
    "TuningStopped",
    "compare",
    "credited",
    "dspy_metric",
    "evaluate",
    "examples",
    "from_dspy",
    "from_pydantic_evals",
    "graded",
    "judge",
    "lm",
    "preview",
    "stage_feedback",
    "stratified_split",
    "to_dspy",
    "to_pydantic_evals",
    "tune",
    "wants_failed_runs",
]
