"""What a person should know about a search besides what it found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from stagegraph.optimize.evaluation.budget import Budget, Spent
    from stagegraph.optimize.evaluation.report import ReportRow

__all__ = ["warnings_of"]


def warnings_of(budget: Budget, spent: Spent, untuned: Mapping[str, str], rows: Sequence[ReportRow]) -> tuple[str, ...]:
    """Plain sentences about what kept a search from doing better, or from costing less.

    *untuned* are the stages without a text to change, with what that would be; *rows* are the best candidate's runs.
    """
    found: list[str] = []
    if budget.usd is not None and spent.unpriced:
        found.append(f"Budget(usd={budget.usd:g}) did not count what has no known price.")
    notes = Counter(
        path for row in rows for path, (*_, weight) in zip(row.stages, row.notes, strict=True) if weight > 0
    )
    for path, kinds in untuned.items():
        if count := notes[path]:
            earned = "1 note" if count == 1 else f"{count} notes"
            found.append(f"`{path}` earned {earned} and was left as it is, since it has no {kinds}.")
    return tuple(found)
