"""What a graph declares: every node below it, by path."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, cast

from .errors import DeclarationError
from .graph import Graph, reject_reserved
from .node import Node
from .stage import Stage

__all__ = ["Structure", "closest"]

AnyNode = Node[Any, Any]


@dataclass(frozen=True)
class Structure:
    """Every node at or below a root, by path; a graph that was run has the empty path."""

    root: AnyNode
    nodes: Mapping[str, AnyNode]
    """Path -> node, parents before children, in the order of declaration."""
    names: Mapping[str, Mapping[int, tuple[str, str]]] = field(repr=False)
    """Path of a graph -> `id` of each of its own nodes -> its name in it and its path. A dataclass may be
    equal to another, or have no hash."""

    @classmethod
    def of(cls, root: AnyNode) -> Structure:
        """Read what *root* declares now.

        Raises:
            DeclarationError: a node is declared twice in one graph, a graph contains itself, a name cannot be a path.
        """
        nodes: dict[str, AnyNode] = {}
        names: dict[str, Mapping[int, tuple[str, str]]] = {}
        if isinstance(root, Graph):
            _collect(root, "", (), nodes, names)
        else:
            nodes[root.label] = root
        return cls(root, nodes, names)

    @property
    def stages(self) -> dict[str, Stage[Any, Any]]:
        """Path -> stage, in the order of declaration."""
        return {path: node for path, node in self.nodes.items() if isinstance(node, Stage)}

    def paths(self, node: AnyNode) -> set[str]:
        """Where *node* is declared; a class attribute that a subclass redeclares is found under its new node.

        Raises:
            DeclarationError: it is declared nowhere in here.
        """
        found = {path for path, candidate in self.nodes.items() if candidate is node}
        found |= {
            f"{path}.{name}" if path else name
            for path in self.names
            for base in type(self.nodes[path]).__mro__
            for name, declared in vars(base).items()
            if declared is node and (f"{path}.{name}" if path else name) in self.nodes
        }
        if not found:
            msg = f"{node!r} is not part of {self.root.label}, which has: {', '.join(filter(None, self.nodes))}"
            raise DeclarationError(msg)
        return found


def _collect(
    graph: Graph[Any, Any],
    path: str,
    above: tuple[AnyNode, ...],
    nodes: dict[str, AnyNode],
    names: dict[str, Mapping[int, tuple[str, str]]],
) -> None:
    if any(graph is one for one in above):
        msg = (
            f"graph {graph.label} contains itself at `{path}`, so it has no end of paths: "
            "write the recursion as an async method and fan out over that"
        )
        raise DeclarationError(msg)
    nodes[path] = graph
    own: dict[int, tuple[str, str]] = {}
    names[path] = own
    for name, node in _declared(graph):
        reject_reserved(type(graph), name)
        if id(node) in own:
            msg = (
                f"{graph.label} declares the same {node.kind} twice, as `{own[id(node)][0]}` and `{name}`, "
                f"so a call could not say which it is: make a second {type(node).__name__} for `{name}`"
            )
            raise DeclarationError(msg)
        below = f"{path}.{name}" if path else name
        if below in nodes:
            msg = f"{graph.label} declares two nodes at `{below}`: give them keys that differ as text"
            raise DeclarationError(msg)
        own[id(node)] = (name, below)
        if isinstance(node, Graph):
            _collect(node, below, (*above, graph), nodes, names)
        else:
            nodes[below] = node


def _declared(graph: Graph[Any, Any]) -> Iterator[tuple[str, AnyNode]]:
    attributes: dict[str, object] = {}
    for base in reversed(type(graph).__mro__):
        attributes.update(vars(base))
    attributes.update(vars(graph))
    for name, value in attributes.items():
        yield from _nodes_in(name, value, graph)


def _nodes_in(name: str, value: object, graph: Graph[Any, Any]) -> Iterator[tuple[str, AnyNode]]:
    if isinstance(value, Node):
        yield name, cast("AnyNode", value)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(cast("list[object]", value)):
            yield from _nodes_in(f"{name}.{index}", item, graph)
    elif isinstance(value, dict):
        for key, item in cast("dict[object, object]", value).items():
            for below, node in _nodes_in(f"{name}.{key}", item, graph):
                if not isinstance(key, (str, int)) or set(str(key)) & set(".[]#") or not str(key):
                    msg = f"{graph.label}.{name}: the key {key!r} cannot be part of a path; use a plain word"
                    raise DeclarationError(msg)
                yield below, node


def closest(name: str, options: Iterator[str] | list[str] | Mapping[str, object]) -> str:
    """`; did you mean `plan`?`, or nothing."""
    near = difflib.get_close_matches(name, [option for option in options if option], n=1)
    return f"; did you mean `{near[0]}`?" if near else ""
