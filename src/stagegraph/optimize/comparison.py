"""Whether one evaluation is really better than another: paired by example, with an interval and a plain sentence."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

from stagegraph.schema.errors import TuningError

from ._page import SAME, section, write_page
from ._statistics import bootstrap, needed

if TYPE_CHECKING:
    import os

    from .report import Report, ReportRow

__all__ = ["FEW", "Comparison", "compare"]

_SMALL = 0.05
"""The difference that is worth looking for when none was seen."""
FEW = 6
"""Below this many pairs even a win in each is no surprise: a sign test of 5 gives p = 0.06."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """Two evaluations of the same examples: *after* against *before*."""

    before: Report
    after: Report

    @cached_property
    def differences(self) -> dict[str, float]:
        """Example id -> by how much its mean score changed."""
        old, new = self.before.scores, self.after.scores
        return {example: new[example] - old[example] for example in old if example in new}

    @property
    def difference(self) -> float:
        """The mean change; above 0 is better."""
        return fmean(self.differences.values())

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % bootstrap interval of the mean change."""
        return bootstrap(list(self.differences.values()))

    @property
    def better(self) -> bool:
        """Whether the whole interval lies above 0; fewer than 6 examples cannot show that."""
        return len(self.differences) >= FEW and self.interval[0] > SAME

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies below 0; fewer than 6 examples cannot show that."""
        return len(self.differences) >= FEW and self.interval[1] < -SAME

    @property
    def wins(self) -> int:
        """Examples that got better."""
        return sum(one > SAME for one in self.differences.values())

    @property
    def losses(self) -> int:
        """Examples that got worse."""
        return sum(one < -SAME for one in self.differences.values())

    @property
    def ties(self) -> int:
        """Examples that stayed as they were."""
        return len(self.differences) - self.wins - self.losses

    @property
    def warnings(self) -> list[str]:
        """Why the two may not be comparable, in plain sentences."""
        pairs = (
            ("measured by different metrics", self.before.metric, self.after.metric),
            ("of different graphs", self.before.graph, self.after.graph),
        )
        found = [f"{what} ({old} and {new})" for what, old, new in pairs if old != new]
        told = [f"Beware: these are scores {what}, so their difference may mean nothing." for what in found]
        old, new = self.before.scores.keys(), self.after.scores.keys()
        if old ^ new:
            told.append(f"Left out: {len(old - new)} examples only before, {len(new - old)} only after.")
        if count := self._others:
            which = "1 example has" if count == 1 else f"{count} examples have"
            told.append(f"Beware: {which} another input or another expectation than before, under the same id.")
        return told

    @cached_property
    def _others(self) -> int:
        """Examples that only share their id."""
        old, new = _first_rows(self.before), _first_rows(self.after)
        return sum(_asked(old[example]) != _asked(new[example]) for example in self.differences)

    def __str__(self) -> str:
        return " ".join([self._verdict, *self.warnings])

    @property
    def _verdict(self) -> str:
        low, high = self.interval
        count = f"{self.wins} won, {self.losses} lost, {self.ties} the same of {len(self.differences)} examples"
        if len(self.differences) < FEW:
            number = len(self.differences)
            few = "1 example is" if number == 1 else f"{number} examples are"
            return f"{few} too few to show anything ({self.difference:+.{_digits(self.difference)}f}); {count}"
        digits = _digits(low, high)
        if self.better:
            return f"better by {low:.{digits}f} to {high:.{digits}f}; {count}"
        if self.worse:
            return f"worse by {-high:.{digits}f} to {-low:.{digits}f}; {count}"
        more = needed(list(self.differences.values()), _SMALL) - len(self.differences)
        hint = f"{more} more examples would show {_SMALL}" if more > 0 else f"a difference of {_SMALL} would have shown"
        return f"no difference shown ({low:+.2f} to {high:+.2f}); {hint}; {count}"

    def table(self) -> str:
        """Side by side, as Markdown."""
        pairs = (("before", self.before), ("after", self.after))
        lines = [
            ("mean score", *(f"{one.mean:.3f} ({one.interval[0]:.3f} to {one.interval[1]:.3f})" for _, one in pairs)),
            ("failed runs", *(str(len(one.failures)) for _, one in pairs)),
            ("seconds a run, median", *(f"{one.seconds():.2f}" for _, one in pairs)),
            ("cost", *("unknown" if one.cost is None else f"${one.cost:.4f}" for _, one in pairs)),
        ]
        for path in dict.fromkeys([*self.before.notes, *self.after.notes]):
            name = f"notes for {path or 'the run'}"
            lines.append((name, *(str(one.notes.get(path, 0)) for _, one in pairs)))
        head = f"| {self.after.graph} | before | after |\n| --- | --- | --- |\n"
        return head + "\n".join(f"| {' | '.join(line)} |" for line in lines) + f"\n\n{self}"

    def html(self, path: str | os.PathLike[str], *, examples: int = 50) -> None:
        """Write one self-contained page with the examples that changed most, side by side."""
        old, new = _first_rows(self.before), _first_rows(self.after)
        changed = sorted(self.differences, key=lambda example: -abs(self.differences[example]))[:examples]
        parts = [section(one, [old[one], new[one]], self.differences[one]) for one in changed]
        title = f"{self.after.graph}: before and after"
        write_page(path, title=title, graph=self.after.graph, sentence=str(self), table=self.table(), sections=parts)


def compare(before: Report, after: Report) -> Comparison:
    """Compare two evaluations of the same examples.

    Raises:
        TuningError: they have no example in common.
    """
    if not before.scores.keys() & after.scores.keys():
        msg = "the two reports have no example in common, so they cannot be compared: evaluate the same examples"
        raise TuningError(msg)
    return Comparison(before=before, after=after)


def _digits(*values: float) -> int:
    """How many digits show that something is not nothing: 2, or more for small numbers."""
    least = min((abs(value) for value in values if abs(value) > SAME), default=1.0)
    return max(2, -math.floor(math.log10(least) + 1e-6))


def _asked(row: ReportRow) -> str:
    return json.dumps([row.input, row.expected], sort_keys=True)


def _first_rows(report: Report) -> dict[str, ReportRow]:
    return {row.example: row for row in reversed(report.rows)}
