"""The owner of a run: this process, or another that may be dead; who may resume a run, and which may be deleted."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from stagegraph.data.call import Status
from stagegraph.record.rows import RunRow

_RESUMABLE = {"running", "suspended"}


def this_process() -> str:
    """`host/pid/start time`: the start time tells a process from a later one with the same number."""
    pid = os.getpid()
    return f"{socket.gethostname()}/{pid}/{_started(pid)}"


def is_alive(owner: str) -> bool:
    """Whether a process still runs; a process on another host cannot be checked and counts as alive."""
    if _other_host(owner) is not None:
        return True
    _, pid_text, started = owner.rsplit("/", 2)
    pid = int(pid_text)
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return started == _started(pid)


def _other_host(owner: str) -> str | None:
    """The host of a process, unless it is this host."""
    host = owner.rsplit("/", 2)[0]
    return host if host != socket.gethostname() else None


def _started(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "0"  # without /proc only the number is known
    fields = stat.rpartition(")")[2].split()
    # A killed process whose parent has not waited for it yet is a zombie: it runs nothing.
    return "zombie" if fields[0] == "Z" else fields[19]


def refusal_to_claim(row: RunRow, known: RunRow | None, *, fresh: bool, take_over: bool) -> str | None:
    """Why a run cannot be begun (*fresh*) or resumed; `None` where it can."""
    run_id = row.run_id
    if fresh:
        return None if known is None else f"the run id {run_id!r} is taken; resume that run, or choose another id"
    if known is None:
        return f"there is no run {run_id!r} in this journal"
    if known.owner is not None:
        running = f"run {run_id!r} is already running ({known.owner}); wait for it, or cancel it there"
        host = _other_host(known.owner)
        if host is None and is_alive(known.owner):
            return running
        if host is not None and not take_over:
            return (
                f"{running}. Whether that process still lives on host {host!r} cannot be checked here: if it is gone "
                f"for good, take the run over with `runner.resume({run_id!r}, take_over=True)` or "
                f"`stagegraph resume {run_id} --take-over`"
            )
    if known.status == "succeeded" or row.segment != known.segment + 1:
        return f"run {run_id!r} was resumed by another process, or finished, meanwhile; read it again"
    return None


class Prunable(NamedTuple):
    """What decides whether a run may be deleted."""

    run_id: str
    status: Status
    owner: str | None
    ended: float
    """Seconds since 1970; for a run whose process died, when it began."""


def prunable(runs: Iterable[Prunable], *, older_than: float | None, keep: int | None) -> list[str]:
    """The ids of the runs that ended *older_than* seconds ago, and of all ended runs but the newest *keep*.

    A run of a living process stays. *keep* does not count runs that can be resumed; they are deleted by age alone.
    """
    free = [run for run in runs if run.owner is None or not is_alive(run.owner)]
    ended = sorted((run for run in free if run.status not in _RESUMABLE), key=lambda run: run.ended, reverse=True)
    doomed = [] if keep is None else ended[max(keep, 0) :]
    if older_than is not None:
        before = time.time() - older_than
        doomed += [run for run in free if run.ended < before]
    return list(dict.fromkeys(run.run_id for run in doomed))
