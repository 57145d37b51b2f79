"""The command line: a thin skin over the library."""

from ._app import main

__all__ = ["main"]
