"""Drawings as Mermaid text: what a graph declares, and what a run did."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from stagegraph.data.call import Call
from stagegraph.nodes.node import Tree
from stagegraph.schema.types import bare, named_models

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from stagegraph.nodes.node import Node

_WIDEST = 150
"""A run with more calls is drawn by path, with counts."""
_STYLES = (
    "classDef stage fill:#e8f0fe,stroke:#3367d6,color:#111",
    "classDef step fill:#f1f3f4,stroke:#5f6368,color:#111",
    "classDef failed fill:#fce8e6,stroke:#c5221f,color:#111",
    "classDef cancelled fill:#fef7e0,stroke:#b06000,color:#111",
)


class _Chart:
    def __init__(self) -> None:
        self._lines = ["flowchart TD"]
        self._ids: dict[str, str] = {}
        self._members: dict[str, list[str]] = {}
        """Name of a style -> the nodes that have it."""

    def id(self, name: str) -> str:
        return self._ids.setdefault(name, f"n{len(self._ids)}")

    def add(self, depth: int, line: str) -> None:
        self._lines.append("    " * (depth + 1) + line)

    def node(self, depth: int, name: str, label: str, kind: str, style: str = "") -> None:
        # Stages are rounded and steps are plain boxes, so that they differ without colours too.
        left, right = ('("', '")') if kind == "stage" else ('["', '"]')
        self.add(depth, f"{self.id(name)}{left}{label}{right}")
        self._members.setdefault(style or kind, []).append(self.id(name))

    def text(self) -> str:
        for style in _STYLES:
            name = style.split()[1]
            if name in self._members:
                self.add(0, style)
                self.add(0, f"class {','.join(self._members[name])} {name}")
        return "\n".join(self._lines) + "\n"


def _escaped(text: str) -> str:
    """A label, which a model may have written, without characters that mean something in Mermaid."""
    return "".join(c if c.isalnum() or c in " ._-[]()~:,>+" else f"#{ord(c)};" for c in text)


def declared_chart(root: Node[Any, Any]) -> str:
    """The declared nodes; a dotted arrow where the output type of one is, or contains, the input type of another."""
    tree = root.__node__.tree
    chart = _Chart()
    _declare(chart, tree, "", 0)
    leaves = [(path, node.__node__) for path, node in tree.nodes.items() if node.__node__.kind != "graph"]
    takers: dict[type, set[int]] = {}
    for place, (_, taker) in enumerate(leaves):
        for model in _taken(taker.input_type.type):
            takers.setdefault(model, set()).add(place)
    for place, (path, maker) in enumerate(leaves):
        found = {other for model in named_models(maker.output_type.type) for other in takers.get(model, ())}
        for other in sorted(found - {place}):
            chart.add(0, f"{chart.id(path)} -.-> {chart.id(leaves[other][0])}")
    return chart.text()


def _taken(type_: Any) -> set[type]:
    """A type and the models of its fields."""
    whole = bare(type_)
    fields: dict[str, Any] = getattr(whole, "model_fields", None) or {}
    models = {model for field in fields.values() for model in named_models(field.annotation)}
    return models | {whole} if isinstance(whole, type) else models


def _declare(chart: _Chart, tree: Tree, path: str, depth: int) -> None:
    node = tree.nodes.get(path, tree.root).__node__
    if node.kind != "graph":
        chart.node(depth, path or node.name, _escaped(node.name), node.kind)
        return
    title = f"{path} ({node.name})" if path else node.name
    chart.add(depth, f'subgraph {chart.id(f"graph {path}")} ["{_escaped(title)}"]')
    for name, below in tree.names[path].values():
        child = tree.nodes[below].__node__
        if child.kind == "graph":
            _declare(chart, tree, below, depth + 1)
        else:
            label = f"{_escaped(name)}<br/>{_escaped(child.input_type.name)} to {_escaped(child.output_type.name)}"
            chart.node(depth + 1, below, label, child.kind)
            for offered in child.offered():
                if f"{below}.{offered}" in tree.names:
                    _declare(chart, tree, f"{below}.{offered}", depth + 1)
    chart.add(depth, "end")


def run_chart(graph: str, root: Call, edges: Sequence[tuple[str, str]]) -> str:
    """A run: every call with its time, and an arrow for each edge; by path, with counts, when there are many calls."""
    calls = list(root.walk())
    chart = _Chart()
    if len(calls) > _WIDEST:
        return _counted(chart, calls, edges)
    _draw(chart, graph, root, 0)
    for before, after in edges:
        chart.add(0, f"{chart.id(before)} --> {chart.id(after)}")
    return chart.text()


def _draw(chart: _Chart, graph: str, call: Call, depth: int) -> None:
    label = f"{_escaped(call.key or graph)}<br/>{call.duration:.2f} s"
    if call.kind != "graph" or not call.children:
        chart.node(depth, call.key, label, call.kind, call.status if call.status in {"failed", "cancelled"} else "")
        for child in call.children:  # graphs that an agent called
            _draw(chart, graph, child, depth)
        return
    chart.add(depth, f'subgraph {chart.id(call.key)} ["{label}"]')
    for child in call.children:
        _draw(chart, graph, child, depth + 1)
    chart.add(depth, "end")


def _counted(chart: _Chart, calls: Iterable[Call], edges: Sequence[tuple[str, str]]) -> str:
    by_key = {call.key: call for call in calls}
    counts = Counter(call.path for call in by_key.values() if call.kind != "graph")
    failed = Counter(call.path for call in by_key.values() if call.kind != "graph" and call.status == "failed")
    kinds = {call.path: call.kind for call in by_key.values()}
    for path, count in counts.items():
        trouble = f", {failed[path]} failed" if failed[path] else ""
        number = "1 call" if count == 1 else f"{count} calls"
        style = "failed" if failed[path] else ""
        chart.node(0, path, f"{_escaped(path)}<br/>{number}{trouble}", kinds[path], style)
    flows = Counter((by_key[a].path, by_key[b].path) for a, b in edges)
    for (before, after), count in flows.items():
        if before in counts and after in counts:
            chart.add(0, f"{chart.id(before)} -->|{count}| {chart.id(after)}")
    return chart.text()
