"""Open calls: what runs inside a call of a run, and how the nodes of a graph are called there."""

from __future__ import annotations

import inspect
from collections.abc import Coroutine, Mapping
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

from stagegraph.data.call import CallInfo
from stagegraph.data.events import FanOutStarted
from stagegraph.nodes.current import current, key_part
from stagegraph.nodes.group import Group, watched
from stagegraph.record.calls import GUEST
from stagegraph.schema.errors import DeclarationError, StageError
from stagegraph.schema.types import type_name

if TYPE_CHECKING:
    from contextvars import Token

    from stagegraph.nodes.current import OpenCall
    from stagegraph.nodes.graph import BaseGraph
    from stagegraph.nodes.node import Node
    from stagegraph.nodes.stage import Stage
    from stagegraph.nodes.step import Step

    from .executor import Executor
    from .state import Caller, CallState

_MAX_VALUE = 200


def outermost(executor: Executor) -> OpenGraph:
    """Where the node that is run finds itself declared, under its own name."""
    root = executor.state.root
    return OpenGraph(executor, None, {id(root.node): (root.path, root.path)}, "")


class OpenLeaf:
    """An open call of a step or a stage, or a branch or a tool call in it (`nodes.current.OpenCall`).

    It can call no nodes, but the agents in it may call graphs (`run_called_by_agent`).
    """

    __slots__ = ("_token", "call", "executor", "scope")

    def __init__(self, executor: Executor, call: CallState, scope: str = "") -> None:
        self.executor = executor
        self.call = call
        self.scope = scope

    def __enter__(self) -> None:
        self._token: Token[OpenCall[Any, Any, Any]] = current.set(self)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        current.reset(self._token)
        self.executor.close(self.call, error)

    @property
    def info(self) -> CallInfo:
        spec = self.executor.spec
        return CallInfo(self.call.path, self.call.key, spec.run_id, self.call.deps(spec.deps))

    @property
    def fan_out_limit(self) -> int:
        return self.executor.resources.fan_out_limit

    def branch(self, label: str, index: int, size: int | None) -> OpenLeaf:
        return OpenLeaf(self.executor, self.call, f"{self.scope}[{label}]")

    def branch_key(self, target: object, label: str) -> str:
        return f"{self.call.key}[{label}]"

    def lost(self) -> StageError:
        return self.executor.lost(self.call)

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


async def run_called_by_agent(
    around: OpenLeaf | OpenGraph, graph: BaseGraph[Any, Any], value: Any, name: str, caller: Caller
) -> Any:
    """Run a graph that an agent calls: its calls are calls of the agent's run, below the call that is open.

    Raises:
        StageError: the value has the wrong type.
    """
    executor, call = around.executor, around.call
    above, key = (call.path, call.key) if call is not None else ("", "")
    inside = call is not None and call.node.__node__.kind != "graph"
    name, path = executor.state.place(above, key_part(name) + ("" if inside else GUEST), graph)
    names = {id(graph): (name, path)}
    opened = OpenGraph(executor, call, names, f"{key}." if key else "", around.scope, caller=caller)
    with executor.waits_inside(call):
        return await opened.run_graph(graph, value)


class OpenGraph:
    """An open call of a graph, or one branch of a fan-out in it (`nodes.current.OpenCall`): calls the graph's nodes."""

    __slots__ = ("_called", "_caller", "_fan", "_names", "_prefix", "_repeats", "_token", "call", "executor", "scope")

    def __init__(  # noqa: PLR0917 - made for every branch
        self,
        executor: Executor,
        call: CallState | None,
        names: Mapping[int, tuple[str, str]],
        prefix: str,
        scope: str = "",
        fan: tuple[int, int | None] | None = None,
        caller: Caller | None = None,
    ) -> None:
        self.executor = executor
        self.call = call
        self._names = names
        self._prefix = prefix
        self.scope = scope
        self._fan = fan
        self._caller = caller
        self._repeats = executor.state.repeats
        self._called: str | None = None
        """The key of the last call that was made here."""

    def __enter__(self) -> None:
        self._token: Token[OpenCall[Any, Any, Any]] = current.set(self)

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        current.reset(self._token)
        if self.call is not None:
            self.executor.close(self.call, error)

    @property
    def info(self) -> CallInfo:
        call, spec = self.call, self.executor.spec
        path, key = (call.path, call.key) if call is not None else ("", "")
        deps = spec.deps if call is None else call.deps(spec.deps)
        return CallInfo(path, key + self.scope, spec.run_id, deps)

    @property
    def fan_out_limit(self) -> int:
        return self.executor.resources.fan_out_limit

    def branch(self, label: str, index: int, size: int | None) -> OpenGraph:
        fan = None if self.executor.trace is None else (index, size)
        return OpenGraph(self.executor, self.call, self._names, self._prefix, f"{self.scope}[{label}]", fan)

    def branch_key(self, target: object, label: str) -> str:
        known = id(target) in self._names
        return self._called if known and self._called else self._target_key(target)

    def lost(self) -> StageError:
        return self.executor.lost(self.call or self.executor.state.root)

    def fanned_out(self, target: object, size: int) -> None:
        if (log := self.executor.log) is not None:
            key, recorder = self._target_key(target), self.executor.recorder
            before = -1 if recorder is None else recorder.announced(f"{key}[").start_event
            log.put(FanOutStarted, before=before, key=key, size=size)

    def _target_key(self, target: object) -> str:
        known = self._names.get(id(target))
        name = known[0] if known is not None else getattr(target, "__name__", "branch")
        return f"{self._prefix}{name}{self.scope}"

    # A call has its number as soon as it is made, so that calls which run at once are numbered as they are written.

    def run_step(self, step: Step[Any, Any], value: Any) -> Coroutine[Any, Any, Any]:
        return self._run_step(step, value, self._key(step))

    def run_stage(self, stage: Stage[Any, Any], value: Any) -> Coroutine[Any, Any, Any]:
        return self._run_stage(stage, value, self._key(stage))

    def run_graph(self, graph: BaseGraph[Any, Any], value: Any) -> Coroutine[Any, Any, Any]:
        return self._run_graph(graph, value, self._key(graph))

    def _key(self, node: Node[Any, Any]) -> str | None:
        """The key of a call that is made now; `None` if the graph does not declare the node."""
        known = self._names.get(id(node))
        if known is None:
            return None
        key = f"{self._prefix}{known[0]}{self.scope}"
        repeats = self._repeats
        number = repeats[key] = repeats.get(key, -1) + 1
        if number:
            key = f"{key}#{number}"
        self._called = key
        return key

    async def _run_step(self, step: Step[Any, Any], value: Any, key: str | None) -> Any:
        executor = self.executor
        if key is None:
            raise self._undeclared(step)
        call = executor.open(step, self._names[id(step)][1], key, self.call, value, self._fan)
        token = current.set(OpenLeaf(executor, call))  # no `with`: it would make a step a tenth slower
        try:
            if not step.__node__.input_type.is_instance(value):
                raise _bad_input(call)
            recorder = executor.recorder
            output = await watched(step.fn(value) if recorder is None else executor.step_output(step, call, recorder))
            if not step.__node__.output_type.is_instance(output):
                raise _bad_output(call, output)
            call.output, call.status, call.ended = output, "succeeded", perf_counter()
            executor.ended(call)
            if recorder is not None:
                await recorder.finished(call)
            return output
        except BaseException as error:
            executor.fail(call, error)
            raise
        finally:
            current.reset(token)
            executor.close(call, None)

    async def _run_stage(self, stage: Stage[Any, Any], value: Any, key: str | None) -> Any:
        executor = self.executor
        if key is None:
            raise self._undeclared(stage)
        call = executor.open(stage, self._names[id(stage)][1], key, self.call, value, self._fan)
        with OpenLeaf(executor, call):
            if not stage.__node__.input_type.is_instance(value):
                raise _bad_input(call)
            output: Any = None

            async def answered() -> None:
                nonlocal output
                output = await executor.stage_output(stage, call)

            async with Group() as group:  # it cancels by a scope: a native cancellation may leave tasks of an agent
                group.start(answered())
            if not stage.__node__.output_type.is_instance(output):
                raise _bad_output(call, output)
            call.output, call.status, call.ended = output, "succeeded", perf_counter()
            executor.ended(call)
            if executor.recorder is not None:
                await executor.recorder.finished(call)
            return output

    async def _run_graph(self, graph: BaseGraph[Any, Any], value: Any, key: str | None) -> Any:
        executor = self.executor
        if key is None:
            raise self._undeclared(graph)
        call = executor.open(graph, self._names[id(graph)][1], key, self.call, value, self._fan)
        call.caller = self._caller or call.caller
        prefix = f"{call.key}." if call.key else ""
        with OpenGraph(executor, call, executor.state.tree.names[call.path], prefix, fan=call.fan):
            if not graph.__node__.input_type.is_instance(value):
                raise _bad_input(call)
            output = await watched(graph.flow(value))
            if not graph.__node__.output_type.is_instance(output):
                raise _bad_output(call, output)
            call.output, call.status, call.ended = output, "succeeded", perf_counter()
            return output

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


def _bad_input(call: CallState) -> StageError:
    return _mismatch(call, "was given", call.input, "takes", call.node.__node__.input_type.name)


def _bad_output(call: CallState, output: object) -> StageError:
    return _mismatch(call, "returned", output, "gives", call.node.__node__.output_type.name)


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
