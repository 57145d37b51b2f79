"""One run while it goes on: frames, the record, prompts, models, limits and watchers of that run alone."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import anyio
from pydantic_ai.messages import ModelResponse
from pydantic_ai.usage import RequestUsage

from .agent_call import Setting, call_agent
from .call import CallError, CallInfo
from .errors import DeclarationError, StageError
from .event_log import EventLog
from .events import CallFinished, CallRetried, CallStarted, FanOutStarted, TextDelta, ToolCalled
from .frame import current
from .inject import RequestGate
from .limits import Ledger, LimitReached
from .node import Node
from .record import Entry
from .schema import type_name

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from .graph import Graph
    from .prompts import Prompts
    from .stage import Stage
    from .step import Step
    from .structure import Structure

__all__ = ["CallFrame", "Execution", "Terms"]


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


class Execution:
    """The state of one run. Nothing of it outlives the run but the record."""

    __slots__ = ("entries", "limit", "log", "repeats", "scope", "structure", "terms")

    def __init__(self, structure: Structure, terms: Terms) -> None:
        self.structure = structure
        self.terms = terms
        self.log = terms.log
        self.entries: dict[str, Entry] = {}
        """Key -> entry, in the order in which the calls began."""
        self.repeats: dict[str, int] = {}
        self.scope = anyio.CancelScope()
        self.limit: str | None = None
        """Which limit ended the run, if one did."""

    def root_frame(self) -> CallFrame:
        root = self.structure.root
        name = "" if root.kind == "graph" else root.label
        return CallFrame(self, None, {root: name}, "", "")

    def open(self, node: Node[Any, Any], frame: CallFrame, name: str, value: object) -> Entry:
        key = frame.key_prefix + name + frame.scope
        if key in self.entries:
            number = self.repeats[key] = self.repeats.get(key, 0) + 1
            key = f"{key}#{number}"
        entry = Entry(node, frame.path_prefix + name, key, frame.entry, value)
        self.entries[key] = entry
        if self.log is not None:
            self.log.put(CallStarted, key=key, path=entry.path, kind=node.kind)
        return entry

    def close(self, entry: Entry) -> None:
        entry.ended = time.perf_counter()
        if self.log is not None:
            usage = entry.usage
            self.log.put(
                CallFinished,
                key=entry.key,
                path=entry.path,
                kind=entry.node.kind,
                status=entry.status,
                error=entry.error.message if entry.error else None,
                duration=entry.duration,
                requests=usage.requests if usage else 0,
                input_tokens=usage.input_tokens if usage else 0,
                output_tokens=usage.output_tokens if usage else 0,
                cost=entry.cost(),
            )

    def end_by_limit(self, reason: str) -> None:
        """Cancel everything that still runs: a reached limit ends the run, whatever the flow catches."""
        self.limit = self.limit or reason
        self.scope.cancel()

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
                deps=stage.deps(terms.deps) if stage.deps is not None else terms.deps,
                gate=_Gate(self, entry),
                on_text=on_text if log is not None and terms.deltas else None,
                on_retry=on_retry,
            )
            return await call_agent(stage, entry, setting)
        except DeclarationError as error:
            msg = f"stage `{entry.key}`: {error}"
            raise StageError(msg, key=entry.key, path=entry.path) from error
        except LimitReached as error:
            self.end_by_limit(str(error))
            msg = f"stage `{entry.key}` was not allowed to ask its model: {error}"
            raise StageError(msg, key=entry.key, path=entry.path) from error


class _Gate(RequestGate):
    """Counts and holds back the model requests of one stage call."""

    def __init__(self, execution: Execution, entry: Entry) -> None:
        self.execution = execution
        self.entry = entry

    async def request(self, ask: Callable[[], Awaitable[ModelResponse]]) -> ModelResponse:
        ledger, slots = self.execution.terms.ledger, self.execution.terms.slots
        if slots is None:
            return await self._counted(ask, ledger)
        async with slots:
            return await self._counted(ask, ledger)

    async def _counted(self, ask: Callable[[], Awaitable[ModelResponse]], ledger: Ledger | None) -> ModelResponse:
        if ledger is None:
            response = await ask()
            self.entry.unpriced |= response.usage.cost is None
            return response
        reservation = await ledger.reserve(self.entry.path)
        usage: RequestUsage | None = None
        try:
            response = await ask()
            usage = response.usage
            self.entry.unpriced |= usage.cost is None
        finally:
            ledger.settle(reservation, usage)
        return response

    def tool_called(self, tool: str) -> None:
        if (log := self.execution.log) is not None:
            log.put(ToolCalled, key=self.entry.key, path=self.entry.path, tool=tool)


class CallFrame:
    """One open call, or one branch of a fan-out in it; see `frame.Frame`."""

    __slots__ = ("entry", "execution", "key_prefix", "names", "path_prefix", "scope")

    def __init__(
        self,
        execution: Execution,
        entry: Entry | None,
        names: Mapping[Node[Any, Any], str],
        path_prefix: str,
        key_prefix: str,
        scope: str = "",
    ) -> None:
        self.execution = execution
        self.entry = entry
        self.names = names
        self.path_prefix = path_prefix
        self.key_prefix = key_prefix
        self.scope = scope

    @property
    def info(self) -> CallInfo:
        entry, terms = self.entry, self.execution.terms
        path, key = (entry.path, entry.key) if entry is not None else ("", "")
        return CallInfo(path, key + self.scope, terms.run_id, terms.deps)

    @property
    def fan_out_limit(self) -> int:
        return self.execution.terms.fan_out_limit

    def branch(self, label: str) -> CallFrame:
        scope = f"{self.scope}[{label}]"
        return CallFrame(self.execution, self.entry, self.names, self.path_prefix, self.key_prefix, scope)

    def branch_key(self, target: object, label: str) -> str:
        return f"{self._target_key(target)}[{label}]"

    def fanned_out(self, target: object, size: int) -> None:
        if (log := self.execution.log) is not None:
            log.put(FanOutStarted, key=self._target_key(target), size=size)

    def _target_key(self, target: object) -> str:
        name = self.names.get(target) if isinstance(target, Node) else getattr(target, "__name__", "branch")
        return f"{self.key_prefix}{name or 'branch'}{self.scope}"

    async def call(self, node: Node[Any, Any], value: object) -> Any:
        name = self.names.get(node)
        if name is None:
            raise self._undeclared(node)
        execution = self.execution
        entry = execution.open(node, self, name, value)
        try:
            if not node.takes.accepts(value):
                raise _mismatch(entry, "was given", value, "takes", node.takes.name)
            entry.output = output = await self._dispatch(node, entry, value)
            if not node.gives.accepts(output):
                entry.output = None
                raise _mismatch(entry, "returned", output, "gives", node.gives.name)
            entry.status = "succeeded"
            return output
        except Exception as error:
            entry.status, entry.error = "failed", CallError(type(error).__name__, str(error))
            raise
        except BaseException:
            entry.status = "cancelled"
            raise
        finally:
            execution.close(entry)

    async def _dispatch(self, node: Node[Any, Any], entry: Entry, value: object) -> Any:
        execution = self.execution
        if node.kind == "graph":
            path = entry.path
            prefixes = (f"{path}.", f"{entry.key}.") if entry.key else ("", "")
            frame = CallFrame(execution, entry, execution.structure.names[path], *prefixes)
            token = current.set(frame)
            try:
                return await cast("Graph[Any, Any]", node).flow(value)
            finally:
                current.reset(token)
        token = current.set(CallFrame(execution, entry, {}, "", ""))
        try:
            if node.kind == "step":
                return await cast("Step[Any, Any]", node).fn(value)
            return await execution.run_stage(cast("Stage[Any, Any]", node), entry)
        finally:
            current.reset(token)

    def _undeclared(self, node: Node[Any, Any]) -> DeclarationError:
        here = self.entry.node if self.entry is not None else self.execution.structure.root
        if here.kind != "graph":
            return DeclarationError(
                f"{here.kind} `{self.info.key}` called {node.kind} `{node.label}`: only the flow of a graph calls nodes; "
                "make it a Graph, or call the node in the flow and pass its output in"
            )
        place = f"at `{self.info.key}`, " if self.info.key else ""
        elsewhere = [path for path, known in self.execution.structure.nodes.items() if known is node]
        where = f"; it is declared as `{elsewhere[0]}`, in another graph" if elsewhere else ""
        return DeclarationError(
            f"{place}the flow of {here.label} called {node.kind} `{node.label}`, which {here.label} does not declare{where}: "
            f"write `{node.label} = ...` in the class body of {here.label} and call `self.{node.label}(...)`"
        )


def _mismatch(entry: Entry, verb: str, value: object, declared: str, type_text: str) -> StageError:
    what = "graph" if entry.node.kind == "graph" else entry.node.kind
    name = f"{what} {entry.node.label}" + (f" (`{entry.key}`)" if entry.key else "")
    hint = "check its `flow`" if what == "graph" and verb == "returned" else "check what is passed on"
    got = f"{type_name(type(value))} {value!r}"
    shown = got if len(got) <= 200 else got[:200] + " ..."  # noqa: PLR2004
    msg = f"{name} {verb} {shown}, but it {declared} {type_text}: {hint}"
    return StageError(msg, key=entry.key, path=entry.path)
