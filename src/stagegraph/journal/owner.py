"""The owner of a run: whether it lives, who may resume a run, and which runs may be deleted.

An owner is a lock that dies with its holder. No clock, host name or process number decides, so that owners in other
containers are known as well.
"""

from __future__ import annotations

import os
import re
import secrets
import sys
import time
import weakref
from collections.abc import Iterable
from contextlib import suppress
from math import inf
from pathlib import Path
from typing import NamedTuple

from stagegraph.data.call import Status
from stagegraph.record.rows import GONE, RunRow

if sys.platform == "win32":
    import msvcrt

    def _lock(descriptor: int, *, alone: bool) -> bool:  # noqa: ARG001 - there is one kind of lock
        """Lock an open file without waiting; `False` where another open file of the same path is locked."""
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError:
            return False
        return True

else:
    import fcntl

    def _lock(descriptor: int, *, alone: bool) -> bool:
        """Lock an open file without waiting; `False` where another open file of the same path is locked."""
        try:
            fcntl.flock(descriptor, (fcntl.LOCK_EX if alone else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


_RESUMABLE = {"running", "suspended"}
_NAME = re.compile(r"[0-9a-f]{32}")
_CAREFULLY = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


class OwnerLock:
    """A new name under which runs are held, with its lock: a locked file beside the journal.

    The system unlocks the file when the process ends, however it ends.

    Raises:
        OSError: the file cannot be made, or the file system has no locks.
    """

    def __init__(self, journal: Path) -> None:
        _clear(journal)
        mode = journal.stat().st_mode & 0o666
        while True:
            self.name = secrets.token_hex(16)
            path = _file_of(journal, self.name)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
            self._end = weakref.finalize(self, _release, journal, path, self._descriptor)
            if _lock(self._descriptor, alone=True) and path.exists():
                path.chmod(mode)  # whoever may read the journal may try the lock
                return
            self.release()  # another process took it for one of a dead owner, before it was locked

    def release(self) -> None:
        """End the ownership."""
        self._end()

    def disown(self) -> None:
        """Leave the lock to the process that this one was forked from."""
        if self._end.detach() is not None:
            os.close(self._descriptor)


def _release(journal: Path, path: Path, descriptor: int) -> None:
    with suppress(OSError):
        path.unlink()
    os.close(descriptor)
    _clear(journal)


def _file_of(journal: Path, owner: str) -> Path:
    return Path(f"{journal}-owner-{owner}")


def _clear(journal: Path) -> None:
    """Remove the files of dead owners."""
    before = f"{journal.name}-owner-"
    with suppress(OSError):
        for file in list(journal.parent.iterdir()):
            owner = file.name.removeprefix(before)
            if owner != file.name and _NAME.fullmatch(owner) and not is_alive(journal, owner):
                file.unlink()


def is_alive(journal: Path, owner: str) -> bool:
    """Whether an owner's lock is held; what is no name of an owner, as in journals of before, holds no lock."""
    if not _NAME.fullmatch(owner):
        return False
    try:
        descriptor = os.open(_file_of(journal, owner), os.O_RDONLY | _CAREFULLY)
    except FileNotFoundError:
        return False
    except OSError:
        return True  # the lock cannot be tried
    try:
        return not _lock(descriptor, alone=False)
    except OSError:
        return True
    finally:
        os.close(descriptor)


def refusal_to_claim(row: RunRow, known: RunRow | None, *, fresh: bool, held: bool = False) -> str | None:
    """Why a run cannot be begun (*fresh*) or resumed; `None` where it can. *held*: it goes on in this process."""
    run_id = row.run_id
    if fresh:
        return None if known is None else f"the run id {run_id!r} is taken; resume that run, or choose another id"
    if known is None:
        return f"there is no run {run_id!r} in this journal"
    if held or known.owner not in {None, GONE}:
        return f"run {run_id!r} is already running, here or in another process; wait for it, or cancel it there"
    if known.status == "succeeded" or row.segment != known.segment + 1:
        return f"run {run_id!r} was resumed by another process, or finished, meanwhile; read it again"
    return None


class Prunable(NamedTuple):
    """What decides whether a run may be deleted."""

    run_id: str
    status: Status
    held: bool
    """Whether its owner lives."""
    ended: float
    """Seconds since 1970; for a run whose process died, when it began."""


def prunable(runs: Iterable[Prunable], *, older_than: float | None, keep: int | None) -> list[str]:
    """The ids of the runs that ended *older_than* seconds ago, and of all ended runs but the newest *keep*.

    The oldest come first. A run of a living owner stays. *keep* does not count runs that can be resumed; they are
    deleted by age alone.
    """
    free = sorted((run for run in runs if not run.held), key=lambda run: run.ended)
    ended = [run for run in free if run.status not in _RESUMABLE]
    surplus = {run.run_id for run in ended[: max(0, len(ended) - max(keep, 0))]} if keep is not None else set[str]()
    before = -inf if older_than is None else time.time() - older_than
    return [run.run_id for run in free if run.ended < before or run.run_id in surplus]
