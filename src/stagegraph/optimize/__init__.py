"""Optimization: a graph as a DSPy program, one metric for every optimizer, data from and to DSPy."""

from __future__ import annotations

from typing import TYPE_CHECKING

from stagegraph.schema.docs import lazy_names as _lazy_names
from stagegraph.schema.errors import needs_extra as _needs_extra

if TYPE_CHECKING:
    from stagegraph.optimize.dspy.fields import from_dspy as from_dspy
    from stagegraph.optimize.dspy.fields import to_dspy as to_dspy
    from stagegraph.optimize.dspy.finetuning import BootstrapFinetune as BootstrapFinetune
    from stagegraph.optimize.dspy.metric import dspy_metric as dspy_metric
    from stagegraph.optimize.dspy.module import GraphModule as GraphModule
    from stagegraph.optimize.dspy.program import TuningStopped as TuningStopped
    from stagegraph.optimize.dspy.teleprompter import GEPA as GEPA
    from stagegraph.optimize.evaluation.blame import credited as credited
    from stagegraph.optimize.evaluation.budget import Budget as Budget
    from stagegraph.optimize.evaluation.compare import Comparison as Comparison
    from stagegraph.optimize.evaluation.compare import compare as compare
    from stagegraph.optimize.evaluation.data import examples as examples
    from stagegraph.optimize.evaluation.data import from_pydantic_evals as from_pydantic_evals
    from stagegraph.optimize.evaluation.data import stratified_split as stratified_split
    from stagegraph.optimize.evaluation.data import to_pydantic_evals as to_pydantic_evals
    from stagegraph.optimize.evaluation.evaluate import evaluate as evaluate
    from stagegraph.optimize.evaluation.judge import Judge as Judge
    from stagegraph.optimize.evaluation.judge import judge as judge
    from stagegraph.optimize.evaluation.metric import Metric as Metric
    from stagegraph.optimize.evaluation.metric import graded as graded
    from stagegraph.optimize.evaluation.metric import wants_failed_runs as wants_failed_runs
    from stagegraph.optimize.evaluation.report import Report as Report
    from stagegraph.optimize.evaluation.report import ReportRow as ReportRow
    from stagegraph.optimize.evaluation.shown import stage_feedback as stage_feedback
    from stagegraph.optimize.lms.lm import lm as lm
    from stagegraph.optimize.tuning.options import TuningOptions as TuningOptions
    from stagegraph.optimize.tuning.proposers import Candidates as Candidates
    from stagegraph.optimize.tuning.proposers import Proposal as Proposal
    from stagegraph.optimize.tuning.tune import Preview as Preview
    from stagegraph.optimize.tuning.tune import Tuning as Tuning
    from stagegraph.optimize.tuning.tune import preview as preview
    from stagegraph.optimize.tuning.tune import tune as tune
else:
    # A name is loaded when it is asked for: DSPy takes seconds.
    __getattr__, __dir__, __all__ = _lazy_names(
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
