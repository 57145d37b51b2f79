"""The calls of a run on the terminal as a tree: that of a live run grows.

Without a terminal, the calls of a live run are plain lines.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any

from rich.console import Group
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from .text import console, dollars, duration, plain, say, styled_status

if TYPE_CHECKING:
    from rich.console import RenderableType

    from stagegraph import Event, LiveRun
    from stagegraph.journal import CallRow

_SHOWN = 20
"""Calls of one path below one call that are shown; running and failed ones are always shown."""
_SHOWN_LIVE = 6
"""The same for a live run; of more calls, only running and failed ones are shown, as the screen has few lines."""
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
    began: float | None = None
    """When a live call began."""

    def end(self, status: str, seconds: float, tokens: int, error: str | None) -> None:
        self.status = status
        self.notes = [duration(seconds), *([f"{tokens} tokens"] if tokens else [])]
        self.problem = " ".join(plain(error or "").split())[:_LONGEST_ERROR] if self.kind != "graph" else ""

    def text(self, root: str) -> Text:
        """One line; *root* is the name of the call without a key."""
        notes = ", ".join(self.notes)
        line = Text.assemble(styled_status(self.status, mark=True), " ", plain(self.key or root), (f"  {notes}", "dim"))
        return line.append(f"  {self.problem}", "red") if self.problem else line

    def line(self, root: str) -> RenderableType:
        """The same, for a live call with a sign that turns."""
        if self.status != "running" or self.began is None:
            return self.text(root)
        grid = Table.grid(padding=(0, 1))
        notes = f"  {monotonic() - self.began:.1f} s  {self.problem}"
        grid.add_row(Spinner("dots", style="cyan"), Text.assemble(plain(self.key or root), (notes, "dim")))
        return grid


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


class CallTree:
    """The calls of a run, from its rows or from its events; *root* is the name of the call without a key."""

    def __init__(self, root: str = "the graph") -> None:
        self.root = root
        self.calls: dict[str, _Call] = {}
        self._inside: dict[str | None, list[_Call | CallRow]] = {}
        """Key of a call -> those inside it."""
        self._sizes: dict[str, int] = {}
        """Key of a fan-out -> how many branches it has."""

    def add(self, row: CallRow) -> None:
        """Add a recorded call."""
        self._inside.setdefault(row.parent, []).append(row)

    def take(self, event: Event) -> None:
        """Add what an event of a live run says."""
        match event.type:
            case "call_started":
                call = _Call(event.key, event.path, event.kind, began=monotonic())
                self._inside.setdefault(self._parent(event.key), []).append(call)
                self.calls[event.key] = call
            case "call_finished":
                tokens = event.input_tokens + event.output_tokens
                self.calls[event.key].end(event.status, event.duration, tokens, event.error)
            case "fan_out_started":
                self._sizes[event.key] = event.size
            case "call_retried":
                self.calls[event.key].problem = f"attempt {event.attempt} failed, again in {event.wait:.1f} s"
            case _:
                pass

    def _parent(self, key: str) -> str | None:
        at = key
        while "." in at:
            at = at.rpartition(".")[0]
            if at in self.calls:
                return at
        return "" if "" in self.calls else None

    def drawn(self, shown: float = _SHOWN, lines: float = inf) -> Group:
        """The tree, with so many calls of one path below one call, and so many lines."""
        trees: list[Tree] = []
        for root in self._inside.get(None, []):
            trees.append(Tree(self._line(root), guide_style="dim"))
            lines = self._grow(trees[-1], root.key, shown, lines)
        return Group(*trees)

    def _line(self, call: _Call | CallRow) -> RenderableType:
        return (call if isinstance(call, _Call) else _of_row(call)).line(self.root)

    def _grow(self, tree: Tree, key: str, shown: float, room: float) -> float:
        """Add the calls below a call while there is room, and return the room that is left."""
        by_path: dict[str, list[_Call | CallRow]] = {}
        for call in self._inside.get(key, []):
            by_path.setdefault(call.path, []).append(call)
        for path, calls in by_path.items():
            place = tree
            if len(calls) > 1:
                done = sum(call.status != "running" for call in calls)
                size = max(len(calls), self._sizes.get(_BRANCH.sub("", calls[0].key), 0))
                place = tree.add(Text.assemble((plain(path), "bold"), (f"  {done}/{size}", "dim")))
                room -= 1
            first = 0 if len(calls) > shown and room < inf else shown
            several = [call for number, call in enumerate(calls) if number < first or call.status != "succeeded"]
            for call in several:
                if room <= 0:
                    break
                room = self._grow(place.add(self._line(call)), call.key, shown, room - 1)
            if (hidden := len(calls) - len(several)) and room == inf:
                place.add(Text(plain(f"... {hidden} more calls of {path} (--all shows them)"), "dim"))
        return room


async def watch(live: LiveRun[Any, Any], root: str) -> None:
    """Show the calls of a run until it ends, then what it used."""
    calls, err = CallTree(root), console(stderr=True)

    def drawn() -> Group:
        return calls.drawn(_SHOWN_LIVE, max(4, err.height - 4))

    if err.is_terminal:
        with Live(console=err, refresh_per_second=8, transient=False, get_renderable=drawn) as screen:
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
