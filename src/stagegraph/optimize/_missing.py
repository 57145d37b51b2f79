"""What to install when DSPy or GEPA is not there."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from stagegraph.schema.errors import TuningError

__all__ = ["needing"]


class MissingPackageError(TuningError, ImportError):
    """A package of the `optimize` extra is not installed."""


@contextmanager
def needing(what: str) -> Generator[None]:
    """Import what *what* cannot do without.

    Raises:
        MissingPackageError: DSPy or GEPA is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in {"dspy", "gepa"}:
            raise
        msg = f"{what} needs {package}, which is not installed: pip install 'stagegraph[optimize]'"
        raise MissingPackageError(msg) from error
