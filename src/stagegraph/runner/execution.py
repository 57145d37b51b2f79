"""One run while it goes on: frames, the record, prompts, models, limits and watchers of that run alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

import anyio

from stagegraph.agent.answer import Setting, call_agent, picked_deps
from stagegraph.data.events import CallFinished, CallRetried, CallStarted, TextDelta
from stagegraph.nodes.node import Node
from stagegraph.schema.errors import DeclarationError, NotRunningError, StageError

from .event_log import EventLog
from .gate import Gate
from .identity import Fixed, stage_parts, step_parts
from .limits import Ledger, LimitReached
from .recorder import MISSING, Recorder
from .state import Entry

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Tree
    from stagegraph.nodes.stage import Stage
    from stagegraph.nodes.step import Step

    from .observer import Trace, Tracing

__all__ = ["Execution", "Terms"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """What the runner and the caller agreed on for one run."""

    run_id: str
    deps: object
    prompts: Prompts
    model_for: Callable[[str, Stage[Any, Any]], Model[Any] | None]
    fan_out_limit: int
    slots: anyio.Semaphore | None
    """Model requests that may be in flight at once, shared by all runs of the runner."""
    ledger: Ledger | None
    log: EventLog | None
    deltas: bool
    tracing: Tracing | None
    answers: Mapping[str, Mapping[str, object]]
    """Key of a suspended call -> tool call id -> answer."""
    kept: bool = True
    """Whether somebody can go on with the run later, if it is recorded."""


class Execution:
    """The state of one run. Nothing of it outlives the run but the record."""

    __slots__ = (
        "broken",
        "entries",
        "fixed",
        "limit",
        "log",
        "over",
        "recorder",
        "repeats",
        "scope",
        "stopped",
        "terms",
        "trace",
        "tree",
    )

    def __init__(self, tree: Tree, terms: Terms) -> None:
        self.tree = tree
        self.terms = terms
        self.log = terms.log
        self.entries: dict[str, Entry] = {}
        """Key -> entry, in the order in which the calls began."""
        self.repeats: dict[str, int] = {}
        self.scope = anyio.CancelScope()
        self.limit: str | None = None
        """Which limit ended the run, if one did."""
        self.stopped: StageError | None = None
        """The call that came to the limit first."""
        self.broken: Exception | None = None
        """Why nothing can be recorded any more, or may not be made again."""
        self.over = False
        """Whether the flow has ended; a task that got away from it can call nothing any more."""
        self.recorder: Recorder | None = None
        self.trace: Trace | None = None
        self.fixed: dict[str, Fixed] = {}
        """Path -> what the identities of all its calls in this run have in common."""

    @property
    def root_name(self) -> str:
        """The path and key of what is run: nothing for a graph, its name for a single stage or step."""
        root = self.tree.root
        return "" if root.__node__.kind == "graph" else root.__node__.name

    def open(self, node: Node[Any, Any], path: str, key: str, parent: Entry | None, value: object) -> Entry:
        entries = self.entries
        if self.over:
            msg = (
                f"{node.__node__.kind} `{node.__node__.name}` was called after its run had ended: await it in the flow, "
                "by itself or with `gather`, `fan_out` or a task group"
            )
            raise NotRunningError(msg)
        if key in entries:
            number = self.repeats[key] = self.repeats.get(key, 0) + 1
            key = f"{key}#{number}"
        entry = entries[key] = Entry(node, path, key, parent, value, len(entries))
        if self.log is not None:
            self.log.put(CallStarted, key=key, path=path, kind=node.__node__.kind)
        if self.recorder is not None and node.__node__.kind == "graph":
            self.recorder.begin(entry)
        if self.terms.ledger is not None and node.__node__.kind == "stage":
            self.terms.ledger.call_began()
        return entry

    def close(self, entry: Entry) -> None:
        entry.ended = entry.ended or perf_counter()
        if self.terms.ledger is not None and entry.node.__node__.kind == "stage":
            self.terms.ledger.call_ended()
        if self.recorder is not None:
            self.recorder.ended(entry)
        if self.trace is not None and entry.parent is not None:
            self.trace.ended(entry)
        if self.log is not None:
            usage = entry.use.usage
            self.log.put(
                CallFinished,
                key=entry.key,
                path=entry.path,
                kind=entry.node.__node__.kind,
                status=entry.status,
                error=entry.error.message if entry.error else None,
                duration=entry.duration,
                requests=usage.requests,
                input_tokens=usage.input_tokens,
                output_tokens=usage.output_tokens,
                cost=entry.use.cost,
            )

    def end_by_limit(self, reason: str, stopped: StageError) -> None:
        """Cancel everything that still runs: a reached limit ends the run, whatever the flow catches."""
        if self.limit is None:
            self.limit, self.stopped = reason, stopped
        self.scope.cancel()

    def break_off(self, error: Exception) -> None:
        """Cancel everything, whatever the flow catches: what goes on unrecorded would be paid for again."""
        self.broken = self.broken or error
        self.scope.cancel()

    async def run_step(self, step: Step[Any, Any], entry: Entry) -> Any:
        if self.recorder is not None:
            fixed = self.fixed.get(entry.path)
            if fixed is None:
                fixed = self.fixed[entry.path] = Fixed(entry.path, step_parts(step))
            output, _ = self.recorder.recalled(entry, fixed, None)
            if output is not MISSING:
                return output
        return await step.fn(entry.input)

    async def run_stage(self, stage: Stage[Any, Any], entry: Entry) -> Any:
        terms, log = self.terms, self.log

        def on_text(text: str) -> None:
            if log is not None:
                log.put(TextDelta, key=entry.key, path=entry.path, text=text)

        def on_retry(attempt: int, error: Exception, wait: float) -> None:
            if log is not None:
                log.put(CallRetried, key=entry.key, path=entry.path, attempt=attempt, error=str(error), wait=wait)

        try:
            setting = Setting(
                model=terms.model_for(entry.path, stage),
                prompt=terms.prompts.get(entry.path),
                deps=picked_deps(stage, entry, terms.deps),
                gate=Gate(self, entry),
                on_text=on_text if log is not None and terms.deltas else None,
                on_retry=on_retry,
                answers=terms.answers.get(entry.key, {}),
                watching=self.trace.agent(entry, stage) if self.trace is not None else (),
            )
            recorder = self.recorder
            if recorder is None:
                return await call_agent(stage, entry, setting, None, None)
            fixed = self.fixed.get(entry.path)
            if fixed is None:
                parts = stage_parts(stage, setting.prompt, setting.model)
                fixed = self.fixed[entry.path] = Fixed(entry.path, parts)
            output, found = recorder.recalled(entry, fixed, setting.prompt)
            if output is not MISSING:
                return output
            memory = recorder.memory(entry, found) if terms.kept else None
            if self.trace is None:
                return await call_agent(stage, entry, setting, memory, found)
            with self.trace.replaying():
                return await call_agent(stage, entry, setting, memory, found)
        except DeclarationError as error:
            msg = f"stage `{entry.key}`: {error}"
            raise StageError(msg, key=entry.key, path=entry.path) from error
        except LimitReached as error:
            msg = f"stage `{entry.key}` was not allowed to ask its model: {error}"
            stopped = StageError(msg, key=entry.key, path=entry.path)
            self.end_by_limit(str(error), stopped)
            raise stopped from error
