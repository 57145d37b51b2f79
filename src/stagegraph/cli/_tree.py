"""The calls of a live run on the terminal: a tree that grows, or plain lines where there is no terminal."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from ._text import console, mark, plain, took

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

    from stagegraph import Event, LiveRun

__all__ = ["watch"]

_BRANCH = re.compile(r"\[[^\]]*\](#\d+)?$")
"""The end of a key that names one branch of a fan-out."""


@dataclass
class _Line:
    """One call as it stands."""

    key: str
    path: str
    kind: str
    began: float = field(default_factory=monotonic)
    status: str = "running"
    duration: float = 0.0
    tokens: int = 0
    note: str = ""


class _Board:
    """The calls of a run, put together from its events."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.lines: dict[str, _Line] = {}
        self.children: dict[str, list[_Line]] = {}
        self.sizes: dict[str, int] = {}
        self.parents: dict[str, str] = {}

    def take(self, event: Event) -> None:
        match event.type:
            case "call_started":
                line = self.lines[event.key] = _Line(event.key, event.path, event.kind)
                if event.key:
                    self.children.setdefault(self._parent(event.key), []).append(line)
            case "call_finished":
                line = self.lines[event.key]
                line.status, line.duration = event.status, event.duration
                line.tokens = event.input_tokens + event.output_tokens
                line.note = " ".join(plain(event.error or "").split())[:120] if event.kind != "graph" else ""
            case "fan_out_started":
                self.sizes[event.key] = event.size
            case "call_retried":
                self.lines[event.key].note = f"attempt {event.attempt} failed, again in {event.wait:.1f} s"
            case _:
                pass

    def _parent(self, key: str) -> str:
        at = key
        while "." in at:
            at = at.rpartition(".")[0]
            if at in self.lines:
                return at
        return ""

    def tree(self, height: int) -> RenderableType:
        root = self.lines.get("") or next(iter(self.lines.values()), _Line("", "", "graph"))
        tree = Tree(self._text(root), guide_style="dim")
        self._grow(tree, root.key, [max(4, height - 4)])
        return tree

    def _grow(self, tree: Tree, key: str, room: list[int]) -> None:
        """Add what is below a call while there is room: running and failed calls first, the others as a count."""
        inside = self.children.get(key, [])
        by_path: dict[str, list[_Line]] = {}
        for line in inside:
            by_path.setdefault(line.path, []).append(line)
        for path, lines in by_path.items():
            wide = len(lines) > 1
            place: Tree = tree
            if wide:
                done = sum(line.status != "running" for line in lines)
                size = max(len(lines), self.sizes.get(_BRANCH.sub("", lines[0].key), 0))
                place = tree.add(Text.assemble((plain(path), "bold"), (f"  {done}/{size}", "dim")))
                room[0] -= 1
            shown = [line for line in lines if line.status != "succeeded"] if wide and len(lines) > 6 else lines  # noqa: PLR2004
            for line in shown:
                if room[0] <= 0:
                    break
                room[0] -= 1
                branch = place.add(self._text(line))
                self._grow(branch, line.key, room)

    def _text(self, line: _Line) -> RenderableType:
        name = plain(line.key or self.label)
        if line.status == "running":
            grid = Table.grid(padding=(0, 1))
            grid.add_row(
                Spinner("dots", style="cyan"),
                Text.assemble(name, (f"  {monotonic() - line.began:.1f} s  {line.note}", "dim")),
            )
            return grid
        return self.finished(line)

    def finished(self, line: _Line) -> Text:
        notes = took(line.duration) + (f", {line.tokens} tokens" if line.tokens else "")
        text = Text.assemble(mark(line.status), " ", plain(line.key or self.label), (f"  {notes}", "dim"))
        if line.note:
            text.append(f"  {line.note}", "red")
        return text


async def watch(live: LiveRun[Any, Any], label: str) -> None:
    """Show the run until it ends, then what it used."""
    board, err = _Board(label), console(stderr=True)
    if err.is_terminal:
        with Live(
            console=err, refresh_per_second=8, transient=False, get_renderable=lambda: board.tree(err.height)
        ) as screen:
            async for event in live.events():
                board.take(event)
            screen.refresh()
    else:
        async for event in live.events():
            board.take(event)
            if event.type == "call_finished" and event.kind != "graph":
                err.print(board.finished(board.lines[event.key]))
    _summary(live, err)


def _summary(live: LiveRun[Any, Any], err: Console) -> None:
    run = live.run
    usage, calls = run.usage, len(run.calls())
    cost = "cost unknown" if run.cost is None else f"${run.cost:.4f}"
    tokens = f"{usage.input_tokens} + {usage.output_tokens} tokens"
    facts = f"{calls} calls, {usage.requests} requests, {tokens}, {cost}, {took(run.duration)}, run {run.id}"
    err.print(Text(f"{run.status}: {facts}", "bold"))
