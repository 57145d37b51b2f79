"""Recorded calls as a bag: each output is handed out once, to a call with the same content.

Content decides, not order, so concurrent branches cannot swap answers and a flow may run in any order. Among equals the
call at the same place goes first; calls with the very same content keep to their own places.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from stagegraph.record.rows import CallRow, OpRow, Recorded

__all__ = ["Bag"]


class Bag:
    """The recorded calls of one run, to be claimed by the calls of another or of its continuation."""

    def __init__(self, calls: Iterable[CallRow] = (), ops: Iterable[OpRow] = ()) -> None:
        self._by_identity: dict[str, dict[str, Recorded]] = {}
        self._at: dict[str, CallRow] = {}
        self._called: set[str] = set()
        for row in calls:
            if row.kind != "graph":
                self._at[row.key] = row
                # A step that failed has nothing to give; a stage that failed has what its agent was told before.
                if row.identity and row.status != "failed":
                    self._by_identity.setdefault(row.identity, {})[row.key] = Recorded(row)
        for op in ops:
            same = self._by_identity.setdefault(op.identity, {})
            same.setdefault(op.key, Recorded(_begun(op))).ops[op.op] = op
        self._unique = {identity for identity, same in self._by_identity.items() if len(same) == 1}

    def __bool__(self) -> bool:
        return bool(self._at)

    def claim(self, key: str, identity: str) -> Recorded | None:
        """The recorded call that this one repeats, if there is one; it is handed out once."""
        self._called.add(key)
        same = self._by_identity.get(identity)
        if not same:
            return None
        if key in same:
            return same.pop(key)
        other = self._elsewhere(key, identity, same)
        return same.pop(other) if other is not None else None

    def _elsewhere(self, key: str, identity: str, same: Mapping[str, Recorded]) -> str | None:
        """A record of the same content at another place, unless that place may still ask for it."""
        abandoned = next((place for place in same if place in self._called), None)
        before = self._at.get(key)
        if before is not None and before.identity == identity:
            return abandoned  # it asked the same here and failed: the other answer is another's
        moved = before is not None
        return abandoned or (next(iter(same)) if moved or identity in self._unique else None)

    def at(self, key: str) -> CallRow | None:
        """What stood at this place before."""
        return self._at.get(key)

    def holds(self, key: str, identity: str) -> bool:
        """Whether a finished record of other content stands here, which only a finished call may replace."""
        row = self._at.get(key)
        return row is not None and row.status == "succeeded" and row.identity != identity

    def changed(self, key: str, input_json: str, parts: Mapping[str, str]) -> str | None:
        """How a call differs from what stood at its place before, in words; `None` when nothing stood there."""
        row = self._at.get(key)
        if row is None:
            return None
        before = json.loads(row.parts)
        names = ["the input"] if row.input != input_json else []
        names += [name for name in parts if before.get(name) != parts[name]]
        return " and ".join(names) if names else "nothing"


def _begun(op: OpRow) -> CallRow:
    """A call of which only the inside was recorded."""
    return CallRow(
        run_id=op.run_id,
        key=op.key,
        path="",
        kind="stage",
        parent=None,
        position=0,
        status="running",
        identity=op.identity,
        input="",
        started=0.0,
    )
