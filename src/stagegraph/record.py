"""What a run writes down while it goes on: one small mutable entry a call, frozen into `Call`s when somebody looks."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any

from pydantic_ai.usage import RunUsage

from .call import Call, CallError, Status

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage

    from .node import Node

__all__ = ["Clock", "Entry", "freeze"]


@dataclass(frozen=True, slots=True)
class Clock:
    """The monotonic clock's offset from the calendar, read once a run."""

    offset: float

    @classmethod
    def now(cls) -> Clock:
        return cls(time.time() - time.perf_counter())

    def calendar(self, seconds: float) -> datetime:
        return datetime.fromtimestamp(self.offset, UTC) + timedelta(seconds=seconds)


class Entry:
    """One call while it runs. Slots and shared defaults keep a run of 100,000 calls small."""

    __slots__ = (
        "attempts",
        "began",
        "ended",
        "error",
        "input",
        "key",
        "messages",
        "node",
        "output",
        "parent",
        "path",
        "status",
        "unpriced",
        "usage",
    )

    def __init__(self, node: Node[Any, Any], path: str, key: str, parent: Entry | None, value: object) -> None:
        self.node = node
        self.path = path
        self.key = key
        self.parent = parent
        self.input = value
        self.output: Any = None
        self.error: CallError | None = None
        self.status: Status = "running"
        self.usage: RunUsage | None = None
        self.unpriced = False
        """Whether a request was made whose price is not known."""
        self.attempts = 1
        self.messages: tuple[ModelMessage, ...] = ()
        self.began = time.perf_counter()
        self.ended = 0.0

    @property
    def duration(self) -> float:
        return (self.ended or time.perf_counter()) - self.began

    def cost(self) -> Decimal | None:
        """Dollars of this call's own requests; a call that asked no model cost nothing."""
        if self.unpriced:
            return None
        return (self.usage.cost if self.usage is not None else None) or Decimal(0)


def freeze(entries: Iterable[Entry], clock: Clock) -> Call:
    """The tree of calls; entries stand in the order in which they began, so parents come before their children."""
    ordered = list(entries)
    children: dict[Entry, list[Call]] = {}
    for entry in reversed(ordered):
        inside = children.pop(entry, [])
        inside.reverse()
        call = _frozen(entry, tuple(inside), clock)
        if entry.parent is None:
            return call
        children.setdefault(entry.parent, []).append(call)
    msg = "a record has a root"
    raise AssertionError(msg)


def _frozen(entry: Entry, children: tuple[Call, ...], clock: Clock) -> Call:
    usage, cost = entry.usage or RunUsage(), entry.cost()
    if children:
        usage = sum((child.usage for child in children), usage)
        costs = [child.cost for child in children]
        cost = None if cost is None or None in costs else sum(filter(None, costs), cost)
        usage.cost = cost
    return Call(
        path=entry.path,
        key=entry.key,
        kind=entry.node.kind,
        status=entry.status,
        input=entry.input,
        output=entry.output,
        error=entry.error,
        usage=usage,
        cost=cost,
        started=clock.calendar(entry.began),
        duration=entry.duration,
        attempts=entry.attempts,
        messages=entry.messages,
        children=children,
    )
