"""Build products out of several LLM agents: typed, traced, replayed and tuned as one graph."""

from typing import TYPE_CHECKING

from .schema.docs import lazy_names as _lazy_names

if TYPE_CHECKING:
    from .data.call import Call as Call
    from .data.call import CallError as CallError
    from .data.call import CallInfo as CallInfo
    from .data.call import Pending as Pending
    from .data.events import Event as Event
    from .data.events import parse_event as parse_event
    from .data.examples import Example as Example
    from .data.examples import split_examples as split_examples
    from .data.prompt import Demo as Demo
    from .data.prompt import Prompt as Prompt
    from .data.prompts import Prompts as Prompts
    from .data.score import Feedback as Feedback
    from .data.score import Note as Note
    from .data.score import Score as Score
    from .data.score import note as note
    from .graph import Graph as Graph
    from .nodes.branches import Outcome as Outcome
    from .nodes.current import current_call as current_call
    from .nodes.flow import as_completed as as_completed
    from .nodes.flow import fan_out as fan_out
    from .nodes.flow import gather as gather
    from .nodes.flow import settle as settle
    from .nodes.node import Node as Node
    from .nodes.stage import Stage as Stage
    from .nodes.step import Step as Step
    from .nodes.step import step as step
    from .record.example_files import load_examples as load_examples
    from .record.example_files import save_examples as save_examples
    from .record.run import InputError as InputError
    from .record.run import LimitError as LimitError
    from .record.run import ReplayError as ReplayError
    from .record.run import Run as Run
    from .record.run import RunError as RunError
    from .runner.deps import DepsOf as DepsOf
    from .runner.feedback import feedback as feedback
    from .runner.limits import Limits as Limits
    from .runner.live import LiveRun as LiveRun
    from .runner.options import ResumeOptions as ResumeOptions
    from .runner.options import RunOptions as RunOptions
    from .runner.runner import Runner as Runner
    from .schema.errors import BusyError as BusyError
    from .schema.errors import DeclarationError as DeclarationError
    from .schema.errors import JournalError as JournalError
    from .schema.errors import NotRunningError as NotRunningError
    from .schema.errors import PromptError as PromptError
    from .schema.errors import StageError as StageError
    from .schema.errors import StagegraphError as StagegraphError
    from .schema.errors import TracingError as TracingError
    from .schema.errors import TuningError as TuningError
else:
    # A name is loaded when it is asked for: a program that only reads a journal does not wait for Pydantic AI.
    __getattr__, __dir__, __all__ = _lazy_names(
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
