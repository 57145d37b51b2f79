"""The graphs that a runner knows by name: a recorded run has no more than the name of its graph."""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal

from stagegraph.nodes.node import Node
from stagegraph.schema.errors import DeclarationError

from .recovery import DepsOf


class Registry:
    """Graphs by name, and how the interrupted runs of each are finished."""

    def __init__(self) -> None:
        self.by_name: dict[str, Node[Any, Any]] = {}
        """The graphs that ran here or were added; `resume` looks them up."""
        self._added: dict[str, tuple[Node[Any, Any], DepsOf | Literal["never"] | None]] = {}

    def add(self, graph: Node[Any, Any], deps_of: DepsOf | Literal["never"] | None) -> None:
        """Finish the interrupted runs of a graph; `"never"` leaves them alone.

        Raises:
            DeclarationError: another graph of that name was added, or the same one with other deps.
        """
        name = graph.__node__.name
        before, deps_before = self._added.get(name, (graph, None))
        if before is not graph and (type(before) is not type(graph) or _state(before) != _state(graph)):
            msg = (
                f"two different graphs named {name!r} on one runner: runs are recorded by that name, so they "
                "would be taken for each other's; give one of the classes another name, or a runner and a journal of "
                "its own"
            )
            raise DeclarationError(msg)
        if deps_of is not None and deps_before is not None and deps_of != deps_before:
            msg = (
                f"{name!r} was added twice to one runner, with different deps for interrupted runs, which are "
                "recorded by that name alone: say the same both times, or give the second one another name"
            )
            raise DeclarationError(msg)
        self.by_name[name] = before
        self._added[name] = (before, deps_before if deps_of is None else deps_of)

    def to_finish(self, name: str) -> tuple[Node[Any, Any], DepsOf | None] | None:
        """The graph whose interrupted runs are finished here, and the function that makes their deps."""
        graph, deps_of = self._added.get(name, (None, None))
        return None if graph is None or deps_of == "never" else (graph, deps_of)


def _state(node: Node[Any, Any]) -> dict[str, object]:
    """The attributes of an object, without its cached properties."""
    return {
        name: value
        for name, value in vars(node).items()
        if not isinstance(getattr(type(node), name, None), cached_property)
    }
