"""How what is nobody's score gets out of DSPy's evaluations, which take every `Exception` for a 0."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from dspy.utils.parallelizer import ParallelExecutor

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["TuningStopped", "raise_through_evaluation"]


class TuningStopped(BaseException):
    """A provider failed for good, or the metric itself did, in the middle of an optimization; the cause says which.

    DSPy scores an example 0 whenever an `Exception` is raised, which would blame a candidate for a rate limit. Only
    what is no `Exception` ends the optimization instead; it is raised inside DSPy's evaluations and nowhere else.
    """


_stopped: WeakKeyDictionary[Any, Exception] = WeakKeyDictionary()
"""Evaluations that an outage ended, so that what they still had queued is not run."""


def raise_through_evaluation(error: Exception | None) -> None:
    """Inside one of DSPy's evaluations, raise what it cannot swallow; outside, do nothing.

    Without an *error*, raise only when the evaluation was ended before.
    """
    executor = _evaluation()
    if executor is None:
        return
    if error is not None:
        _stopped[executor] = error
    ended = _stopped.get(executor)
    if ended is not None:
        msg = f"{ended} (the optimization stops here, since this says nothing about the candidate)"
        raise TuningStopped(msg) from ended


def _evaluation() -> ParallelExecutor | None:
    """The evaluation that is calling, which DSPy passes along nowhere but on the stack."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 # pyright: ignore[reportPrivateUsage]
    while frame is not None:
        if frame.f_code.co_name == "safe_func":
            owner = frame.f_locals.get("self")
            if isinstance(owner, ParallelExecutor):
                return owner
        frame = frame.f_back
    return None
