"""Build products out of several LLM agents: typed, traced, replayed and tuned as one graph."""

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
from .example import Example, load_examples, save_examples, split_examples
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
from .step import Step, step

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
