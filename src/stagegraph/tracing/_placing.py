"""The calls of a trace in the order in which they began, each in the one it was made in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from stagegraph.data.call import key_order

if TYPE_CHECKING:
    from stagegraph.journal import CallRow

__all__ = ["placed"]


def placed(calls: dict[str, CallRow], above: Mapping[str, str | None], root: str) -> list[CallRow]:
    """The calls with their parents and places: each after the one it was made in, siblings as they began.

    Servers keep milliseconds, so times alone do not tell what began first.
    """
    inside: dict[str, list[CallRow]] = {}
    for key, call in calls.items():
        if key != root:
            parent = above.get(key)
            call.parent = parent if parent in calls and parent != key else _around(key, calls, root)
            inside.setdefault(call.parent, []).append(call)
    ordered: list[CallRow] = []
    pending = [calls[root]]
    while pending or inside:
        if not pending:  # calls in a circle, which only nonsense can give
            _, pending = inside.popitem()
            for call in pending:
                call.parent = root
        call = pending.pop()
        call.position = len(ordered)
        ordered.append(call)
        pending += reversed(_in_order(inside.pop(call.key, [])))
    return ordered


def _in_order(siblings: list[CallRow]) -> list[CallRow]:
    """As they began; of those that began in the same millisecond, what ended first, a fan-out by its numbers."""
    ends: dict[tuple[float, str], float] = {}
    for call in siblings:
        place, end = (call.started, call.path), call.started + call.duration
        ends[place] = min(end, ends.get(place, end))
    return sorted(siblings, key=lambda call: (call.started, ends[call.started, call.path], key_order(call.key)))


def _around(key: str, calls: Mapping[str, CallRow], root: str) -> str:
    """The call that a key says it was made in, as near as it was recorded."""
    known = [other for other in calls if other and key.startswith(f"{other}.")]
    return max(known, key=len, default=root)
