"""The calls of a run on the terminal: of a recorded one as a tree, of a live one as a tree that grows.

Without a terminal, the calls of a live run are plain lines.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass, field
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from .text import console, dollars, duration, plain, say, styled_status

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from stagegraph import Event, LiveRun
    from stagegraph.journal import CallRow

_SHOWN = 20
"""Recorded calls of one path below one call that are shown; failed ones are always shown."""
_WIDE = 6
"""Live calls of one path below one call that are shown; with more of them, only running and failed ones are."""
_LONGEST_ERROR = 160
_BRANCH = re.compile(r"\[[^\]]*\](#\d+)?$")
"""The end of a key that names one branch of a fan-out."""


@dataclass
class _Call:
    """One call as the terminal shows it."""

    key: str
    path: str
    kind: str
    status: str = "running"
    notes: list[str] = field(default_factory=list[str])
    """Its duration and what it used."""
    problem: str = ""
    """Why it failed, or is tried again."""
    began: float = field(default_factory=monotonic)

    def end(self, status: str, seconds: float, tokens: int, error: str | None) -> None:
        self.status = status
        self.notes = [duration(seconds), *([f"{tokens} tokens"] if tokens else [])]
        self.problem = " ".join(plain(error or "").split())[:_LONGEST_ERROR] if self.kind != "graph" else ""

    def text(self, root: str) -> Text:
        """One line; *root* is the name of the call without a key."""
        notes = ", ".join(self.notes)
        line = Text.assemble(styled_status(self.status, mark=True), " ", plain(self.key or root), (f"  {notes}", "dim"))
        return line.append(f"  {self.problem}", "red") if self.problem else line


def _of_row(row: CallRow) -> _Call:
    usage = json.loads(row.usage)
    call = _Call(row.key, row.path, row.kind)
    call.end(row.status, row.duration, usage.get("input_tokens", 0) + usage.get("output_tokens", 0), row.error)
    if row.cost not in (None, "0"):
        call.notes.append(dollars(row.cost))
    if row.attempts > 1:
        call.notes.append(f"{row.attempts} attempts")
    if row.replayed:
        call.notes.append("replayed")
    return call


def call_line(row: CallRow) -> Text:
    """One recorded call."""
    return _of_row(row).text("the graph")


def recorded_trees(rows: Sequence[CallRow], *, everything: bool) -> list[Tree]:
    """Recorded calls as a tree, or as one tree for each call whose parent is not recorded."""
    children: dict[str | None, list[CallRow]] = {}
    for row in rows:
        children.setdefault(row.parent, []).append(row)

    def branch(row: CallRow) -> Tree:
        tree = Tree(call_line(row), guide_style="dim")
        counts, hidden = Counter[str](), Counter[str]()
        for child in children.get(row.key, []):
            counts[child.path] += 1
            if everything or counts[child.path] <= _SHOWN or child.status != "succeeded":
                tree.add(branch(child))
            else:
                hidden[child.path] += 1
        for path, count in hidden.items():
            tree.add(Text(plain(f"... {count} more calls of {path} (--all shows them)"), "dim"))
        return tree

    return [branch(row) for row in children.get(None, [])]


class _LiveTree:
    """The calls of a live run, from its events."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.calls: dict[str, _Call] = {}
        self.children: dict[str, list[_Call]] = {}
        self.sizes: dict[str, int] = {}

    def take(self, event: Event) -> None:
        match event.type:
            case "call_started":
                call = self.calls[event.key] = _Call(event.key, event.path, event.kind)
                if event.key:
                    self.children.setdefault(self._parent(event.key), []).append(call)
            case "call_finished":
                tokens = event.input_tokens + event.output_tokens
                self.calls[event.key].end(event.status, event.duration, tokens, event.error)
            case "fan_out_started":
                self.sizes[event.key] = event.size
            case "call_retried":
                self.calls[event.key].problem = f"attempt {event.attempt} failed, again in {event.wait:.1f} s"
            case _:
                pass

    def _parent(self, key: str) -> str:
        at = key
        while "." in at:
            at = at.rpartition(".")[0]
            if at in self.calls:
                return at
        return ""

    def tree(self, height: int) -> Tree:
        root = self.calls.get("") or next(iter(self.calls.values()), _Call("", "", "graph"))
        tree = Tree(self._line(root), guide_style="dim")
        self._grow(tree, root.key, max(4, height - 4))
        return tree

    def _grow(self, tree: Tree, key: str, room: int) -> int:
        """Add the calls below a call while there is room, and return the room that is left.

        Of many calls with one path, running and failed ones are shown, and the others are counted.
        """
        by_path: dict[str, list[_Call]] = {}
        for call in self.children.get(key, []):
            by_path.setdefault(call.path, []).append(call)
        for path, calls in by_path.items():
            place = tree
            if len(calls) > 1:
                done = sum(call.status != "running" for call in calls)
                size = max(len(calls), self.sizes.get(_BRANCH.sub("", calls[0].key), 0))
                place = tree.add(Text.assemble((plain(path), "bold"), (f"  {done}/{size}", "dim")))
                room -= 1
            for call in calls if len(calls) <= _WIDE else [call for call in calls if call.status != "succeeded"]:
                if room <= 0:
                    break
                room = self._grow(place.add(self._line(call)), call.key, room - 1)
        return room

    def _line(self, call: _Call) -> RenderableType:
        if call.status != "running":
            return call.text(self.root)
        grid = Table.grid(padding=(0, 1))
        notes = f"  {monotonic() - call.began:.1f} s  {call.problem}"
        grid.add_row(Spinner("dots", style="cyan"), Text.assemble(plain(call.key or self.root), (notes, "dim")))
        return grid


async def watch(live: LiveRun[Any, Any], root: str) -> None:
    """Show the calls of a run until it ends, then what it used."""
    calls, err = _LiveTree(root), console(stderr=True)
    if err.is_terminal:
        with Live(
            console=err, refresh_per_second=8, transient=False, get_renderable=lambda: calls.tree(err.height)
        ) as screen:
            async for event in live.events():
                calls.take(event)
            screen.refresh()
    else:
        async for event in live.events():
            calls.take(event)
            if event.type == "call_finished" and event.kind != "graph":
                err.print(calls.calls[event.key].text(root))
    run, usage = live.run, live.run.usage
    used = f"{usage.requests} requests, {usage.input_tokens} + {usage.output_tokens} tokens"
    cost = "cost unknown" if run.cost is None else dollars(run.cost)
    facts = f"{len(run.calls())} calls, {used}, {cost}, {duration(run.duration)}, run {run.id}"
    say(f"{run.status}: {facts}", "bold", stderr=True)
