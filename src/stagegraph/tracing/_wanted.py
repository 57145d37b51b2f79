"""Which recorded runs somebody wants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from stagegraph.schema.errors import DeclarationError

if TYPE_CHECKING:
    from stagegraph.data.score import Feedback

__all__ = ["CORRECTION", "Wanted"]

CORRECTION = "correction"
"""The name of a score whose text is what should have come out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """Which runs; everything that is set must fit."""

    since: datetime | None = None
    until: datetime | None = None
    tags: tuple[str, ...] = ()
    user: str | None = None
    session: str | None = None
    environment: str | None = None
    status: str | None = None
    score: str | None = None
    min_score: float | None = None
    max_score: float | None = None
    experiments: bool = False
    limit: int | None = None

    @classmethod
    def of(
        cls,
        *,
        since: datetime | timedelta | None = None,
        until: datetime | timedelta | None = None,
        tags: Sequence[str] = (),
        **others: Any,
    ) -> Wanted:
        """The same as `RunSource.runs` takes it.

        Raises:
            DeclarationError: a moment has no time zone.
        """
        return cls(since=_moment(since), until=_moment(until), tags=tuple(tags), **others)

    def scored(self, scores: Sequence[Feedback]) -> bool:
        """Whether there is a score that fits."""
        if self.score is None and self.min_score is None and self.max_score is None:
            return True
        return any(self._fits(one) for one in scores if self.score in {None, one.name} and one.name != CORRECTION)

    def _fits(self, score: Feedback) -> bool:
        if self.min_score is None and self.max_score is None:
            return True
        value = score.value
        if not isinstance(value, (int, float)):
            return False
        return (self.min_score is None or value >= self.min_score) and (
            self.max_score is None or value <= self.max_score
        )


def _moment(value: datetime | timedelta | None) -> datetime | None:
    if isinstance(value, timedelta):
        return datetime.now(UTC) - value
    if value is not None and value.tzinfo is None:
        msg = f"{value!r} has no time zone; write datetime(..., tzinfo=UTC), or how long ago as a timedelta"
        raise DeclarationError(msg)
    return value
