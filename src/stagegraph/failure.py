"""Which failure ended a run, and how it is told."""

from __future__ import annotations

from pydantic import ValidationError

from .call import Call, CallError
from .errors import StagegraphError, leaves
from .frame import Suspended

__all__ = ["failure_in", "is_about", "only_leaf", "problems_of", "said"]


def failure_in(group: BaseExceptionGroup[BaseException]) -> Exception:
    """The failure in what a user's own task group raised; a question alone, or a cancellation, goes on its way."""
    found = leaves(group)
    for leaf in found:
        if not isinstance(leaf, (Suspended, Exception)):
            raise group
    failures = [leaf for leaf in found if isinstance(leaf, Exception)]
    if failures:
        return failures[0]
    raise Suspended from group


def only_leaf(error: Exception) -> Exception:
    """The error itself, or the one error in the groups around it."""
    found = leaves(error)
    return found[0] if len(found) == 1 and isinstance(found[0], Exception) else error


def said(error: BaseException) -> str:
    """An error as it reads in the message of a run: our own texts say all there is."""
    own = isinstance(error, StagegraphError) and str(error)
    return str(error) if own else str(CallError(type(error).__name__, str(error)))


def is_about(call: Call, error: BaseException) -> bool:
    """Whether a failed call is what *error* tells of: it raised it, or the flow raised it about the call."""
    if call.error is None:
        return False
    text = call.error.message
    return (call.error.type, text) == (type(error).__name__, str(error)) or bool(text and text in str(error))


def problems_of(error: ValidationError) -> str:
    problems = [f"{'.'.join(map(str, e['loc'])) or 'input'}: {e['msg']}" for e in error.errors(include_url=False)]
    return "; ".join(problems[:5])
