"""Where running code stands in a run: the two kinds of frame behind the context variable, and the call itself."""

from __future__ import annotations

import asyncio
import inspect
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from stagegraph.agent.faults import is_passing
from stagegraph.data.call import CallError, CallInfo
from stagegraph.data.events import FanOutStarted
from stagegraph.nodes.branches import is_cancelled
from stagegraph.nodes.current import Suspended, current
from stagegraph.nodes.graph import BaseGraph
from stagegraph.nodes.node import Node
from stagegraph.record.run import ReplayError
from stagegraph.schema.errors import DeclarationError, JournalError, StageError, leaves
from stagegraph.schema.names import type_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagegraph.nodes.stage import Stage
    from stagegraph.nodes.step import Step

    from .execution import Execution
    from .state import Entry

__all__ = ["GraphFrame", "LeafFrame", "root_frame"]

_NOT_OURS = (
    "it awaited something that somebody had cancelled, though nobody cancelled the call itself; "
    "catch `asyncio.CancelledError` where that is awaited"
)


def root_frame(execution: Execution) -> GraphFrame:
    """The frame in which the node that is run finds itself declared."""
    root = execution.tree.root
    return GraphFrame(execution, None, {id(root): (execution.root_name, execution.root_name)}, "")


class LeafFrame:
    """Where a step or a stage runs: it knows its call, and calls no nodes."""

    __slots__ = ("entry", "execution")

    def __init__(self, execution: Execution, entry: Entry) -> None:
        self.execution = execution
        self.entry = entry

    @property
    def info(self) -> CallInfo:
        terms = self.execution.terms
        return CallInfo(self.entry.path, self.entry.key, terms.run_id, terms.deps)

    @property
    def fan_out_limit(self) -> int:
        return self.execution.terms.fan_out_limit

    def branch(self, label: str, index: int, size: int | None) -> LeafFrame:
        return self

    def branch_key(self, target: object, label: str) -> str:
        return f"{self.entry.key}[{label}]"

    def fanned_out(self, target: object, size: int) -> None:
        """A fan-out inside a leaf is its own business."""

    async def call(self, node: Node[Any, Any], value: object) -> Any:
        entry = self.entry
        msg = (
            f"{entry.node.__node__.kind} `{entry.key}` called {node.__node__.kind} `{node.__node__.name}`: only the flow of a graph calls nodes; "
            "make it a Graph, or call the node in the flow and pass its output in"
        )
        raise DeclarationError(msg)


class GraphFrame:
    """Where the flow of a graph runs, or one branch of a fan-out in it; see `frame.Frame`."""

    __slots__ = ("called", "entry", "execution", "fan", "names", "prefix", "scope")

    def __init__(  # noqa: PLR0917 - made for every branch
        self,
        execution: Execution,
        entry: Entry | None,
        names: Mapping[int, tuple[str, str]],
        prefix: str,
        scope: str = "",
        fan: tuple[int, int | None] | None = None,
    ) -> None:
        self.execution = execution
        self.entry = entry
        self.names = names
        self.prefix = prefix
        self.scope = scope
        self.fan = fan
        self.called: str | None = None
        """The key of the call that was made here last."""

    @property
    def info(self) -> CallInfo:
        entry, terms = self.entry, self.execution.terms
        path, key = (entry.path, entry.key) if entry is not None else ("", "")
        return CallInfo(path, key + self.scope, terms.run_id, terms.deps)

    @property
    def fan_out_limit(self) -> int:
        return self.execution.terms.fan_out_limit

    def branch(self, label: str, index: int, size: int | None) -> GraphFrame:
        fan = None if self.execution.trace is None else (index, size)
        return GraphFrame(self.execution, self.entry, self.names, self.prefix, f"{self.scope}[{label}]", fan)

    def branch_key(self, target: object, label: str) -> str:
        known = id(target) in self.names
        return self.called if known and self.called else self._target_key(target)

    def fanned_out(self, target: object, size: int) -> None:
        if (log := self.execution.log) is not None:
            log.put(FanOutStarted, key=self._target_key(target), size=size)

    def _target_key(self, target: object) -> str:
        known = self.names.get(id(target))
        name = known[0] if known is not None else getattr(target, "__name__", "branch")
        return f"{self.prefix}{name}{self.scope}"

    async def call(self, node: Node[Any, Any], value: object) -> Any:
        known = self.names.get(id(node))
        if known is None:
            raise self._undeclared(node)
        name, path = known
        execution = self.execution
        entry = execution.open(node, path, f"{self.prefix}{name}{self.scope}", self.entry, value)
        self.called = entry.key
        if self.fan is not None:
            entry.fan = self.fan
        kind = node.__node__.kind
        frame = LeafFrame(execution, entry) if kind != "graph" else self._inside(entry)
        token = current.set(frame)
        try:
            if not node.__node__.input_type.is_instance(value):
                raise _mismatch(entry, "was given", value, "takes", node.__node__.input_type.name)
            if kind == "step":
                step = cast("Step[Any, Any]", node)
                output = await (step.fn(value) if execution.recorder is None else execution.run_step(step, entry))
            elif kind == "graph":
                output = await cast("BaseGraph[Any, Any]", node).flow(value)
            else:
                output = await execution.run_stage(cast("Stage[Any, Any]", node), entry)
            if not node.__node__.output_type.is_instance(output):
                raise _mismatch(entry, "returned", output, "gives", node.__node__.output_type.name)
            entry.output = output
            entry.status = "succeeded"
            if execution.recorder is not None and kind != "graph":
                entry.ended = perf_counter()
                await execution.recorder.finished(entry)
            return output
        except Suspended:
            entry.status = "suspended"
            raise
        except Exception as error:
            # What a limit stopped has not failed by itself: it goes on where it stood when the run is resumed.
            entry.status = "failed" if execution.limit is None else "cancelled"
            entry.error = _told(error)
            if kind != "graph" and isinstance(error, (JournalError, ReplayError)):
                execution.break_off(error)
            raise
        except BaseException as error:
            entry.status = "cancelled"
            if isinstance(error, asyncio.CancelledError) and not is_cancelled(error):
                raise _lost(entry) from error
            raise
        finally:
            current.reset(token)
            execution.close(entry)

    def _inside(self, entry: Entry) -> GraphFrame:
        names = self.execution.tree.names[entry.path]
        return GraphFrame(self.execution, entry, names, f"{entry.key}." if entry.key else "", fan=entry.fan)

    def _undeclared(self, node: Node[Any, Any]) -> DeclarationError:
        tree = self.execution.tree
        here = self.entry.node if self.entry is not None else tree.root
        place = f"at `{self.info.key}`, " if self.info.key else ""
        elsewhere = [path for path, known in tree.nodes.items() if known is node]
        where = f"; it is declared as `{elsewhere[0]}`, in another graph" if elsewhere else ""
        return DeclarationError(
            f"{place}the flow of {here.__node__.name} called {node.__node__.kind} `{node.__node__.name}`, "
            f"which {here.__node__.name} does not declare{where}: write `{node.__node__.name} = ...` in the class body of {here.__node__.name} "
            f"and call `self.{node.__node__.name}(...)`"
        )


def _told(error: Exception) -> CallError:
    """An error as the record keeps it; of a group, what is in it."""
    passing = is_passing(error)
    inner = [CallError(type(leaf).__name__, str(leaf), passing) for leaf in leaves(error)]
    return inner[0] if len(inner) == 1 else CallError(type(error).__name__, "; ".join(map(str, inner)), passing)


def _lost(entry: Entry) -> StageError:
    """The failure of a call that ended by somebody else's cancellation: passed on, it would end who awaits the run."""
    entry.status, entry.error = "failed", CallError("CancelledError", _NOT_OURS)
    name = f"`{entry.key}`" if entry.key else entry.node.__node__.name
    return StageError(f"{entry.node.__node__.kind} {name} failed: {_NOT_OURS}", key=entry.key, path=entry.path)


def _mismatch(entry: Entry, verb: str, value: object, declared: str, type_text: str) -> StageError:
    what = entry.node.__node__.kind
    name = f"{what} {entry.node.__node__.name}" + (f" (`{entry.key}`)" if entry.key else "")
    if what == "stage":  # one object may have other names in other graphs
        name = f"stage `{entry.key}`"
    hint = "check its `flow`" if what == "graph" and verb == "returned" else "check what is passed on"
    if inspect.iscoroutine(value):
        value.close()  # the message says what Python would warn of
        hint = "write `await` before the call"
    got = f"{type_name(type(value))} {value!r}"
    shown = got if len(got) <= 200 else got[:200] + " ..."  # noqa: PLR2004
    msg = f"{name} {verb} {shown}, but it {declared} {type_text}: {hint}"
    return StageError(msg, key=entry.key, path=entry.path)
