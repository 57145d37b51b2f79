"""The command line: a thin skin over the library. Each command imports the library when it runs."""

from .app import main

__all__ = ["main"]
