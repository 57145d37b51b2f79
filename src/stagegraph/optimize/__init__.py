"""Optimization: a graph as a DSPy program, one metric for every optimizer, data from and to DSPy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from ._missing import needing as _needing

if TYPE_CHECKING:
    from ._credit import credited
    from ._feedback import stage_feedback
    from ._lm import lm
    from .budget import Budget
    from .cases import from_pydantic_evals, to_pydantic_evals  # pyright: ignore[reportUnknownVariableType]
    from .comparison import Comparison, compare
    from .data import examples, from_dspy, stratified_split, to_dspy
    from .dspy.finetuning import BootstrapFinetune
    from .dspy.metric import dspy_metric
    from .dspy.module import GraphModule
    from .dspy.provider import TuningStopped
    from .dspy.teleprompter import GEPA
    from .evaluation import evaluate
    from .grading import Metric, graded, wants_failed_runs
    from .judging import Judge, judge
    from .report import Report, ReportRow
    from .tuning.proposers import Candidates, Proposal
    from .tuning.tune import Preview, Tuning, preview, tune

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

_HOMES = {
    "tune": "tuning.tune",
    "preview": "tuning.tune",
    "evaluate": "evaluation",
    "compare": "comparison",
    "Tuning": "tuning.tune",
    "ReportRow": "report",
    "Report": "report",
    "Proposal": "tuning.proposers",
    "Preview": "tuning.tune",
    "GEPA": "dspy.teleprompter",
    "Comparison": "comparison",
    "Candidates": "tuning.proposers",
    "BootstrapFinetune": "dspy.finetuning",
    "Budget": "budget",
    "GraphModule": "dspy.module",
    "Judge": "judging",
    "Metric": "grading",
    "TuningStopped": "dspy.provider",
    "credited": "_credit",
    "dspy_metric": "dspy.metric",
    "examples": "data",
    "from_dspy": "data",
    "from_pydantic_evals": "cases",
    "to_pydantic_evals": "cases",
    "graded": "grading",
    "judge": "judging",
    "lm": "_lm",
    "stage_feedback": "_feedback",
    "stratified_split": "data",
    "to_dspy": "data",
    "wants_failed_runs": "grading",
}
"""Public name -> the file it is in, which is read when it is asked for: DSPy takes seconds to load."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    with _needing(name):
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
