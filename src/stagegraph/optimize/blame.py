"""What the search learns from judged runs: how much each stage is to blame, and what its proposer is shown."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ._credit import blame_of, blamed, calls_of
from ._feedback import answer_of, cut, lines_about, shown, verdict_lines
from .evaluation import row_of

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.data.examples import Example
    from stagegraph.data.score import Note, Score
    from stagegraph.record.run import Run

    from .report import ReportRow

__all__ = ["Judged", "blame", "records"]

_TEXT = 2_000
"""Characters of one input or output in a record."""
_RECORDS = 24_000
"""Characters of all records of a stage together."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One example, its run and the verdict."""

    example: Example[Any]
    run: Run[Any, Any]
    score: Score

    @property
    def row(self) -> ReportRow:
        """It as a report keeps it."""
        return row_of(self.example, 0, self.run, self.score)


def blame(judged: Judged, *, perfect: float = 1.0) -> dict[str, float]:
    """Stage path -> how much of what went wrong is its own, by the notes; where there are none, by the data's way."""
    return blamed(judged.run, judged.score, perfect=perfect)


def records(
    judged: list[Judged], path: str, *, limit: int = _RECORDS, more: Callable[[Call], Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """What the proposer of a stage is shown: all its calls in all runs, the worst first, within *limit* characters."""
    rows = [
        (-blame_of(call, notes), one.score.value, place, _record(one, call, notes) | dict(more(call) if more else {}))
        for place, one in enumerate(judged)
        for call, notes in calls_of(one.run, path, one.score.notes)
    ]
    rows.sort(key=lambda row: row[:3])
    kept: list[dict[str, Any]] = []
    used = 0
    for *_, record in rows:
        size = sum(len(str(value)) for value in record.values())
        if kept and used + size > limit:
            break
        kept.append(record)
        used += size
    return kept


def _record(judged: Judged, call: Call, notes: list[Note]) -> dict[str, Any]:
    lines = [] if judged.score.notes else verdict_lines(judged.run, judged.score, judged.example.expected)
    lines += lines_about(judged.run, call, notes)
    return {
        "call": call.key,
        "score": judged.score.value,
        "input": shown(call.input, _TEXT),
        "output": cut(answer_of(call), _TEXT),
        "feedback": cut("\n".join(lines), 2 * _TEXT) or "(nothing was said about this call)",
    }
