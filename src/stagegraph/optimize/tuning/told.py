"""Telling somebody what a search does, without letting that somebody end it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagegraph.optimize.adapter import Adapter
    from stagegraph.optimize.options import Tell

__all__ = ["Events", "Quiet", "Teller"]

_log = logging.getLogger("stagegraph.optimize")


class Teller:
    """A callback that is never worth what was paid for: when it fails, that is logged once, and the search goes on."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._failed = False

    def __call__(self, event: str, data: Mapping[str, Any]) -> None:
        """Tell of an event."""
        try:
            self._tell(event, data)
        except Exception:  # noqa: BLE001 - nothing that it raises is worth more than the search
            if not self._failed:
                self._failed = True
                _log.exception("`tell` failed at the event %r; the search goes on, and this is not said again", event)


class Events:
    """GEPA's callbacks as plain events."""

    def __init__(self, adapter: Adapter, tell: Tell) -> None:
        self._adapter, self._tell = adapter, tell

    def on_valset_evaluated(self, event: Mapping[str, Any]) -> None:
        self._adapter.found(event["candidate"], event["parent_ids"])

    def on_candidate_accepted(self, event: Mapping[str, Any]) -> None:
        parents = tuple(event["parent_ids"])
        known = {"iteration": event["iteration"], "candidate": event["new_candidate_idx"], "parents": parents}
        self._tell("accepted", known)

    def on_candidate_rejected(self, event: Mapping[str, Any]) -> None:
        self._tell("rejected", {"iteration": event.get("iteration")})


class Quiet:
    def log(self, message: str) -> None:
        """GEPA's own log is for its developers."""
