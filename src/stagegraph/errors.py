"""Every error that stagegraph raises.

```
StagegraphError
├── DeclarationError     a graph, stage or argument is written in a way that cannot work
├── NotRunningError      a node was called where no run is going on
├── PromptError          a prompts file or a `Prompts` value does not fit
├── StageError           a call of a node failed: provider, output, types, timeout
├── RunError             a run ended without an output; holds its partial record
│   ├── InputError       the input at the outer door does not fit the node
│   ├── LimitError       a limit of the run was reached
│   └── ReplayError      a recorded run does not fit the program that replays it
├── BusyError            a runner has as many runs as it may have, or is shutting down
├── JournalError         a journal cannot be opened, read or written
└── TuningError          an optimization cannot start or go on
```

What a user's own step or `flow` raises stays what it is inside the graph, so ordinary `except` works there;
the runner wraps it in a `RunError` at the outer door, with the original as `__cause__`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, cast

if TYPE_CHECKING:
    from .call import Call
    from .run import Run

__all__ = [
    "BusyError",
    "DeclarationError",
    "InputError",
    "JournalError",
    "LimitError",
    "NotRunningError",
    "PromptError",
    "ReplayError",
    "RunError",
    "StageError",
    "StagegraphError",
    "TracingError",
    "TuningError",
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


class RunError(StagegraphError):
    """A run ended without an output."""

    def __init__(self, message: str, *, run: Run[Any, Any] | None = None) -> None:
        super().__init__(message)
        self._run = run
        self._elsewhere = False
        """Whether the record is in another process, from which the error came without it."""

    @property
    def run(self) -> Run[Any, Any]:
        """The partial record: every call that finished, failed or was cancelled."""
        if self._run is None:
            msg = "this error was raised outside a run, so there is no record"
            if self._elsewhere:
                msg = (
                    "this error was pickled, and its record stayed in the process that ran it: "
                    "send `error.run.to_json()` from there, and read it with `Run.from_json(text, graph)`"
                )
            raise AttributeError(msg)
        return self._run

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {name: value for name, value in vars(self).items() if name in {"timed_out", "__notes__"}}
        return type(self), (str(self),), {**kept, "_elsewhere": self._elsewhere or self._run is not None}

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self), *self.args)
        vars(copied).update(vars(self))
        copied.__cause__ = self.__cause__
        return copied.with_traceback(self.__traceback__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()  # the record is frozen

    @property
    def attached(self) -> bool:
        """Whether there is a record."""
        return self._run is not None

    def attach(self, run: Run[Any, Any]) -> None:
        """Give the error its record; the runner does."""
        self._run = run

    @property
    def failures(self) -> list[Call[Any, Any]]:
        """Each failed call, in key order; the innermost ones, since their parents only failed with them."""
        return [] if self._run is None else self._run.failures()

    @classmethod
    def from_cancellation(cls, error: BaseException) -> RunError | None:
        """The partial record of a run that was cancelled from outside, from the `CancelledError` that it raised.

        Cancellation itself keeps propagating, as structured concurrency wants; raise the `CancelledError` again.
        """
        seen: set[int] = set()
        current: BaseException | None = error
        while current is not None and id(current) not in seen:
            seen.add(id(current))
            run = vars(current).get("stagegraph_run")
            if run is not None:
                return cls("the run was cancelled", run=run)
            current = current.__context__
        return None


class InputError(RunError):
    """The input at the outer door does not fit the node's input type."""


class LimitError(RunError):
    """A limit of the run was reached; what was recorded remains."""

    timed_out = False
    """Whether it was the limit of time."""


class ReplayError(RunError):
    """A recorded run does not fit the program that should replay it."""
