"""The executor of one run: what its calls share, and how each call begins, ends and fails."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any

from stagegraph.agent.answer import answer, content_of
from stagegraph.agent.call import LimitReached
from stagegraph.agent.failures import is_transient
from stagegraph.data.call import CallError
from stagegraph.data.events import CallFinished, CallStarted, FanOutStarted
from stagegraph.data.usage import ModelUse
from stagegraph.nodes.current import Suspended
from stagegraph.nodes.group import NOT_CANCELLED, is_cancelled, scope_type
from stagegraph.nodes.node import Undeclared
from stagegraph.nodes.render import render_input
from stagegraph.record.rows import Recorded
from stagegraph.record.run import ReplayError
from stagegraph.schema.errors import DeclarationError, JournalError, NotRunningError, StageError, leaves

from .identity import NodeKey, stage_parts, step_parts
from .recorder import MISSING
from .stage_call import StageCall
from .state import CallState

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.data.prompts import Prompts, PromptSource
    from stagegraph.nodes.node import Node
    from stagegraph.nodes.stage import Stage
    from stagegraph.nodes.step import Step
    from stagegraph.record.rows import Journal

    from .event_log import EventLog
    from .limits import Ledger, Limits, Slots
    from .observer import Trace, Tracing
    from .options import RunSpec
    from .recorder import Recorder
    from .state import RunState

_ORIGIN = "stagegraph_origin"
"""The attribute of an exception that holds where it was first seen: run id, segment, and key of the call."""


@dataclass(slots=True, kw_only=True, eq=False)
class Resources:
    """What a runner provides for one run."""

    prompts: Prompts | PromptSource
    limits: Limits
    runner: object
    """Whose resources these are."""
    model_for: Callable[[str, Stage[Any, Any], Model[Any] | None], Model[Any] | None]
    """The model of a stage, by its path; the third argument is that of the agent that called the graph around it."""
    fan_out_limit: int
    slots: Slots | None
    """The model requests of all runs that may be in flight at once."""
    journal: Journal | None
    resumable: bool
    """Whether the journal outlives the run, so that requests inside an agent are recorded, too."""
    tracing: Tracing | None
    draining: Callable[[], bool]
    """Whether the runner shuts down; a run that is cancelled then can be resumed."""


@dataclass(eq=False, kw_only=True)
class Executor:
    """What the calls of one run share; it opens and closes each of them."""

    spec: RunSpec
    state: RunState
    resources: Resources
    log: EventLog | None
    ledger: Ledger | None
    recorder: Recorder | None
    trace: Trace | None

    def __post_init__(self) -> None:
        self.scope = scope_type()()
        """Around the whole flow."""
        numbered = self.log is not None or self.recorder is not None
        self.now = self.state.clock.tick if numbered else perf_counter
        self._observed = numbered or self.trace is not None
        self._node_keys: dict[str, NodeKey] = {}

    def open(  # noqa: PLR0917 - made for every call
        self,
        node: Node[Any, Any],
        path: str,
        key: str,
        parent: CallState | None,
        value: object,
        fan: tuple[int, int | None] | None = None,
    ) -> CallState:
        """Begin a call with the key that it was given when it was made.

        Raises:
            NotRunningError: the run has ended.
        """
        state = self.state
        if state.over:
            msg = (
                f"{node.__node__.kind} `{node.__node__.name}` was called after its run had ended: await it in the "
                "flow, by itself or with `gather`, `fan_out` or a task group"
            )
            raise NotRunningError(msg)
        calls = state.calls
        call = calls[key] = CallState(node, path, key, parent, value, len(calls), self.now())
        if parent is None:
            state.root = call
        if self._observed:
            call.fan = fan or (parent and parent.fan)
            if self.recorder is not None:
                self.recorder.begin(call)
            self._announce(CallStarted, call)
        return call

    def succeeded(self, call: CallState, output: object) -> Awaitable[None] | None:
        """Keep and announce the output of a call; what it returns is to be awaited: that of a leaf is written first."""
        call.output, call.status, call.ended = output, "succeeded", self.now()
        if self.log is not None:
            self._announce(CallFinished, call)
        if self.recorder is None or call.node.__node__.kind == "graph":
            return None
        return self.recorder.finished(call)

    def close(self, call: CallState) -> None:
        """Leave a call, which has succeeded or failed."""
        if self.recorder is not None:
            self.recorder.ended(call)
        if self.trace is not None and call.parent is not None:
            self.trace.ended(call)

    def _announce(self, event_type: type[CallStarted | CallFinished], call: CallState) -> None:
        if self.log is not None:
            began, duration = call.times(self.state.clock)
            self.log.put(event_type, began if event_type is CallStarted else began + duration, call)

    def announce(self, event_type: type[Any], **fields: object) -> None:
        """Append an event of this moment, if anything follows the run."""
        if self.log is not None:
            self.log.put(event_type, self.state.clock.stamp(), fields)

    def fanned_out(self, key: str, size: int) -> None:
        """Announce a fan-out; it has the time of its first announcement, where the run was resumed since."""
        if self.log is not None:
            before = None if self.recorder is None else self.recorder.fanned_out(f"{key}[")
            at = self.state.clock.stamp() if before is None else before
            self.log.put(FanOutStarted, at, {"key": key, "size": size})

    def reject(self, value: object, error: Exception) -> None:
        """Record that the input of the run is invalid."""
        root = self.state.root
        call = self.open(root.node, root.path, root.key, None, value)
        self.fail(call, error)
        self.close(call)

    def fail(self, call: CallState, error: BaseException) -> StageError | None:
        """Keep and announce how a call failed; returns the error that stands for a cancellation of something else."""
        if call.status == "succeeded" and not isinstance(error, Exception):
            return None  # it has ended, and only the wait for its record was cancelled
        call.ended = self.now()
        call.ran = None if call.ran is None else (call.ran[0], None)
        lost = None
        if isinstance(error, Suspended):
            call.status = "suspended"
        elif isinstance(error, Exception):
            # A call that a limit stopped has not failed by itself: it continues when the run is resumed.
            call.status = "failed" if self.state.limit is None else "cancelled"
            leaf = call.node.__node__.kind != "graph"
            origin = self.origin_of(error)
            if origin is None or (leaf and not origin.startswith(f"{call.key}.")):
                origin = call.key
            call.error = self._seen(error, origin)
            if leaf and isinstance(error, (JournalError, ReplayError)):
                self.state.broken = self.state.broken or error
                self.scope.cancel()
        else:
            call.status = "cancelled"
            members = leaves(error)
            if all(isinstance(one, (Exception, asyncio.CancelledError)) for one in members) and not any(
                map(is_cancelled, members)
            ):
                lost = self.lost(call)
                call.status, call.error = "failed", CallError("CancelledError", NOT_CANCELLED, origin=call.key)
        self._announce(CallFinished, call)
        return lost

    def lost(self, call: CallState) -> StageError:
        """The error of a call that awaited something cancelled: a cancellation would end whatever awaits the run."""
        kind, name = call.node.__node__.kind, f"`{call.key}`" if call.key else call.node.__node__.name
        error = StageError(f"{kind} {name} failed: {NOT_CANCELLED}", key=call.key, path=call.path)
        self._seen(error, call.key)
        return error

    def _seen(self, error: Exception, origin: str) -> CallError:
        """Write down on an exception where it was first seen, and return it as data: a group as its members."""
        members = leaves(error)
        for one in (error, *members):
            if one is error or self.origin_of(one) is None:
                vars(one)[_ORIGIN] = (self.spec.run_id, self.state.segment, origin)
        transient = is_transient(error)
        inner = [CallError(type(leaf).__name__, str(leaf), transient, origin) for leaf in members]
        if len(inner) == 1:
            return inner[0]
        return CallError(type(error).__name__, "; ".join(map(str, inner)), transient, origin)

    def origin_of(self, error: BaseException) -> str | None:
        """The key of the call of this run in which an exception, or what it was raised from, was first seen.

        Follows `__cause__`. A group has the origin of its members, unless one of them was seen in no call.
        """
        seen: set[int] = set()
        cause: BaseException | None = error
        while cause is not None and id(cause) not in seen:
            seen.add(id(cause))
            origin: tuple[str, int, str] | None = vars(cause).get(_ORIGIN)
            if origin is not None and origin[:2] == (self.spec.run_id, self.state.segment):
                return origin[2]
            members = leaves(cause)
            if members[0] is not cause:
                origins = [self.origin_of(leaf) for leaf in members]
                if None not in origins:
                    return origins[0]
            cause = cause.__cause__
        return None

    async def step_output(self, step: Step[Any, Any], call: CallState, recorder: Recorder) -> Any:
        """The recorded output of a step, or that of running it."""
        node_key = self._node_keys.get(call.path)
        if node_key is None:
            node_key = self._node_keys[call.path] = NodeKey(call.path, step_parts(step))
        output, found = recorder.recalled(call, node_key)
        if output is MISSING:
            recorder.step_begins(call)
            return await step.fn(call.input)
        self._restore(call, found)
        return output

    def counted(self) -> AbstractContextManager[None]:
        """Around a stage call, for the limits."""
        return nullcontext() if self.ledger is None else self.ledger.call()

    def waits_inside(self, call: CallState | None) -> AbstractContextManager[None]:
        """Around a graph that an agent inside a call runs; for the limits, the call itself waits meanwhile."""
        if self.ledger is None or call is None or call.node.__node__.kind != "stage":
            return nullcontext()
        return self.ledger.waits(call.key)

    def _restore(self, call: CallState, found: Recorded | None, label: str = "") -> None:
        """Bring back the calls that a recalled call, or one tool call in it, has made: they are not made again."""
        if self.recorder is None or found is None:
            return
        state, recorder, recalled = self.state, self.recorder, found.row
        for row in recorder.inside(recalled, label):
            key = call.key + row.key[len(recalled.key) :]
            if key in state.calls:
                continue
            node = state.tree.nodes.get(row.path) or Undeclared(row.kind, row.path.rpartition(".")[2])
            child = CallState(node, row.path, key, call, None, len(state.calls), self.now())
            if not recorder.restored(child, row):
                continue
            state.calls[key] = child
            base, _, number = key.rpartition("#")
            base, number = (base, int(number)) if base and number.isdecimal() else (key, 0)
            state.repeats[base] = max(state.repeats.get(base, -1), number)
            child.ended = self.now()
            if self.trace is not None:
                self.trace.ended(child)
            self._restore(child, Recorded(row))

    async def stage_output(self, stage: Stage[Any, Any], call: CallState) -> Any:
        """The recorded output of a stage, or that of running its agent.

        Raises:
            StageError: the agent failed, or a limit of the run does not allow its requests.
        """
        call.use = ModelUse()
        try:
            lent = None if (lender := call.lender) is None else lender.model
            agent_call = StageCall(
                key=call.key,
                path=call.path,
                input=call.input,
                deps=call.deps(self.spec.deps),
                use=call.use,
                model=self.resources.model_for(call.path, stage, lent),
                prompt=self.state.prompts.get(call.path),
                answers=self.spec.answers.get(call.key, {}),
                observing=() if self.trace is None else self.trace.agent(call, stage),
                streams=self.spec.deltas and self.log is not None,
                announce=self.announce,
                recorder=self.recorder,
                ledger=self.ledger,
                slots=self.resources.slots,
            )
            if self.recorder is None:
                return await answer(stage, agent_call, None)
            node_key = self._node_keys.get(call.path)
            if node_key is None:
                parts = stage_parts(stage, agent_call.prompt, agent_call.model)
                node_key = self._node_keys[call.path] = NodeKey(call.path, parts)
            if stage.render is not render_input:  # whose text says no more than the input
                agent_call.content = content_of(stage, agent_call)
            output, found = self.recorder.recalled(call, node_key, agent_call.content)
            if output is not MISSING:
                self._restore(call, found)
                return output
            agent_call.tool_recalled = lambda label: self._restore(call, found, label)
            durable = self.recorder.durable(call, found) if self.resources.resumable else None
            with nullcontext() if self.trace is None else self.trace.replaying():
                return await answer(stage, agent_call, durable)
        except DeclarationError as error:
            msg = f"stage `{call.key}`: {error}"
            raise StageError(msg, key=call.key, path=call.path) from error
        except LimitReached as error:
            msg = f"stage `{call.key}` was not allowed to ask its model: {error}"
            stopped = StageError(msg, key=call.key, path=call.path)
            if self.state.limit is None:  # the limit ends the run, whatever the flow catches
                self.state.limit, self.state.stopped = str(error), stopped
                self.scope.cancel()
            raise stopped from error
