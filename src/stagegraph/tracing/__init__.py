"""Langfuse: traces, scores, deployed prompts and data sets, and recorded runs as data for training."""

from stagegraph.record.source import JournalRuns, RunSource
from stagegraph.schema.docs import document as _document

from .datasets import Experiment, ExperimentRow, from_dataset, run_experiment, to_dataset
from .prompts import LangfusePrompts, deploy_prompts, langfuse_prompts, promote_prompts, rollback_prompts
from .runs import LangfuseRuns
from .tracing import LangfuseTracing, shared

__all__ = [
    "Experiment",
    "ExperimentRow",
    "JournalRuns",
    "LangfusePrompts",
    "LangfuseRuns",
    "LangfuseTracing",
    "RunSource",
    "deploy_prompts",
    "from_dataset",
    "langfuse_prompts",
    "promote_prompts",
    "rollback_prompts",
    "run_experiment",
    "shared",
    "to_dataset",
]

_document([Experiment, ExperimentRow])
