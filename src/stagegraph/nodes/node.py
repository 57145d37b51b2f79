"""A named, typed, async callable, and the tree of nodes that a graph declares."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, cast

from typing_extensions import TypeVar

from stagegraph.schema.errors import DeclarationError, NotRunningError
from stagegraph.schema.schema import Schema

from .current import OpenCall, current

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from stagegraph.data.call import Kind

In_contra = TypeVar("In_contra", contravariant=True, default=Any)
Out_co = TypeVar("Out_co", covariant=True, default=Any)

_MISSING: Any = object()
"""The value of a call without one."""
_RESERVED = frozenset({"run", "run_sync", "flow", "mermaid", "as_tool", "as_agent"})
"""The public methods of `Graph`."""


class Node(ABC, Generic[In_contra, Out_co]):
    """A named, typed, async callable: a `Stage`, a `Step` or a `Graph`.

    Inside the `flow` of a graph that declares it, a node is called like a function: `await self.plan(spec)`.
    Nodes are compared by identity and never change after their declaration.
    """

    @cached_property
    @abstractmethod
    def __node__(self) -> Declaration:
        """The framework's data about the node, in one dunder, so that users may use all other names."""

    if TYPE_CHECKING:

        def __call__(self, value: In_contra, /) -> Coroutine[Any, Any, Out_co]:
            """Run the node in the graph that is running.

            Raises:
                NotRunningError: outside a run.
                DeclarationError: in a graph that does not declare the node.
                StageError: the value has the wrong type, or the call failed.
            """
            ...

    else:

        def __call__(self, value: Any = _MISSING, /, *more: object, **named: object) -> Coroutine[Any, Any, Any]:
            if value is _MISSING or more or named:
                raise _one_value(self)
            return (current.get(None) or _open_call(self)).run(self, value)

    def __getstate__(self) -> dict[str, object]:
        """The state without the declaration: a copy of a node declares its own nodes."""
        return {name: value for name, value in vars(self).items() if name != "__node__"}


def _open_call(node: Node[Any, Any]) -> OpenCall:
    """The call in which *node* is called.

    Raises:
        NotRunningError: outside a run.
    """
    try:
        return current.get()
    except LookupError:
        kind, name = node.__node__.kind, node.__node__.name
        msg = (
            f"{kind} `{name}` was called outside a run. Call it in the `flow` of a graph that declares it, "
            f"or run it by itself: `await Runner(model=...).run({name}, value)`"
        )
        raise NotRunningError(msg) from None


def _one_value(node: Node[Any, Any]) -> DeclarationError:
    """The error of a call with something else than one value."""
    kind, name = node.__node__.kind, node.__node__.name
    return DeclarationError(
        f"{kind} `{name}` takes exactly one value, without a name: write `self.{name}(value)`, "
        "and put several values into one model"
    )


@dataclass(eq=False, repr=False)
class Declaration:
    """The framework's data about one node (`node.__node__`): kind, name, types, and the nodes below it."""

    _node: Node[Any, Any]
    kind: Kind
    name: str
    """The name where no graph declares the node."""
    _input_type: Callable[[], Schema]
    _output_type: Callable[[], Schema]
    offered: Callable[[], Mapping[str, Node[Any, Any]]] = dict
    """Name of a tool -> the graph that it runs, of a stage whose agent has such tools (`Graph.as_tool`)."""

    @cached_property
    def input_type(self) -> Schema:
        return self._input_type()

    @cached_property
    def output_type(self) -> Schema:
        return self._output_type()

    @cached_property
    def tree(self) -> Tree:
        """The node and every node below it, read once.

        Raises:
            DeclarationError: a node is declared twice in one graph, a graph contains itself, a name cannot be a path.
        """
        tree = Tree(self._node)
        tree.add(self._node, "" if self.kind == "graph" else self.name)
        return tree

    @cached_property
    def stages(self) -> Mapping[str, Any]:
        """Path -> stage, in the order of declaration; `stages_of` gives them typed."""
        return {path: node for path, node in self.tree.nodes.items() if node.__node__.kind == "stage"}


class Undeclared(Node[Any, Any]):
    """Stands for a recorded node that is not declared: one of a graph that an agent made and called by itself."""

    def __init__(self, kind: Kind, name: str) -> None:
        self._kind: Kind = kind
        self._name = name

    @cached_property
    def __node__(self) -> Declaration:
        return Declaration(self, self._kind, self._name, lambda: Schema(Any), lambda: Schema(Any))


@dataclass(frozen=True)
class Tree:
    """Every node at or below a root, by path; a graph that was run has the empty path."""

    root: Node[Any, Any]
    nodes: dict[str, Node[Any, Any]] = field(default_factory=dict)
    """Path -> node, parents before children, in the order of declaration."""
    names: dict[str, dict[int, tuple[str, str]]] = field(default_factory=dict, repr=False)
    """Path of a graph -> `id` of each of its own nodes -> the node's name and path. The key is the `id`, since
    a node may be a dataclass that is equal to another or unhashable."""

    def with_graph(self, path: str, graph: Node[Any, Any]) -> Tree:
        """The tree with one more graph at *path*: one that an agent calls, and that no graph declares."""
        more = Tree(graph)
        more.add(graph, path)
        own = {below: {**self.names.get(below, {}), **found} for below, found in more.names.items()}
        return Tree(self.root, {**more.nodes, **self.nodes}, {**self.names, **own})

    def add(self, node: Node[Any, Any], path: str, above: tuple[Node[Any, Any], ...] = ()) -> None:
        """Read a node and what is below it: the nodes of a graph, or the graphs that are tools of a stage's agent.

        Raises:
            DeclarationError: see `Declaration.tree`.
        """
        declared = node.__node__
        if declared.kind != "graph":
            self.nodes[path] = node
            for name, graph in declared.offered().items():
                if not any(graph is one for one in above):  # an agent may offer the graph that it is a part of
                    self.add(graph, _below(path, name), above)
            return
        if any(node is one for one in above):
            msg = (
                f"graph {declared.name} contains itself at `{path}`, so its paths would be infinite: "
                "write the recursion as an async method and fan out over that"
            )
            raise DeclarationError(msg)
        self.nodes[path] = node
        own = self.names[path] = dict[int, tuple[str, str]]()
        for name, child in _declared(node):
            reject_reserved(type(node), name)
            if id(child) in own:
                msg = (
                    f"{declared.name} declares the same {child.__node__.kind} twice, as `{own[id(child)][0]}` and "
                    f"`{name}`, so a call of it would be ambiguous: make a second {type(child).__name__} for `{name}`"
                )
                raise DeclarationError(msg)
            below = _below(path, name)
            if below in self.nodes:
                msg = f"{declared.name} declares two nodes at `{below}`: give them keys that differ as text"
                raise DeclarationError(msg)
            own[id(child)] = (name, below)
            self.add(child, below, (*above, node))

    def paths(self, node: Node[Any, Any]) -> set[str]:
        """Where *node* is declared; a class attribute that a subclass redeclares is found under its new node.

        Raises:
            DeclarationError: the tree does not have the node.
        """
        found = {path for path, candidate in self.nodes.items() if candidate is node}
        found |= {
            below
            for path in self.names
            for base in type(self.nodes[path]).__mro__
            for name, declared in vars(base).items()
            if declared is node and (below := _below(path, name)) in self.nodes
        }
        if not found:
            name = self.root.__node__.name
            msg = f"{node!r} is not part of {name}, which has: {', '.join(filter(None, self.nodes))}"
            raise DeclarationError(msg)
        return found


def reject_reserved(cls: type[Node[Any, Any]], name: str) -> None:
    """Reject a node whose name would hide a method of every graph, or is private."""
    if name in _RESERVED:
        msg = f"{cls.__name__}.{name}: every graph has a method `{name}`; give the node another name"
        raise DeclarationError(msg)
    if name.startswith("_"):
        msg = f"{cls.__name__}.{name}: the name of a node must not begin with an underscore, since it is part of paths"
        raise DeclarationError(msg)


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _declared(graph: Node[Any, Any]) -> Iterator[tuple[str, Node[Any, Any]]]:
    attributes: dict[str, object] = {}
    for base in reversed(type(graph).__mro__):
        attributes.update(vars(base))
    attributes.update(vars(graph))
    for name, value in attributes.items():
        yield from _nodes_in(name, value, graph)


def _nodes_in(name: str, value: object, graph: Node[Any, Any]) -> Iterator[tuple[str, Node[Any, Any]]]:
    if isinstance(value, Node):
        yield name, cast("Node[Any, Any]", value)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(cast("list[object]", value)):
            yield from _nodes_in(f"{name}.{index}", item, graph)
    elif isinstance(value, dict):
        for key, item in cast("dict[object, object]", value).items():
            for below, node in _nodes_in(f"{name}.{key}", item, graph):
                if not isinstance(key, (str, int)) or set(str(key)) & set(".[]#") or not str(key):
                    msg = f"{graph.__node__.name}.{name}: the key {key!r} cannot be part of a path; use a plain word"
                    raise DeclarationError(msg)
                yield below, node
