"""What a process owes its outboxes and threads: an end that waits a little, and a clean start in forked children."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Iterable
from typing import Protocol
from weakref import WeakSet

__all__ = ["begin_anew_in_children", "close_all", "close_at_exit", "empty_in_children"]


class Forked(Protocol):
    """What has threads or locks, which a forked child does not inherit in working order."""

    def forked(self) -> None:
        """Begin anew in a forked child."""
        ...


class Closable(Forked, Protocol):
    """What an outbox is to its process."""

    def end(self, seconds: float | None) -> float:
        """Take nothing more; gives the moment until which what waits may still be sent."""
        ...

    def settle(self, until: float) -> None:
        """Wait until all is sent or *until* has come; what is left then is lost."""
        ...


_everyone: WeakSet[Closable] = WeakSet()
_forking: WeakSet[Forked] = WeakSet()


def close_all(boxes: Iterable[Closable], seconds: float | None = None) -> None:
    """Close several outboxes in the time of one."""
    for box, until in [(box, box.end(seconds)) for box in boxes]:
        box.settle(until)


def empty_in_children(box: Closable) -> None:
    """Call `forked` of this outbox in every child that this process forks."""
    _everyone.add(box)
    begin_anew_in_children(box)


def begin_anew_in_children(one: Forked) -> None:
    """Call its `forked` in every child that this process forks."""
    _forking.add(one)


def close_at_exit() -> None:
    """Close every outbox of this process at its end; called in each process that has something to send."""
    atexit.unregister(_close_everyone)
    atexit.register(_close_everyone)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        # Not before Python 3.14 does a forked worker of `multiprocessing` call what is registered with `atexit`.
        from multiprocessing.util import Finalize  # noqa: PLC0415 - it is loaded where it is needed

        Finalize(None, _close_everyone, exitpriority=0)


def _close_everyone() -> None:
    close_all(list(_everyone))


def _forked() -> None:
    for one in list(_forking):
        one.forked()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_forked)
