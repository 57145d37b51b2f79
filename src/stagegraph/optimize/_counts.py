"""How many of something: a whole number from 1 on, or it is refused before anything waits for it for ever."""

from __future__ import annotations

from stagegraph.schema.errors import TuningError

__all__ = ["check_counts"]


def check_counts(**counts: object) -> None:
    """Make sure that each is a whole number of at least 1.

    Raises:
        TuningError: one is not; it is named as the caller wrote it.
    """
    for name, count in counts.items():
        if isinstance(count, bool) or not isinstance(count, int):
            msg = f"{name}={count!r}: it is a whole number"
            raise TuningError(msg)
        if count < 1:
            msg = f"{name}={count}: at least 1 is needed"
            raise TuningError(msg)
