"""What a run writes down while it goes on: one small mutable entry a call, frozen into `Call`s when somebody looks."""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from time import perf_counter, time
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic_ai.usage import RunUsage

from stagegraph.data.call import Call, CallError, Status
from stagegraph.data.usage import NO_MODEL, summed

if TYPE_CHECKING:
    from stagegraph.nodes.node import Node

    from .identity import Fixed

__all__ = ["Clock", "Entry", "Memo", "freeze", "total"]


@dataclass(frozen=True, slots=True)
class Clock:
    """The monotonic clock's offset from the calendar, read once a run."""

    offset: float

    @classmethod
    def now(cls) -> Clock:
        return cls(time() - perf_counter())

    def seconds(self, moment: float) -> float:
        """Seconds since 1970."""
        return self.offset + moment

    def calendar(self, seconds: float) -> datetime:
        return datetime.fromtimestamp(self.offset, UTC) + timedelta(seconds=seconds)


class Memo(NamedTuple):
    """What a recorder works out once a call."""

    identity: str
    input: str
    """JSON."""
    fixed: Fixed


class Entry:
    """One call while it runs. A handful of slots keeps a run of 100,000 calls small."""

    __slots__ = (
        "began",
        "ended",
        "error",
        "fan",
        "input",
        "key",
        "memo",
        "node",
        "output",
        "parent",
        "path",
        "position",
        "replayed",
        "status",
        "use",
    )

    def __init__(  # noqa: PLR0917 - made for every call
        self, node: Node[Any, Any], path: str, key: str, parent: Entry | None, value: object, position: int
    ) -> None:
        self.node = node
        self.path = path
        self.key = key
        self.parent = parent
        self.input = value
        self.position = position
        self.output: Any = None
        self.error: CallError | None = None
        self.status: Status = "running"
        self.use = NO_MODEL
        self.replayed = False
        self.memo: Memo | None = None
        self.fan: tuple[int, int | None] | None = None
        """Which item of a fan-out it was made for, from 0, and of how many; kept for a trace alone."""
        self.ended = 0.0
        self.began = perf_counter()

    @property
    def duration(self) -> float:
        return (self.ended or perf_counter()) - self.began


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


def total(entries: Iterable[Entry]) -> tuple[RunUsage, Decimal | None]:
    """The same from a run's entries."""
    usage = RunUsage()
    known = True
    for entry in entries:
        if entry.use is not NO_MODEL:
            usage.incr(entry.use.usage)
            known = known and entry.use.cost is not None
    usage.cost = (usage.cost or Decimal(0)) if known else None
    return usage, usage.cost


def _frozen(entry: Entry, children: tuple[Call, ...], clock: Clock) -> Call:
    usage, cost = entry.use.usage, entry.use.cost
    if entry.status == "running":
        usage = copy(usage)  # it still counts
    if children:
        usage, cost = summed(children)
    return Call(
        path=entry.path,
        key=entry.key,
        kind=entry.node.__node__.kind,
        status=entry.status,
        input=entry.input,
        output=entry.output,
        error=entry.error,
        usage=usage,
        cost=cost,
        started=clock.calendar(entry.began),
        duration=entry.duration,
        attempts=entry.use.attempts,
        messages=entry.use.messages,
        children=children,
        replayed=entry.replayed,
    )
