"""The calls of one run: how nodes are called in each other, and how each call begins, succeeds and fails."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import anyio

from stagegraph.agent.answer import answer
from stagegraph.agent.failures import LimitReached, is_transient
from stagegraph.data.call import CallError, CallInfo
from stagegraph.data.events import CallFinished, CallRetried, CallStarted, FanOutStarted, TextDelta, ToolCalled
from stagegraph.data.usage import ModelUse
from stagegraph.nodes.branches import is_cancelled
from stagegraph.nodes.current import Suspended, current
from stagegraph.record.run import ReplayError
from stagegraph.schema.errors import DeclarationError, JournalError, NotRunningError, StageError, leaves
from stagegraph.schema.names import type_name

from .identity import NodeKey, stage_parts, step_parts
from .limits import Ledger, Limits, RequestLimiter
from .recorder import MISSING

if TYPE_CHECKING:
    from contextvars import Token
    from types import TracebackType

    from pydantic_ai.models import Model

    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.current import OpenCall
    from stagegraph.nodes.graph import BaseGraph
    from stagegraph.nodes.node import Node
    from stagegraph.nodes.stage import Stage
    from stagegraph.nodes.step import Step
    from stagegraph.record.rows import Journal

    from .event_log import EventLog
    from .observer import Trace, Tracing
    from .options import RunSpec
    from .recorder import Recorder
    from .state import CallState, RunState

__all__ = ["Executor", "Resources", "origin_of"]

_ORIGIN = "stagegraph_origin"
"""The attribute of an exception that holds where it was first seen: run id, segment, and key of the call."""
_NOT_CANCELLED = (
    "it awaited something that was cancelled, although the call itself was not; "
    "catch `asyncio.CancelledError` where that is awaited"
)
_MAX_VALUE = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a runner provides for one run."""

    prompts: Prompts
    limits: Limits
    model_for: Callable[[str, Stage[Any, Any]], Model[Any] | None]
    fan_out_limit: int
    slots: anyio.Semaphore | None
    """The model requests of all runs that may be in flight at once."""
    journal: Journal | None
    resumable: bool
    """Whether the journal outlives the run, so that requests inside an agent are recorded, too."""
    tracing: Tracing | None
    draining: Callable[[], bool]
    """Whether the runner shuts down; a run that is cancelled then can be resumed."""


class Executor:
    """What the calls of one run share; it opens and closes each of them."""

    __slots__ = (
        "_node_keys",
        "ledger",
        "log",
        "recorder",
        "resources",
        "scope",
        "spec",
        "state",
        "trace",
    )

    def __init__(  # noqa: PLR0917
        self,
        spec: RunSpec,
        state: RunState,
        resources: Resources,
        recorder: Recorder | None,
        trace: Trace | None,
        log: EventLog | None,
    ) -> None:
        self.spec = spec
        self.state = state
        self.resources = resources
        self.recorder = recorder
        self.trace = trace
        self.log = log
        self.ledger = Ledger.of(resources.limits)
        self.scope = anyio.CancelScope()
        """Around the whole flow."""
        self._node_keys: dict[str, NodeKey] = {}

    def outside(self) -> OpenGraph:
        """Where the node that is run finds itself declared, under its own name."""
        root = self.state.root
        return OpenGraph(self, None, {id(root.node): (root.path, root.path)}, "")

    def open(self, node: Node[Any, Any], path: str, key: str, parent: CallState | None, value: object) -> CallState:
        """Begin a call.

        Raises:
            NotRunningError: the run has ended.
        """
        state, kind = self.state, node.__node__.kind
        if state.over:
            msg = (
                f"{kind} `{node.__node__.name}` was called after its run had ended: await it in the flow, "
                "by itself or with `gather`, `fan_out` or a task group"
            )
            raise NotRunningError(msg)
        call = state.add(node, path, key, parent, value)
        if self.log is not None:
            self.log.put(CallStarted, key=call.key, path=path, kind=kind)
        if self.recorder is not None and kind == "graph":
            self.recorder.begin(call)
        if self.ledger is not None and kind == "stage":
            self.ledger.call_began()
        return call

    def close(self, call: CallState, error: BaseException | None) -> None:
        """End a call, with the exception that it raised if there is one.

        Raises:
            StageError: the exception is a cancellation, but not of this call.
        """
        try:
            if error is not None:
                self._fail(call, error)
        finally:
            call.ended = call.ended or perf_counter()
            if self.ledger is not None and call.node.__node__.kind == "stage":
                self.ledger.call_ended()
            if self.recorder is not None:
                self.recorder.ended(call)
            if self.trace is not None and call.parent is not None:
                self.trace.ended(call)
            if self.log is not None:
                self._log_end(self.log, call)

    def reject(self, value: object, error: Exception) -> None:
        """Record that the input of the run is invalid."""
        root = self.state.root
        call = self.open(root.node, root.path, root.key, None, value)
        self.close(call, error)

    def _fail(self, call: CallState, error: BaseException) -> None:
        if isinstance(error, Suspended):
            call.status = "suspended"
        elif isinstance(error, Exception):
            # A call that a limit stopped has not failed by itself: it continues when the run is resumed.
            call.status = "failed" if self.state.limit is None else "cancelled"
            leaf = call.node.__node__.kind != "graph"
            origin = None if leaf else self._origin_of(error)
            call.error = self._seen(error, call.key if origin is None else origin)
            if leaf and isinstance(error, (JournalError, ReplayError)):
                self.state.broken = self.state.broken or error
                self.scope.cancel()
        else:
            call.status = "cancelled"
            if isinstance(error, asyncio.CancelledError) and not is_cancelled(error):
                raise self._not_cancelled(call) from error

    def _not_cancelled(self, call: CallState) -> StageError:
        """The error of a call that awaited something cancelled: a cancellation would end whatever awaits the run."""
        kind, name = call.node.__node__.kind, f"`{call.key}`" if call.key else call.node.__node__.name
        error = StageError(f"{kind} {name} failed: {_NOT_CANCELLED}", key=call.key, path=call.path)
        self._seen(error, call.key)
        call.status, call.error = "failed", CallError("CancelledError", _NOT_CANCELLED, origin=call.key)
        return error

    def _seen(self, error: Exception, origin: str) -> CallError:
        """Write down on an exception where it was first seen, and return it as data: a group as its members."""
        members = leaves(error)
        for one in (error, *members):
            if one is error or self._origin_of(one) is None:
                vars(one)[_ORIGIN] = (self.spec.run_id, self.state.segment, origin)
        transient = is_transient(error)
        inner = [CallError(type(leaf).__name__, str(leaf), transient, origin) for leaf in members]
        if len(inner) == 1:
            return inner[0]
        return CallError(type(error).__name__, "; ".join(map(str, inner)), transient, origin)

    def _origin_of(self, error: BaseException) -> str | None:
        return origin_of(error, self.spec.run_id, self.state.segment)

    def _log_end(self, log: EventLog, call: CallState) -> None:
        usage = call.use.usage
        log.put(
            CallFinished,
            key=call.key,
            path=call.path,
            kind=call.node.__node__.kind,
            status=call.status,
            error=call.error.message if call.error else None,
            duration=call.duration,
            requests=usage.requests,
            input_tokens=usage.input_tokens,
            output_tokens=usage.output_tokens,
            cost=call.use.cost,
        )

    async def step_output(self, step: Step[Any, Any], call: CallState, recorder: Recorder) -> Any:
        """The recorded output of a step, or that of running it."""
        node_key = self._node_keys.get(call.path)
        if node_key is None:
            node_key = self._node_keys[call.path] = NodeKey(call.path, step_parts(step))
        output, _ = recorder.recalled(call, node_key, None)
        return await step.fn(call.input) if output is MISSING else output

    async def stage_output(self, stage: Stage[Any, Any], call: CallState) -> Any:
        """The recorded output of a stage, or that of running its agent.

        Raises:
            StageError: the agent failed, or a limit of the run does not allow its requests.
        """
        call.use = ModelUse()
        try:
            agent_call = StageCall(self, stage, call)
            if self.recorder is None:
                return await answer(stage, agent_call, None)
            node_key = self._node_keys.get(call.path)
            if node_key is None:
                parts = stage_parts(stage, agent_call.prompt, agent_call.model)
                node_key = self._node_keys[call.path] = NodeKey(call.path, parts)
            output, found = self.recorder.recalled(call, node_key, agent_call.prompt)
            if output is not MISSING:
                return output
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


class StageCall(RequestLimiter):
    """One call of a stage, as its agent sees it (`agent.call.AgentCall`)."""

    def __init__(self, executor: Executor, stage: Stage[Any, Any], call: CallState) -> None:
        super().__init__(call, executor.ledger, executor.resources.slots)
        self.key, self.path, self.input, self.use = call.key, call.path, call.input, call.use
        self.model = executor.resources.model_for(call.path, stage)
        self.prompt = executor.state.prompts.get(call.path)
        self.deps = executor.spec.deps
        self.answers: Mapping[str, object] = executor.spec.answers.get(call.key, {})
        self.observing = executor.trace.agent(call, stage) if executor.trace is not None else ()
        self._log = executor.log
        self.streams = executor.spec.deltas and executor.log is not None

    def text_received(self, text: str) -> None:
        if (log := self._log) is not None:
            log.put(TextDelta, key=self.key, path=self.path, text=text)

    def tool_called(self, tool: str) -> None:
        if (log := self._log) is not None:
            log.put(ToolCalled, key=self.key, path=self.path, tool=tool)

    def retrying(self, attempt: int, error: Exception, wait: float) -> None:
        if (log := self._log) is not None:
            log.put(CallRetried, key=self.key, path=self.path, attempt=attempt, error=str(error), wait=wait)


class OpenLeaf:
    """An open call of a step or a stage (`nodes.current.OpenCall`); it can call no nodes."""

    __slots__ = ("_token", "call", "executor")

    def __init__(self, executor: Executor, call: CallState) -> None:
        self.executor = executor
        self.call = call

    def __enter__(self) -> None:
        self._token: Token[OpenCall[Any, Any, Any]] = current.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        current.reset(self._token)
        self.executor.close(self.call, error)

    @property
    def info(self) -> CallInfo:
        spec = self.executor.spec
        return CallInfo(self.call.path, self.call.key, spec.run_id, spec.deps)

    @property
    def fan_out_limit(self) -> int:
        return self.executor.resources.fan_out_limit

    def branch(self, label: str, index: int, size: int | None) -> OpenLeaf:
        return self

    def branch_key(self, target: object, label: str) -> str:
        return f"{self.call.key}[{label}]"

    def fanned_out(self, target: object, size: int) -> None:
        """A fan-out inside a leaf is no event of the run."""

    async def run_stage(self, stage: Stage[Any, Any], value: Any) -> Any:
        raise self._refusal(stage)

    async def run_step(self, step: Step[Any, Any], value: Any) -> Any:
        raise self._refusal(step)

    async def run_graph(self, graph: BaseGraph[Any, Any], value: Any) -> Any:
        raise self._refusal(graph)

    def _refusal(self, node: Node[Any, Any]) -> DeclarationError:
        kind = self.call.node.__node__.kind
        return DeclarationError(
            f"{kind} `{self.call.key}` called {node.__node__.kind} `{node.__node__.name}`: only the flow of a graph "
            "calls nodes; make it a Graph, or call the node in the flow and pass its output in"
        )


class OpenGraph:
    """An open call of a graph, or one branch of a fan-out in it (`nodes.current.OpenCall`): calls the graph's nodes."""

    __slots__ = ("_called", "_fan", "_names", "_prefix", "_scope", "_token", "call", "executor")

    def __init__(  # noqa: PLR0917 - made for every branch
        self,
        executor: Executor,
        call: CallState | None,
        names: Mapping[int, tuple[str, str]],
        prefix: str,
        scope: str = "",
        fan: tuple[int, int | None] | None = None,
    ) -> None:
        self.executor = executor
        self.call = call
        self._names = names
        self._prefix = prefix
        self._scope = scope
        self._fan = fan
        self._called: str | None = None
        """The key of the last call that was made here."""

    def __enter__(self) -> None:
        self._token: Token[OpenCall[Any, Any, Any]] = current.set(self)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        current.reset(self._token)
        if self.call is not None:
            self.executor.close(self.call, error)

    @property
    def info(self) -> CallInfo:
        call, spec = self.call, self.executor.spec
        path, key = (call.path, call.key) if call is not None else ("", "")
        return CallInfo(path, key + self._scope, spec.run_id, spec.deps)

    @property
    def fan_out_limit(self) -> int:
        return self.executor.resources.fan_out_limit

    def branch(self, label: str, index: int, size: int | None) -> OpenGraph:
        fan = None if self.executor.trace is None else (index, size)
        return OpenGraph(self.executor, self.call, self._names, self._prefix, f"{self._scope}[{label}]", fan)

    def branch_key(self, target: object, label: str) -> str:
        known = id(target) in self._names
        return self._called if known and self._called else self._target_key(target)

    def fanned_out(self, target: object, size: int) -> None:
        if (log := self.executor.log) is not None:
            log.put(FanOutStarted, key=self._target_key(target), size=size)

    def _target_key(self, target: object) -> str:
        known = self._names.get(id(target))
        name = known[0] if known is not None else getattr(target, "__name__", "branch")
        return f"{self._prefix}{name}{self._scope}"

    async def run_step(self, step: Step[Any, Any], value: Any) -> Any:
        executor = self.executor
        call = self._open(step, value)
        with OpenLeaf(executor, call):
            _check_input(call)
            if (recorder := executor.recorder) is None:
                output = await step.fn(value)
                _succeed(call, output)
            else:
                output = await executor.step_output(step, call, recorder)
                _succeed(call, output)
                await recorder.finished(call)
            return output

    async def run_stage(self, stage: Stage[Any, Any], value: Any) -> Any:
        executor = self.executor
        call = self._open(stage, value)
        with OpenLeaf(executor, call):
            _check_input(call)
            output = await executor.stage_output(stage, call)
            _succeed(call, output)
            if executor.recorder is not None:
                await executor.recorder.finished(call)
            return output

    async def run_graph(self, graph: BaseGraph[Any, Any], value: Any) -> Any:
        executor = self.executor
        call = self._open(graph, value)
        prefix = f"{call.key}." if call.key else ""
        with OpenGraph(executor, call, executor.state.tree.names[call.path], prefix, fan=call.fan):
            _check_input(call)
            output = await graph.flow(value)
            _succeed(call, output)
            return output

    def _open(self, node: Node[Any, Any], value: object) -> CallState:
        known = self._names.get(id(node))
        if known is None:
            raise self._undeclared(node)
        name, path = known
        call = self.executor.open(node, path, f"{self._prefix}{name}{self._scope}", self.call, value)
        call.fan = self._fan
        self._called = call.key
        return call

    def _undeclared(self, node: Node[Any, Any]) -> DeclarationError:
        tree = self.executor.state.tree
        kind, name = node.__node__.kind, node.__node__.name
        here = (self.call.node if self.call is not None else tree.root).__node__.name
        place = f"at `{self.info.key}`, " if self.info.key else ""
        elsewhere = [path for path, known in tree.nodes.items() if known is node]
        where = f"; it is declared as `{elsewhere[0]}`, in another graph" if elsewhere else ""
        return DeclarationError(
            f"{place}the flow of {here} called {kind} `{name}`, which {here} does not declare{where}: "
            f"write `{name} = ...` in the class body of {here} and call `self.{name}(...)`"
        )


def origin_of(error: BaseException, run_id: str, segment: int) -> str | None:
    """The key of the call of this run in which an exception, or what it was raised from, was first seen.

    Follows `__cause__`. A group has the origin of its members, unless one of them was seen in no call.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        origin: tuple[str, int, str] | None = vars(cause).get(_ORIGIN)
        if origin is not None and origin[:2] == (run_id, segment):
            return origin[2]
        members = leaves(cause)
        if members[0] is not cause:
            origins = [origin_of(leaf, run_id, segment) for leaf in members]
            if None not in origins:
                return origins[0]
        cause = cause.__cause__
    return None


def _check_input(call: CallState) -> None:
    schema = call.node.__node__.input_type
    if not schema.is_instance(call.input):
        raise _mismatch(call, "was given", call.input, "takes", schema.name)


def _succeed(call: CallState, output: object) -> None:
    schema = call.node.__node__.output_type
    if not schema.is_instance(output):
        raise _mismatch(call, "returned", output, "gives", schema.name)
    call.output = output
    call.status = "succeeded"
    call.ended = perf_counter()


def _mismatch(call: CallState, verb: str, value: object, declared: str, type_text: str) -> StageError:
    kind, name = call.node.__node__.kind, call.node.__node__.name
    name = f"{kind} {name}" + (f" (`{call.key}`)" if call.key else "")
    if kind == "stage":  # one stage may have other names in other graphs
        name = f"stage `{call.key}`"
    hint = "check its `flow`" if kind == "graph" and verb == "returned" else "check what is passed on"
    if inspect.iscoroutine(value):
        value.close()  # Python would warn that it was never awaited; the message says the same
        hint = "write `await` before the call"
    got = f"{type_name(cast('type[object]', type(value)))} {value!r}"
    shown = got if len(got) <= _MAX_VALUE else got[:_MAX_VALUE] + " ..."
    msg = f"{name} {verb} {shown}, but it {declared} {type_text}: {hint}"
    return StageError(msg, key=call.key, path=call.path)
