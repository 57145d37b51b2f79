"""Files that somebody named: how one is read, and where the journal is that nobody named."""

from __future__ import annotations

import errno
import os
import stat

DEFAULT_JOURNAL = ".stagegraph/runs.db"
"""The file of runs where none is named, by a program or on the command line."""


def read_regular(path: str | os.PathLike[str], most: int = -1) -> bytes:
    """The bytes of a file, and no more than *most* of them; a pipe or a device could keep the reader for ever.

    Raises:
        OSError: it is no regular file, or cannot be read.
        ValueError: the path is invalid.
    """
    with open(path, "rb", opener=_without_waiting) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            reason = "it is not a regular file"
            raise OSError(errno.EINVAL, reason)
        return file.read(most)


def _without_waiting(path: str, flags: int) -> int:
    """Open a pipe without a writer, too, so that it can be refused."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
