"""The errors that carry no data, and how error messages are put together."""

from __future__ import annotations

import difflib
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from collections.abc import Generator, Iterable

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails

_A_SCREEN = 1_400
"""Characters, on a terminal of 24 lines."""
_LINES = 12


class StagegraphError(Exception):
    """Base of every error that stagegraph raises."""


class DeclarationError(StagegraphError):
    """A graph, a stage or an argument is written in a way that cannot work."""


class NotRunningError(StagegraphError):
    """A node was called outside a run."""


class PromptError(StagegraphError):
    """A prompts file or a `Prompts` value is malformed or does not fit the graph."""


class JournalError(StagegraphError):
    """A journal cannot be opened, read or written; what it had recorded before is unchanged."""


class BusyError(StagegraphError):
    """A runner has reached `Runner(max_runs=)`, or is shutting down; the run did not begin."""

    def __init__(self, message: str, *, retry_after: float = 1.0) -> None:
        super().__init__(message)
        self.retry_after = retry_after
        """Seconds to wait before trying again."""

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(BusyError, retry_after=self.retry_after), (str(self),)


class TracingError(StagegraphError):
    """A tracing server could not be read or written by an explicit request; a run never raises it."""


class TuningError(StagegraphError):
    """An optimization cannot start or continue."""


class MissingPackageError(DeclarationError, TuningError, ImportError):
    """A package of an extra is not installed; callers of `stagegraph.optimize` may catch it as a `TuningError`."""


class StageError(StagegraphError):
    """A call of a node failed; the cause, where there is one, is chained."""

    def __init__(self, message: str, *, key: str, path: str) -> None:
        super().__init__(shortened(message))
        self.key = key
        """Where it ran, such as `build[2].code`."""
        self.path = path
        """Where the node is declared, such as `build.code`."""

    def __reduce__(self) -> tuple[Any, ...]:
        return partial(StageError, key=self.key, path=self.path), (str(self),)


def shortened(text: str, most: int = _A_SCREEN) -> str:
    """A text that fits a screen: the middle of a long one is left out, many lines become one."""
    if len(text) > most:
        end = most // 4
        left_out = len(text) - most
        text = f"{text[: most - end]} [... {left_out:,} characters left out ...] {text[-end:]}"
    return text if text.count("\n") < _LINES else " ".join(text.split())


@contextmanager
def needs_extra(extra: str, what: str, *packages: str) -> Generator[None]:
    """Around imports of *packages*, which an extra installs.

    Raises:
        MissingPackageError: one of them is missing; the message says what to install for *what*.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in packages:
            raise
        msg = f"{what} needs {package}, which is not installed: pip install 'stagegraph[{extra}]'"
        raise MissingPackageError(msg) from error


def leaves(error: BaseException) -> list[BaseException]:
    """The single errors in an exception group, at any depth; for any other error, the error itself."""
    if not isinstance(error, BaseExceptionGroup):
        return [error]
    inner = cast("BaseExceptionGroup[BaseException]", error).exceptions
    return [leaf for one in inner for leaf in leaves(one)]


def problems_of(error: ValidationError, *, whole: str = "input", most: int = 5) -> str:
    """Pydantic's problems, each with its place; *whole* is the place of the value itself."""
    found = error.errors(include_url=False, include_input=False)
    texts = [_described(one, whole) for one in found[:most]]
    more = f" and {len(found) - most} more" if len(found) > most else ""
    return "; ".join(texts) + more


def first_problem(error: ValidationError) -> str:
    """Pydantic's first problem with its place; without a place where the value itself is wrong."""
    return _described(error.errors(include_url=False, include_input=False)[0], "")


def _described(problem: ErrorDetails, whole: str) -> str:
    place = ".".join(map(str, problem["loc"])) or whole
    reason = "Input should be a mapping" if problem["type"] in {"model_type", "dataclass_type"} else problem["msg"]
    return f"{place}: {reason}" if place else reason


def closest(name: str, options: Iterable[str]) -> str:
    """`; did you mean `plan`?`, or an empty text where no option is close to *name*."""
    near = difflib.get_close_matches(name, [option for option in options if option], n=1)
    return f"; did you mean `{near[0]}`?" if near else ""
