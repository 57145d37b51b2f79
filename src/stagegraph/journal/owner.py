"""Who holds a run: a name for this process, and whether another one still lives."""

from __future__ import annotations

import os
import socket
from pathlib import Path

__all__ = ["host_elsewhere", "is_alive", "this_process"]


def this_process() -> str:
    """`host/pid/start time`: the start time tells a process from a later one with the same number."""
    pid = os.getpid()
    return f"{socket.gethostname()}/{pid}/{_started(pid)}"


def is_alive(owner: str) -> bool:
    """Whether the process still runs; of another host nobody can tell, so it counts as alive."""
    if host_elsewhere(owner) is not None:
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


def host_elsewhere(owner: str) -> str | None:
    """The host of a process of which nobody here can tell whether it lives; `None` for one of this host."""
    host = owner.rsplit("/", 2)[0]
    return host if host != socket.gethostname() else None


def _started(pid: int) -> str:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return "0"  # no /proc on this system: the number alone must do
    fields = stat.rpartition(")")[2].split()
    # A killed process that nobody has waited for yet is a zombie: it runs nothing any more.
    return "zombie" if fields[0] == "Z" else fields[19]
