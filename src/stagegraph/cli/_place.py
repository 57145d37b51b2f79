"""Files that a command will write: whether that can work is said before anything is run or paid for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import typer

__all__ = ["writable"]

P = TypeVar("P", Path, str, None)


def writable(place: P) -> P:
    """The place itself, for the callback of an option that names a file to write."""
    if place is None:
        return place
    path = Path(place)
    problem = ""
    if path.is_dir():
        problem = "this is a folder; name a file in it"
    elif not path.parent.is_dir():
        problem = f"there is no folder {path.parent}; make it, or name another place"
    elif not os.access(path if path.exists() else path.parent, os.W_OK):
        problem = "it may not be written by you; name another place"
    if problem:
        msg = f"{place}: {problem}"
        raise typer.BadParameter(msg)
    return place
