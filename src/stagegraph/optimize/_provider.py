"""What happens when a provider, and not the program, is at fault: wait and try again, and never take it for a score."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakKeyDictionary

from dspy.utils.parallelizer import ParallelExecutor
from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelAuthenticationError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRequestRejectedError,
    UserError,
)

if TYPE_CHECKING:
    from types import FrameType

__all__ = ["ProviderOutage", "fault_in", "is_lasting", "raise_through_evaluation", "wait_asked_for"]


class ProviderOutage(BaseException):  # noqa: N818
    """A provider failed for good in the middle of an optimization; the cause is the `RunError`.

    DSPy scores an example 0 whenever an `Exception` is raised, which would blame a candidate for a rate limit. Only what
    is no `Exception` ends the optimization instead; it is raised inside DSPy's evaluations and nowhere else.
    """


def fault_in(error: BaseException) -> Exception | None:
    """The provider's error that ended a run (or a mistake in the agent's set-up), if one did; not a bad answer."""
    for cause in _causes(error):
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, ModelAPIError) and not _is_about_the_prompt(cause):
            return cause
        if isinstance(cause, OSError) and not isinstance(cause, (TimeoutError, FileNotFoundError, PermissionError)):
            return cause
    return None


def _is_about_the_prompt(error: ModelAPIError) -> bool:
    """A refusal of this very request: too long, or against the provider's rules."""
    refused = isinstance(error, ModelRequestRejectedError) and not isinstance(
        error, (ModelAuthenticationError, ModelNotFoundError, ModelQuotaExceededError)
    )
    return refused or (isinstance(error, ModelHTTPError) and error.status_code in {400, 413, 422})


def is_lasting(fault: Exception) -> bool:
    """Whether waiting cannot help: a bad key, an unknown model, a used-up account, an agent set up wrongly."""
    if isinstance(fault, (UserError, ModelRequestRejectedError, ModelQuotaExceededError)):
        return True
    status = fault.status_code if isinstance(fault, ModelHTTPError) else None
    return status is not None and status < 500 and status not in {408, 409, 425, 429}  # noqa: PLR2004


def wait_asked_for(fault: Exception) -> float:
    """Seconds that the provider asked for; 0 when it did not say."""
    return (fault.retry_after or 0.0) if isinstance(fault, ModelAPIError) else 0.0


def _causes(error: BaseException) -> Iterator[BaseException]:
    pending, seen = [error], set[int]()
    while pending:
        current = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        if isinstance(current, BaseExceptionGroup):
            pending.extend(cast("BaseExceptionGroup[BaseException]", current).exceptions)
        if current.__cause__ is not None:
            pending.append(current.__cause__)


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
        msg = f"{ended} (the optimization stops here: a provider's failure is no score)"
        raise ProviderOutage(msg) from ended


def _evaluation() -> ParallelExecutor | None:
    """The evaluation that is calling, which DSPy passes along nowhere but on the stack."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001
    while frame is not None:
        if frame.f_code.co_name == "safe_func":
            owner = frame.f_locals.get("self")
            if isinstance(owner, ParallelExecutor):
                return owner
        frame = frame.f_back
    return None
