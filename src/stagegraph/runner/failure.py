"""Which failure ended a run, and how it is told."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from stagegraph.data.call import Call, CallError
from stagegraph.nodes.current import Suspended
from stagegraph.record.run import InputError, LimitError, ReplayError, RunError
from stagegraph.schema.errors import StagegraphError, leaves

if TYPE_CHECKING:
    from stagegraph.record.run import Run

__all__ = ["failure_in", "limit_error", "only_leaf", "run_error"]


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


def limit_error(graph: str, reached: str, cause: BaseException | None, *, timed_out: bool) -> LimitError:
    """The end of a run by one of its limits."""
    error = LimitError(f"the run of {graph} reached a limit: {reached}; raise `Limits`, or ask for less")
    error.timed_out = timed_out
    error.__cause__ = cause
    return error


def _said(error: BaseException) -> str:
    """An error as it reads in the message of a run: our own texts say all there is."""
    if isinstance(error, ValidationError) and (fields := _not_awaited(error)):
        return f"{error.title} was given a coroutine as {fields} (is an `await` missing before a call?)"
    own = isinstance(error, StagegraphError) and str(error)
    return str(error) if own else str(CallError(type(error).__name__, str(error)))


def _not_awaited(error: ValidationError) -> str:
    """The fields that were given calls nobody awaited, which are closed: the message says what Python would warn of."""
    fields: list[str] = []
    for problem in error.errors(include_url=False):
        given = problem["input"]
        if inspect.iscoroutine(given):
            if inspect.getcoroutinestate(given) == inspect.CORO_CREATED:
                given.close()
            fields.append(f"`{'.'.join(map(str, problem['loc'])) or 'input'}`")
    return ", ".join(dict.fromkeys(fields))


def _is_about(call: Call, error: BaseException) -> bool:
    """Whether a failed call is what *error* tells of: it raised it, or the flow raised it about the call."""
    if call.error is None:
        return False
    text = call.error.message
    return (call.error.type, text) == (type(error).__name__, str(error)) or bool(text and text in str(error))


def run_error(cause: Exception, label: str, record: Callable[[], Run[Any, Any]]) -> RunError:
    """The error that a run ends with, which says where it failed."""
    if isinstance(cause, (InputError, LimitError, ReplayError)) and not cause.attached:
        return cause
    causes, failures = leaves(cause), record().failures()
    text = "; ".join(_said(leaf) for leaf in causes[:3])
    if any(isinstance(leaf, (AttributeError, TypeError)) and "'coroutine' object" in str(leaf) for leaf in causes):
        text += " (is an `await` missing before a call?)"
    # A flow may have caught other failures; the place is that of the one that ended the run.
    found = next((call for call in failures if any(_is_about(call, leaf) for leaf in causes)), None)
    place = f" at `{found.key}`" if found is not None and found.key and f"`{found.key}`" not in text else ""
    others = len(failures) - (found is not None)
    calls = "call" if others == 1 else "calls"
    more = f" (and {others} more failed {calls}, see `error.failures`)" if others else ""
    return RunError(f"{label} failed{place}: {text}{more}")
