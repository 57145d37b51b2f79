"""Whether a run failed by itself or was let down by a provider, which says nothing about the program."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, cast

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
    from stagegraph.record.run import Run

__all__ = ["fault_in", "is_lasting", "is_passing", "let_down", "wait_asked_for"]


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


def is_passing(error: BaseException) -> bool:
    """Whether a provider let somebody down for the moment: waiting may help."""
    fault = fault_in(error)
    return fault is not None and not is_lasting(fault)


def let_down(run: Run[Any, Any]) -> bool:
    """Whether a run went on without a call that its provider failed for the moment, as `settle` and `except` allow.

    What it gave then says little about the program. A call that was made once more in its place, and succeeded, is no
    loss.
    """
    made_good = {_AGAIN.sub("", call.key) for call in run.root.walk() if call.ok}
    return any(
        call.error is not None and call.error.passing and _AGAIN.sub("", call.key) not in made_good
        for call in run.failures()
    )


_AGAIN = re.compile(r"#\d+$")


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
