"""The errors that carry no data, and how the errors of others are taken apart and formatted."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

__all__ = [
    "BusyError",
    "DeclarationError",
    "JournalError",
    "NotRunningError",
    "PromptError",
    "StageError",
    "StagegraphError",
    "TracingError",
    "TuningError",
    "first_problem",
    "leaves",
    "problems_of",
]


def leaves(error: BaseException) -> list[BaseException]:
    """The single errors in a group of groups, as a user's own task group may raise it; else the error itself."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    inner = cast("BaseExceptionGroup[BaseException]", error).exceptions
    return [leaf for one in inner for leaf in leaves(one)]


class StagegraphError(Exception):
    """Base of every error that stagegraph raises."""


class DeclarationError(StagegraphError):
    """A graph, a stage or an argument is written in a way that cannot work."""


class NotRunningError(StagegraphError):
    """A node was called where no run is going on."""


class PromptError(StagegraphError):
    """A prompts file or a `Prompts` value is malformed or does not fit the graph."""


class JournalError(StagegraphError):
    """A journal cannot be opened, read or written; what it had recorded before is as it was."""


class BusyError(StagegraphError):
    """A runner takes no more runs for now (`Runner(max_runs=)`), or is shutting down; the run did not begin."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds after which it makes sense to try again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _busy_error, (str(self), self.retry_after)


def _busy_error(message: str, retry_after: float) -> BusyError:
    return BusyError(message, retry_after=retry_after)


class TracingError(StagegraphError):
    """A tracing server could not be read or written when that was asked for; a run never raises it."""


class TuningError(StagegraphError):
    """An optimization cannot start or go on."""


class StageError(StagegraphError):
    """A call of a node failed; the cause, where there is one, is chained."""

    def __init__(self, message: str, *, key: str, path: str) -> None:
        super().__init__(message)
        self.key = key
        """Where it ran, such as `build[2].code`."""
        self.path = path
        """Where the node is declared, such as `build.code`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _stage_error, (str(self), self.key, self.path)


def _stage_error(message: str, key: str, path: str) -> StageError:
    return StageError(message, key=key, path=path)


def problems_of(error: ValidationError, *, whole: str = "input", most: int = 5) -> str:
    """What Pydantic found wrong, each problem with its place; *whole* names the value itself."""
    found = error.errors(include_url=False, include_input=False)
    texts = [f"{'.'.join(map(str, one['loc'])) or whole}: {_reason(one)}" for one in found[:most]]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(texts) + more


def first_problem(error: ValidationError) -> str:
    """The first of them; without a place where the value itself is wrong."""
    first = error.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place}: {_reason(first)}" if place else _reason(first)


def _reason(problem: ErrorDetails) -> str:
    return "Input should be a mapping" if problem["type"] == "model_type" else problem["msg"]
