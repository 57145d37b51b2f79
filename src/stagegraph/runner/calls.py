"""Open calls: what runs inside a call of a run, and how the nodes of a graph are called there."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Coroutine, Mapping
from typing import TYPE_CHECKING, Any, cast

from stagegraph.data.call import CallInfo, Kind
from stagegraph.nodes.current import current, key_part
from stagegraph.nodes.group import Group, watched, watched_task
from stagegraph.record.calls import GUEST
from stagegraph.schema.errors import DeclarationError, StageError, shortened
from stagegraph.schema.types import type_name

if TYPE_CHECKING:
    from stagegraph.nodes.graph import BaseGraph
    from stagegraph.nodes.node import Node
    from stagegraph.nodes.stage import Stage
    from stagegraph.nodes.step import Step

    from .executor import Executor
    from .state import Caller, CallState

_MAX_VALUE = 200


def run_root(executor: Executor, value: object) -> Coroutine[Any, Any, Any]:
    """Call the node that is run; it finds itself declared, under its own name."""
    root = executor.state.root
    return Open(executor, None, {id(root.node): (root.path, root.path)}).run(root.node, value)


async def run_called_by_agent(around: Open, graph: BaseGraph[Any, Any], value: Any, name: str, caller: Caller) -> Any:
    """Run a graph that an agent calls: its calls are calls of the agent's run, below the call that is open.

    Raises:
        StageError: the value has the wrong type.
    """
    executor, call = around.executor, around.call
    above, key = (call.path, call.key) if call is not None else ("", "")
    inside = call is not None and call.node.__node__.kind != "graph"
    name, path = executor.state.place(above, key_part(name) + ("" if inside else GUEST), graph)
    opened = Open(executor, call, {id(graph): (name, path)}, f"{key}." if key else "", around.scope)
    opened.caller = caller
    with executor.waits_inside(call):
        return await opened.run(graph, value)


class Open:
    """An open call of a run, or a branch or a tool call in it (`nodes.current.OpenCall`).

    A graph calls its nodes. A step or a stage can call none, but the agents in it may call graphs.
    """

    __slots__ = ("_called", "_names", "_prefix", "call", "caller", "executor", "fan", "scope", "watch")

    def __init__(
        self,
        executor: Executor,
        call: CallState | None,
        names: Mapping[int, tuple[str, str]] | None = None,
        prefix: str = "",
        scope: str = "",
    ) -> None:
        self.executor = executor
        self.call = call
        self._names = names
        """Those that can be called here; `None` in a step or a stage."""
        self._prefix = prefix
        self.scope = scope
        self.fan: tuple[int, int | None] | None = None
        """Index and size of the fan-out that it is a branch of; set only for a trace."""
        self.caller: Caller | None = None
        self.watch: tuple[Any, Any] | None = None
        """What sees the cancellations of the task that it was opened in, and that task."""
        self._called: str | None = None
        """The key of the last call that was made here."""

    @property
    def info(self) -> CallInfo:
        call, spec = self.call, self.executor.spec
        path, key = (call.path, call.key) if call is not None else ("", "")
        deps = spec.deps if call is None else call.deps(spec.deps)
        return CallInfo(path, key if self._names is None else key + self.scope, spec.run_id, deps)

    @property
    def fan_out_limit(self) -> int:
        return self.executor.resources.fan_out_limit

    def branch(self, label: str, index: int, size: int | None) -> Open:
        branch = Open(self.executor, self.call, self._names, self._prefix, f"{self.scope}[{label}]")
        branch.watch = self.watch
        if self.executor.trace is not None:
            branch.fan = (index, size)
        return branch

    def branch_key(self, target: object, label: str) -> str:
        if self._names is None:
            return f"{self.info.key}[{label}]"
        return self._called if id(target) in self._names and self._called else self._target_key(target, self._names)

    def lost(self) -> StageError:
        return self.executor.lost(self.call or self.executor.state.root)

    def fanned_out(self, target: object, size: int) -> None:
        if self._names is not None:
            self.executor.fanned_out(self._target_key(target, self._names), size)

    def _target_key(self, target: object, names: Mapping[int, tuple[str, str]]) -> str:
        known = names.get(id(target))
        name = known[0] if known is not None else getattr(target, "__name__", "branch")
        return f"{self._prefix}{name}{self.scope}"

    def run(self, node: Node[Any, Any], value: Any) -> Coroutine[Any, Any, Any]:
        known = None if self._names is None else self._names.get(id(node))
        if known is None:
            return self._run(node, value, "", None)
        # A call has its number as soon as it is made, so that calls which run at once are numbered as they are written.
        key, repeats = f"{self._prefix}{known[0]}{self.scope}", self.executor.state.repeats
        number = repeats[key] = repeats.get(key, -1) + 1
        if number:
            key = f"{key}#{number}"
        self._called = key
        return self._run(node, value, known[1], key)

    async def _run(self, node: Node[Any, Any], value: Any, path: str, key: str | None) -> Any:
        executor, own = self.executor, node.__node__
        if key is None:
            raise self._undeclared(node)
        call = executor.open(node, path, key, self.call, value, self.fan)
        if self.caller is not None:
            call.caller = self.caller
        if own.kind == "graph":
            opened = Open(executor, call, executor.state.tree.names[call.path], f"{call.key}." if call.key else "")
        else:
            opened = Open(executor, call)
        token = current.set(opened)
        try:
            if not own.input_type.is_instance(value):
                raise _mismatch(call, value, returned=False)
            working, task, watch = _WORK[own.kind](executor, node, call), watched_task(), self.watch
            # An eager task of the user's own begins while the one around it, and its watch, are still running.
            if watch is not None and watch[0].gi_running and watch[1] is task:  # what is thrown in reaches it first
                opened.watch = watch
                output = await working
            else:
                around = watched(working)
                opened.watch = (around, task)
                output = await around
            if not own.output_type.is_instance(output):
                raise _mismatch(call, output, returned=True)
            written = executor.succeeded(call, output)
            if written is not None:
                await written
            return output
        except BaseException as error:
            lost = executor.fail(call, error)
            if lost is not None:
                raise lost from error
            raise
        finally:
            current.reset(token)
            executor.close(call)

    def _undeclared(self, node: Node[Any, Any]) -> DeclarationError:
        tree = self.executor.state.tree
        kind, name = node.__node__.kind, node.__node__.name
        if self._names is None and self.call is not None:
            return DeclarationError(
                f"{self.call.node.__node__.kind} `{self.call.key}` called {kind} `{name}`: only the flow of a graph "
                "calls nodes; make it a Graph, or call the node in the flow and pass its output in"
            )
        here = (self.call.node if self.call is not None else tree.root).__node__.name
        place = f"at `{self.info.key}`, " if self.info.key else ""
        elsewhere = [path for path, known in tree.nodes.items() if known is node]
        where = f"; it is declared as `{elsewhere[0]}`, in another graph" if elsewhere else ""
        return DeclarationError(
            f"{place}the flow of {here} called {kind} `{name}`, which {here} does not declare{where}: "
            f"write `{name} = ...` in the class body of {here} and call `self.{name}(...)`"
        )


def _step(executor: Executor, step: Step[Any, Any], call: CallState) -> Coroutine[Any, Any, Any]:
    return step.fn(call.input) if executor.recorder is None else executor.step_output(step, call, executor.recorder)


async def _stage(executor: Executor, stage: Stage[Any, Any], call: CallState) -> Any:
    output: Any = None

    async def answered() -> None:
        nonlocal output
        output = await executor.stage_output(stage, call)

    with executor.counted():
        async with Group() as group:  # it cancels by a scope: a native cancellation may leave tasks of an agent
            group.start(answered())
    return output


def _graph(_: Executor, graph: BaseGraph[Any, Any], call: CallState) -> Coroutine[Any, Any, Any]:
    return graph.flow(call.input)


_WORK: Mapping[Kind, Callable[[Executor, Any, CallState], Coroutine[Any, Any, Any]]] = {
    "step": _step,
    "stage": _stage,
    "graph": _graph,
}


def _mismatch(call: CallState, value: object, *, returned: bool) -> StageError:
    """The error of a call whose input or output has the wrong type."""
    own, name = call.node.__node__, f"`{call.key}`"
    if own.kind != "stage":  # one stage may have other names in other graphs
        name = f"{own.name} ({name})" if call.key else own.name
    said = f"{own.kind} {name} returned" if returned else f"{own.kind} {name} was given"
    declared = f"gives {own.output_type.name}" if returned else f"takes {own.input_type.name}"
    hint = "check its `flow`" if own.kind == "graph" and returned else "check what is passed on"
    if inspect.iscoroutine(value):
        value.close()  # Python would warn that it was never awaited; the message says the same
        hint = "write `await` before the call"
    got = shortened(f"{type_name(cast('type[object]', type(value)))} {value!r}", _MAX_VALUE)
    return StageError(f"{said} {got}, but it {declared}: {hint}", key=call.key, path=call.path)
