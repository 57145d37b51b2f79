"""Build products out of several LLM agents: typed, traced, replayed and tuned as one graph."""

from importlib import import_module
from typing import TYPE_CHECKING

from .schema.docs import document as _document

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

_HOMES = {
    "BusyError": "schema.errors",
    "Call": "data.call",
    "CallError": "data.call",
    "CallInfo": "data.call",
    "DeclarationError": "schema.errors",
    "Demo": "data.prompt",
    "DepsOf": "runner.deps",
    "Event": "data.events",
    "Example": "data.examples",
    "Feedback": "data.score",
    "Graph": "graph",
    "InputError": "record.run",
    "JournalError": "schema.errors",
    "LimitError": "record.run",
    "Limits": "runner.limits",
    "LiveRun": "runner.live",
    "Node": "nodes.node",
    "NotRunningError": "schema.errors",
    "Note": "data.score",
    "Outcome": "nodes.branches",
    "Pending": "data.call",
    "Prompt": "data.prompt",
    "PromptError": "schema.errors",
    "Prompts": "data.prompts",
    "ReplayError": "record.run",
    "ResumeOptions": "runner.options",
    "Run": "record.run",
    "RunError": "record.run",
    "RunOptions": "runner.options",
    "Runner": "runner.runner",
    "Score": "data.score",
    "Stage": "nodes.stage",
    "StageError": "schema.errors",
    "StagegraphError": "schema.errors",
    "Step": "nodes.step",
    "TracingError": "schema.errors",
    "TuningError": "schema.errors",
    "as_completed": "nodes.flow",
    "current_call": "nodes.current",
    "fan_out": "nodes.flow",
    "feedback": "runner.feedback",
    "gather": "nodes.flow",
    "load_examples": "record.example_files",
    "note": "data.score",
    "parse_event": "data.events",
    "save_examples": "record.example_files",
    "settle": "nodes.flow",
    "split_examples": "data.examples",
    "step": "nodes.step",
}


def __getattr__(name: str) -> object:
    """Load a name when it is asked for: a program that only reads a journal does not wait for Pydantic AI."""
    home = _HOMES.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f".{home}", __name__), name)
    _document([value])
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
