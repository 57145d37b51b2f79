"""What a search finds: candidates with their scores, which is the best, and what it cost."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stagegraph.optimize.evaluation.shown import cut

if TYPE_CHECKING:
    from stagegraph.data.prompts import Prompts
    from stagegraph.optimize.evaluation.budget import Budget, Spent
    from stagegraph.optimize.evaluation.report import ReportRow
    from stagegraph.schema.errors import TuningError


_SHOWN = 12
"""Texts and blamed stages that are printed of a candidate."""
_LINE = 90
"""Characters of one of the texts."""


@dataclass(frozen=True, slots=True, repr=False)
class Candidate:
    """Texts that were run on the whole validation set."""

    texts: dict[str, str]
    """Component (`plan`, `plan:tool:search`, `plan:field:title`) -> text."""
    parents: tuple[int, ...]
    """The candidates that it was made from: none for the seed, two for a merge."""
    rows: list[ReportRow]
    """Its runs, one per validation example, in their order."""
    objectives: list[dict[str, float]]
    """Per validation example: the score, the metric's own objectives, and `blame:<path>`; higher is better."""
    blame: dict[str, float]
    """Stage path -> its share of what went wrong."""
    calls: dict[str, float]
    """Stage path -> calls per run."""

    def __repr__(self) -> str:
        size = f"{len(self.rows)} examples" if len(self.rows) > 1 else "1 example"
        origin = f"made from {' and '.join(map(str, self.parents))}" if self.parents else "the start"
        return f"<Candidate ({origin}): {self.mean:.3f} on {size}>"

    def __str__(self) -> str:
        """Its score, what it was made from, the most blamed stages and the beginning of each text."""
        lines = [repr(self)]
        blamed = sorted(((one, path) for path, one in self.blame.items() if one > 0), reverse=True)[:_SHOWN]
        if blamed:
            lines.append(f"blamed: {', '.join(f'{path} {one:.2f}' for one, path in blamed)}")
        lines += [f"{name}: {cut(' '.join(text.split()), _LINE)}" for name, text in [*self.texts.items()][:_SHOWN]]
        if len(self.texts) > _SHOWN:
            lines.append(f"and {len(self.texts) - _SHOWN} more texts")
        return "\n".join(lines)

    @property
    def scores(self) -> list[float]:
        """Per validation example."""
        return [row.score for row in self.rows]

    @property
    def mean(self) -> float:
        """The mean score."""
        return fmean(self.scores)

    def data(self, changes: dict[str, str]) -> dict[str, Any]:
        """It as plain data; *changes* are the texts that its parent does not have."""
        examples = [row.example for row in self.rows]
        return {
            "parents": self.parents,
            "changes": changes,
            "texts": self.texts,
            "mean": self.mean,
            "scores": dict(zip(examples, self.scores, strict=True)),
            "objectives": dict(zip(examples, self.objectives, strict=True)),
            "blame": self.blame,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchResult:
    """What a search found."""

    seed: Prompts
    candidates: tuple[Candidate, ...] = field(repr=False)
    """The first is the seed."""
    best: int
    """The index of the best candidate."""
    stopped: str
    """Why the search ended."""
    error: TuningError | None
    spent: Spent
    prompts: Prompts
    """The best candidate, ready to deploy."""
    warnings: tuple[str, ...] = ()
    """What limited the search, in full sentences."""

    def changes(self, candidate: int) -> dict[str, str]:
        """The texts of a candidate that differ from its (first) parent's, by component."""
        own = self.candidates[candidate]
        before = self.candidates[own.parents[0]].texts if own.parents else own.texts
        return {name: text for name, text in own.texts.items() if before[name] != text}

    @property
    def changed(self) -> tuple[str, ...]:
        """The components whose text differs between the seed and the best candidate."""
        before, after = self.candidates[0].texts, self.candidates[self.best].texts
        return tuple(name for name, text in after.items() if before[name] != text)

    def data(self) -> dict[str, Any]:
        """It as plain data, for a JSON file."""
        spent = ("runs", "requests", "proposals", "tokens", "usd", "unpriced")
        return {
            "stopped": self.stopped,
            "warnings": self.warnings,
            "best": self.best,
            "changed": self.changed,
            "spent": {name: getattr(self.spent, name) for name in spent},
            "candidates": [one.data(self.changes(place)) for place, one in enumerate(self.candidates)],
        }


def warnings_of(budget: Budget, spent: Spent, untuned: Mapping[str, str], rows: Sequence[ReportRow]) -> tuple[str, ...]:
    """What limited a search, in full sentences.

    *untuned* has the stages without a text to change, each with the missing kinds; *rows* are the best candidate's.
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
