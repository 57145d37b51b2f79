"""Runs seen from outside: Langfuse traces, scores and deployed prompts, and what they give for the next training."""

from .datasets import Experiment, ExperimentRow, from_dataset, run_experiment, to_dataset
from .deploy import promote_prompts, rollback_prompts
from .journal_runs import JournalRuns
from .langfuse import LangfuseTracing
from .langfuse_runs import LangfuseRuns
from .prompts import LangfusePrompts
from .source import RunSource

__all__ = [
    "Experiment",
    "ExperimentRow",
    "JournalRuns",
    "LangfusePrompts",
    "LangfuseRuns",
    "LangfuseTracing",
    "RunSource",
    "from_dataset",
    "promote_prompts",
    "rollback_prompts",
    "run_experiment",
    "to_dataset",
]
