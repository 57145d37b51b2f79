"""Build products out of several LLM agents: typed, traced, replayed and tuned as one graph."""

from typing import TYPE_CHECKING

from .schema.docs import lazy_names as _lazy_names

if TYPE_CHECKING:
    from .data.call import Call, CallError, CallInfo, Pending
    from .data.events import Event, parse_event
    from .data.examples import Example, split_examples
    from .data.prompt import Demo, Prompt
    from .data.prompts import Prompts
    from .data.score import Feedback, Note, Score, note
    from .graph import Graph
    from .nodes.branches import Outcome
    from .nodes.current import current_call
    from .nodes.flow import as_completed, fan_out, gather, settle
    from .nodes.node import Node
    from .nodes.stage import Stage
    from .nodes.step import Step, step
    from .record.example_files import load_examples, save_examples
    from .record.run import InputError, LimitError, ReplayError, Run, RunError
    from .runner.deps import DepsOf
    from .runner.feedback import feedback
    from .runner.limits import Limits
    from .runner.live import LiveRun
    from .runner.options import ResumeOptions, RunOptions
    from .runner.runner import Runner
    from .schema.errors import (
        BusyError,
        DeclarationError,
        JournalError,
        NotRunningError,
        PromptError,
        StageError,
        StagegraphError,
        TracingError,
        TuningError,
    )

__all__ = [
    "BusyError",
    "Call",
    "CallError",
    "CallInfo",
    "DeclarationError",
    "Demo",
    "DepsOf",
    "Event",
    "Example",
    "Feedback",
    "Graph",
    "InputError",
    "JournalError",
    "LimitError",
    "Limits",
    "LiveRun",
    "Node",
    "NotRunningError",
    "Note",
    "Outcome",
    "Pending",
    "Prompt",
    "PromptError",
    "Prompts",
    "ReplayError",
    "ResumeOptions",
    "Run",
    "RunError",
    "RunOptions",
    "Runner",
    "Score",
    "Stage",
    "StageError",
    "StagegraphError",
    "Step",
    "TracingError",
    "TuningError",
    "as_completed",
    "current_call",
    "fan_out",
    "feedback",
    "gather",
    "load_examples",
    "note",
    "parse_event",
    "save_examples",
    "settle",
    "split_examples",
    "step",
]

__getattr__, __dir__ = _lazy_names(
    __name__,
    {
        "data.call": ("Call", "CallError", "CallInfo", "Pending"),
        "data.events": ("Event", "parse_event"),
        "data.examples": ("Example", "split_examples"),
        "data.prompt": ("Demo", "Prompt"),
        "data.prompts": ("Prompts",),
        "data.score": ("Feedback", "Note", "Score", "note"),
        "graph": ("Graph",),
        "nodes.branches": ("Outcome",),
        "nodes.current": ("current_call",),
        "nodes.flow": ("as_completed", "fan_out", "gather", "settle"),
        "nodes.node": ("Node",),
        "nodes.stage": ("Stage",),
        "nodes.step": ("Step", "step"),
        "record.example_files": ("load_examples", "save_examples"),
        "record.run": ("InputError", "LimitError", "ReplayError", "Run", "RunError"),
        "runner.deps": ("DepsOf",),
        "runner.feedback": ("feedback",),
        "runner.limits": ("Limits",),
        "runner.live": ("LiveRun",),
        "runner.options": ("ResumeOptions", "RunOptions"),
        "runner.runner": ("Runner",),
        "schema.errors": (
            "BusyError",
            "DeclarationError",
            "JournalError",
            "NotRunningError",
            "PromptError",
            "StageError",
            "StagegraphError",
            "TracingError",
            "TuningError",
        ),
    },
)
"""A program that only reads a journal does not wait for Pydantic AI."""
