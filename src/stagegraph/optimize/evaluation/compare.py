"""Whether one evaluation is better than another: paired by example, with an interval and a sentence."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import TYPE_CHECKING

from stagegraph.schema.errors import TuningError

from .report import Report, dollars_text, markdown, section, write_page
from .statistics import SAME, bootstrap, needed

if TYPE_CHECKING:
    import os

_SMALL = 0.05
"""A difference that is worth finding."""
FEW = 6
"""With fewer pairs not even a win in each is significant: a sign test of 5 gives p = 0.06."""


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
        before, after = self.before, self.after
        pairs = (
            ("measured by different metrics", before.metric, after.metric),
            ("of different graphs", before.graph, after.graph),
        )
        found = [
            f"Beware: these are scores {what} ({old} and {new}), so their difference may mean nothing."
            for what, old, new in pairs
            if old != new
        ]
        if before.scores.keys() ^ after.scores.keys():
            left, right = (len(one.scores) - len(self.differences) for one in (before, after))
            found.append(f"Left out: {left} examples only before, {right} only after.")
        if others := sum(_asked(before, example) != _asked(after, example) for example in self.differences):
            which = "1 example has" if others == 1 else f"{others} examples have"
            found.append(f"Beware: {which} another input or another expectation than before, under the same id.")
        return found

    def __str__(self) -> str:
        return " ".join([self._verdict, *self.warnings])

    @property
    def _verdict(self) -> str:
        (low, high), number = self.interval, len(self.differences)
        count = f"{self.wins} won, {self.losses} lost, {self.ties} the same of {number} examples"
        if number < FEW:
            few = "1 example is" if number == 1 else f"{number} examples are"
            return f"{few} too few to show anything ({self.difference:+.{_digits(self.difference)}f}); {count}"
        digits = _digits(low, high)
        if self.better:
            return f"better by {low:.{digits}f} to {high:.{digits}f}; {count}"
        if self.worse:
            return f"worse by {-high:.{digits}f} to {-low:.{digits}f}; {count}"
        more = needed(list(self.differences.values()), _SMALL) - number
        hint = f"{more} more examples would show {_SMALL}" if more > 0 else f"a difference of {_SMALL} would have shown"
        return f"no difference shown ({low:+.2f} to {high:+.2f}); {hint}; {count}"

    def table(self) -> str:
        """Both reports side by side, as Markdown."""
        return f"{markdown(self._table())}\n\n{self}"

    def _table(self) -> list[tuple[str, ...]]:
        both = (self.before, self.after)
        paths = dict.fromkeys([*self.before.notes, *self.after.notes])
        return [
            (self.after.graph, "before", "after"),
            ("mean score", *(f"{one.mean:.3f} ({one.interval[0]:.3f} to {one.interval[1]:.3f})" for one in both)),
            ("failed runs", *(str(len(one.failures)) for one in both)),
            ("seconds a run, median", *(f"{one.seconds():.2f}" for one in both)),
            ("cost", *(dollars_text(one.cost) for one in both)),
            *((f"notes for {path or 'the run'}", *(str(one.notes.get(path, 0)) for one in both)) for path in paths),
        ]

    def html(self, path: str | os.PathLike[str], *, examples: int = 50) -> None:
        """Write one self-contained page with the examples that changed most, side by side."""
        both = (self.before, self.after)
        changed = sorted(self.differences.items(), key=lambda item: -abs(item[1]))[:examples]
        sections = [section([report.by_example[one][0] for report in both], change) for one, change in changed]
        write_page(path, self.after.graph, str(self), self._table(), sections, kind=": before and after")


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
    """The decimals that show that the values are not 0: 2, or more for small ones."""
    least = min((abs(value) for value in values if abs(value) > SAME), default=1.0)
    return max(2, -math.floor(math.log10(least) + 1e-6))


def _asked(report: Report, example: str) -> str:
    row = report.by_example[example][0]
    return json.dumps([row.input, row.expected], sort_keys=True)
