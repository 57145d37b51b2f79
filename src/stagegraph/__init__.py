"""Build products out of several LLM agents: typed, traced, replayed and tuned as one graph."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .call import Call, CallError, CallInfo, Pending
    from .errors import (
        BusyError,
        DeclarationError,
        InputError,
        JournalError,
        LimitError,
        NotRunningError,
        PromptError,
        ReplayError,
        RunError,
        StageError,
        StagegraphError,
        TracingError,
        TuningError,
    )
    from .events import Event, parse_event
    from .example import Example, split_examples
    from .example_file import load_examples, save_examples
    from .flow import Outcome, as_completed, fan_out, gather, settle
    from .frame import current_call
    from .graph import Graph
    from .limits import Limits
    from .live import LiveRun
    from .node import Node
    from .prompts import Demo, Prompt, Prompts
    from .run import Run
    from .runner import Runner
    from .score import Feedback, Note, Score, note
    from .scores import feedback
    from .stage import Stage
    from .steps import Step, step

__all__ = [
    "BusyError",
    "Call",
    "CallError",
    "CallInfo",
    "DeclarationError",
    "Demo",
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
    "Run",
    "RunError",
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
    "BusyError": "errors",
    "Call": "call",
    "CallError": "call",
    "CallInfo": "call",
    "DeclarationError": "errors",
    "Demo": "prompts",
    "Event": "events",
    "Example": "example",
    "Feedback": "score",
    "Graph": "graph",
    "InputError": "errors",
    "JournalError": "errors",
    "LimitError": "errors",
    "Limits": "limits",
    "LiveRun": "live",
    "Node": "node",
    "NotRunningError": "errors",
    "Note": "score",
    "Outcome": "flow",
    "Pending": "call",
    "Prompt": "prompts",
    "PromptError": "errors",
    "Prompts": "prompts",
    "ReplayError": "errors",
    "Run": "run",
    "RunError": "errors",
    "Runner": "runner",
    "Score": "score",
    "Stage": "stage",
    "StageError": "errors",
    "StagegraphError": "errors",
    "Step": "steps",
    "TracingError": "errors",
    "TuningError": "errors",
    "as_completed": "flow",
    "current_call": "frame",
    "fan_out": "flow",
    "feedback": "scores",
    "gather": "flow",
    "load_examples": "example_file",
    "note": "score",
    "parse_event": "events",
    "save_examples": "example_file",
    "settle": "flow",
    "split_examples": "example",
    "step": "steps",
}


def __getattr__(name: str) -> object:
    """Load a name when it is asked for: a program that only reads a journal does not wait for Pydantic AI."""
    home = _HOMES.get(name)
    if home is None:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    value = getattr(import_module(f".{home}", __name__), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
