"""What a front end may be told of a failure: where it happened and what to do, not what a model or a stage said."""

from __future__ import annotations

from stagegraph.record.run import InputError, LimitError, RunError
from stagegraph.schema.errors import BusyError, JournalError, StagegraphError

__all__ = ["told"]


def told(error: StagegraphError, label: str) -> StagegraphError:
    """The error as it may be shown to anybody; the original is to be chained."""
    if isinstance(error, (InputError, LimitError)):
        return error  # these speak of what the caller sent, and of limits
    if isinstance(error, BusyError):
        return BusyError(f"{label} takes no more runs for now: try again later", retry_after=error.retry_after)
    if isinstance(error, JournalError):
        return JournalError(f"runs of {label} cannot be recorded now: try again later")
    if not isinstance(error, RunError) or not error.attached:
        return RunError(f"{label} cannot go on like this")
    if error.run.status != "failed":
        return error  # cancelled, or it asks something
    place = next((f" at `{call.key}`" for call in error.failures if call.key), "")
    return RunError(f"{label} failed{place}", run=error.run)
