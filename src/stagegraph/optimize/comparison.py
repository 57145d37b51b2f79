"""Whether one evaluation is really better than another: paired by example, with an interval and a plain sentence."""

from __future__ import annotations

import html
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any

from stagegraph.errors import TuningError

from ._statistics import bootstrap, needed

if TYPE_CHECKING:
    import os

    from .report import Report, ReportRow

__all__ = ["Comparison", "compare"]

_SMALL = 0.05
"""The difference that is worth looking for when none was seen."""
_SHOWN = 20_000
"""Characters of one value on the page."""
_FEW = 6
"""Below this many pairs even a win in each is no surprise: a sign test of 5 gives p = 0.06."""
_SAME = 1e-9


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
        return len(self.differences) >= _FEW and self.interval[0] > _SAME

    @property
    def worse(self) -> bool:
        """Whether the whole interval lies below 0; fewer than 6 examples cannot show that."""
        return len(self.differences) >= _FEW and self.interval[1] < -_SAME

    @property
    def wins(self) -> int:
        """Examples that got better."""
        return sum(one > _SAME for one in self.differences.values())

    @property
    def losses(self) -> int:
        """Examples that got worse."""
        return sum(one < -_SAME for one in self.differences.values())

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
        return [f"Beware: these are scores {what}, so their difference may mean nothing." for what in found]

    def __str__(self) -> str:
        return " ".join([self._verdict, *self.warnings])

    @property
    def _verdict(self) -> str:
        low, high = self.interval
        count = f"{self.wins} won, {self.losses} lost, {self.ties} the same of {len(self.differences)} examples"
        if len(self.differences) < _FEW:
            number = len(self.differences)
            few = "1 example is" if number == 1 else f"{number} examples are"
            return f"{few} too few to show anything ({self.difference:+.2f}); {count}"
        if self.better:
            return f"better by {low:.2f} to {high:.2f}; {count}"
        if self.worse:
            return f"worse by {-high:.2f} to {-low:.2f}; {count}"
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
        parts = [_example(self.differences[one], old[one], new[one]) for one in changed]
        sentence, graph = html.escape(str(self)), html.escape(self.after.graph)
        page = _PAGE.format(graph=graph, sentence=sentence, table=_table(self.table()), examples="".join(parts))
        Path(path).write_text(page, encoding="utf-8", errors="replace")


def compare(before: Report, after: Report) -> Comparison:
    """Compare two evaluations of the same examples.

    Raises:
        TuningError: they have no example in common.
    """
    if not before.scores.keys() & after.scores.keys():
        msg = "the two reports have no example in common, so they cannot be compared: evaluate the same examples"
        raise TuningError(msg)
    return Comparison(before=before, after=after)


def _first_rows(report: Report) -> dict[str, ReportRow]:
    return {row.example: row for row in reversed(report.rows)}


def _example(change: float, before: ReportRow, after: ReportRow) -> str:
    cells = "".join(
        f"<td><p>{row.score:.3f}</p><pre>{_shown(row.error or row.output)}</pre>"
        + "".join(
            f"<p class=note>{html.escape(target or 'run')}: {html.escape(text)}</p>" for target, text, _ in row.notes
        )
        + "</td>"
        for row in (before, after)
    )
    kind = "won" if change > _SAME else "lost" if change < -_SAME else "same"
    title = f"{html.escape(after.example)} <b class={kind}>{change:+.3f}</b>"
    asked = f"<pre>{_shown(after.input)}</pre><p>expected</p><pre>{_shown(after.expected)}</pre>"
    detail = f"<details><summary>input</summary>{asked}</details>"
    return f"<section><h2>{title}</h2>{detail}<table><tr>{cells}</tr></table></section>"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    more = f"\n... ({len(text)} characters)" if len(text) > _SHOWN else ""
    return html.escape(text[:_SHOWN]) + more


def _table(markdown: str) -> str:
    rows = [
        line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|") and "---" not in line
    ]
    return "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>{graph}: before and after</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}
body {{ max-width: 72rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100%; table-layout: fixed }}
td {{ border: 1px solid #8886; padding: .4rem .6rem; vertical-align: top; overflow-wrap: anywhere }}
pre {{ white-space: pre-wrap; font-size: 13px; margin: 0 }}
section {{ margin: 2rem 0 }} h2 {{ font-size: 1rem }}
.won {{ color: #18794e }} .lost {{ color: #cd2b31 }} .same {{ color: #888 }} .note {{ color: #ad5700; margin: .3rem 0 }}
</style>
<h1>{graph}</h1><p>{sentence}</p><table>{table}</table>{examples}
</html>
"""
