"""Which runs a journal may forget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from stagegraph.data.call import Status

from .owner import is_alive

__all__ = ["Standing", "forgettable"]

_UNFINISHED = {"running", "suspended"}


class Standing(NamedTuple):
    """How a run stands."""

    run_id: str
    status: Status
    owner: str | None
    ended: float
    """Seconds since 1970; of a run whose process died, when it began."""


def forgettable(runs: Iterable[Standing], *, before: float | None, keep: int | None) -> list[str]:
    """The ids of the runs that ended *before* a moment, and of all ended ones but the newest *keep*.

    A run that a living process holds stays. One that waits to go on, for an answer or because its process died, is not
    one too many: only its age counts.
    """
    free = [run for run in runs if run.owner is None or not is_alive(run.owner)]
    ended = sorted((run for run in free if run.status not in _UNFINISHED), key=lambda run: run.ended, reverse=True)
    doomed = [] if keep is None else ended[max(keep, 0) :]
    if before is not None:
        doomed += [run for run in free if run.ended < before]
    return list(dict.fromkeys(run.run_id for run in doomed))
