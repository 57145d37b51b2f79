"""What an evaluation found: scores with their uncertainty, notes by stage, failures, time and money."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, Self

from pydantic import TypeAdapter
from pydantic_core import to_jsonable_python

from stagegraph.data.files import read_regular
from stagegraph.draw import html
from stagegraph.draw.html import Html, element
from stagegraph.schema.errors import TuningError

from .blame import blame, stage_of
from .statistics import SAME, bootstrap, percentile

if TYPE_CHECKING:
    import os

    from stagegraph.data.examples import Example
    from stagegraph.data.prompts import Prompts
    from stagegraph.data.score import Score
    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run

FORMAT = 1

_SHOWN = 200
"""Characters of an output that are printed of a row."""

Table = Sequence[Sequence[str]]
"""Rows of cells; the first row is the head."""


@dataclass(frozen=True, slots=True, kw_only=True, repr=False)
class ReportRow:
    """One run of one example."""

    example: str
    """The example's id."""
    repeat: int
    """From 0."""
    score: float
    notes: tuple[tuple[str, str, float], ...] = ()
    """Call key or stage path, text, weight."""
    stages: tuple[str, ...] = ()
    """Of each note, the path of the stage or step that it is about; empty for the run."""
    objectives: dict[str, float] = field(default_factory=dict[str, float])
    run_id: str
    status: str
    error: str | None = None
    seconds: float
    cost: float | None
    """US dollars; `None` when the price of a request is not known."""
    judging: float | None = 0.0
    """US dollars that the score itself cost; `None` when that is not known."""
    requests: int = 0
    tokens: int = 0
    input: Any = None
    output: Any = None
    expected: Any = None

    def __repr__(self) -> str:
        notes, output = f"{len(self.notes)} notes, {self.status}", repr(self.output)[:_SHOWN]
        return f"<ReportRow {self.example!r}: {self.score:.3f}, {notes}; output {output}>"


@dataclass(frozen=True, kw_only=True)
class Report:
    """A graph evaluated on examples, each run as often as asked for."""

    graph: str
    metric: str
    prompts_digest: str
    created: str
    rows: tuple[ReportRow, ...]

    @cached_property
    def by_example(self) -> dict[str, list[ReportRow]]:
        """Example id -> its runs, in the order of the examples."""
        found: dict[str, list[ReportRow]] = {}
        for row in self.rows:
            found.setdefault(row.example, []).append(row)
        return found

    @cached_property
    def scores(self) -> dict[str, float]:
        """Example id -> its mean over the repeats, in the order of the examples."""
        return {example: fmean(row.score for row in rows) for example, rows in self.by_example.items()}

    @property
    def mean(self) -> float:
        """Over the examples."""
        return fmean(self.scores.values())

    @cached_property
    def interval(self) -> tuple[float, float]:
        """The 95 % bootstrap interval of the mean, over examples: repeats of one example say little about others."""
        return bootstrap(list(self.scores.values()))

    @property
    def spread(self) -> float:
        """How much an example's score varies from repeat to repeat: the standard deviation, averaged over examples."""
        return fmean(pstdev(row.score for row in rows) for rows in self.by_example.values())

    @property
    def notes(self) -> dict[str, int]:
        """Stage path -> the number of notes on its calls, the largest first; notes on the run have an empty path."""
        return dict(Counter(path for row in self.rows for path in row.stages).most_common())

    @property
    def failures(self) -> list[ReportRow]:
        """Runs that ended without an output."""
        return [row for row in self.rows if row.status != "succeeded"]

    @property
    def cost(self) -> float | None:
        """US dollars of all runs; `None` when the cost of one is not known."""
        return _total(row.cost for row in self.rows)

    @property
    def judging(self) -> float | None:
        """US dollars of all scores that a model gave; `None` when the cost of one is not known."""
        return _total(row.judging for row in self.rows)

    def seconds(self, share: float = 0.5) -> float:
        """The duration that a share of the runs stayed below."""
        return percentile([row.seconds for row in self.rows], share)

    def dollars(self, share: float = 0.5) -> float | None:
        """The cost that a share of the runs stayed below."""
        known = [row.cost for row in self.rows if row.cost is not None]
        return percentile(known, share) if len(known) == len(self.rows) else None

    def table(self) -> str:
        """The report as a Markdown table."""
        return markdown(self._table())

    def _table(self) -> list[tuple[str, str]]:
        low, high = self.interval
        cost = dollars_text(self.cost)
        if self.cost is not None:
            cost += f" in all, ${self.dollars(0.5) or 0:.5f} median, ${self.dollars(0.9) or 0:.5f} p90"
        times = ", ".join(f"{self.seconds(p):.2f} {name}" for p, name in ((0.5, "median"), (0.9, "p90"), (0.99, "p99")))
        return [
            (f"{self.graph}, {self.metric}", ""),
            ("examples", f"{len(self.scores)}, {len(self.rows)} runs, {len(self.failures)} failed"),
            ("mean score", f"{self.mean:.3f} (95 % between {low:.3f} and {high:.3f})"),
            ("spread over repeats", f"{self.spread:.3f}"),
            ("seconds a run", times),
            ("cost", cost),
            *([] if self.judging == 0 else [("cost of the judge", dollars_text(self.judging))]),
            *((f"notes for {path or 'the run'}", str(count)) for path, count in self.notes.items()),
        ]

    def html(self, path: str | os.PathLike[str], *, examples: int = 50) -> None:
        """Write one self-contained page with the examples that scored worst."""
        low, high = self.interval
        sentence = f"{self.metric}: {self.mean:.3f} (95 % between {low:.3f} and {high:.3f}), made {self.created}"
        worst = sorted(self.scores, key=lambda example: self.scores[example])[:examples]
        write_page(path, self.graph, sentence, self._table(), [section(self.by_example[one]) for one in worst])

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        data = {"format": FORMAT, **asdict(self)}
        Path(path).write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8", errors="replace")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            TuningError: it is no report.
        """
        try:
            data = json.loads(read_regular(path))
            if data.pop("format") != FORMAT:
                msg = f"{path}: a report in a format that this version does not read"
                raise TuningError(msg)
            report = TypeAdapter(cls).validate_python(data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            msg = f"{path}: this is no report of an evaluation: {type(error).__name__}: {str(error).splitlines()[0]}"
            raise TuningError(msg) from error
        if not report.rows:
            msg = f"{path}: this report has no rows, so there is nothing to compare or to show"
            raise TuningError(msg)
        return report

    def __repr__(self) -> str:
        low, high = self.interval
        return f"<Report of {self.graph}: {self.mean:.3f} ({low:.3f} to {high:.3f}), {len(self.scores)} examples>"


def report_of(graph: Node[Any, Any], metric: str, prompts: Prompts | None, rows: Iterable[ReportRow]) -> Report:
    """Rows as a report of now."""
    return Report(
        graph=graph.__node__.name,
        metric=metric,
        prompts_digest=prompts.digest if prompts is not None else "",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        rows=tuple(rows),
    )


def markdown(table: Table) -> str:
    """A table as Markdown, which also reads well on a terminal."""
    rows = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows)


def write_page(
    path: str | os.PathLike[str], graph: str, sentence: str, table: Table, sections: Iterable[Html], *, kind: str = ""
) -> None:
    """Write a self-contained page: a sentence, a table, and the examples. A new file is readable by its owner alone."""
    body = (element("h1", graph), element("p", sentence), html.table(table), *sections)
    html.write_page(path, html.document(graph + kind, *body, style=html.asset("stagegraph.draw", "report.css")))


def section(rows: Sequence[ReportRow], change: float | None = None) -> Html:
    """One example on the page: its runs side by side, and the change of its score, if it was evaluated twice."""
    title = [rows[-1].example]
    if change is not None:
        kind = "won" if change > SAME else "lost" if change < -SAME else "same"
        title += [" ", element("b", f"{change:+.3f}", class_=kind)]
    asked = (html.pretty(rows[-1].input), element("p", "expected"), html.pretty(rows[-1].expected))
    details = element("details", element("summary", "input"), *asked)
    return element("section", element("h2", *title), details, element("table", element("tr", *map(_cell, rows))))


def _cell(row: ReportRow) -> Html:
    notes = [element("p", f"{target or 'run'}: {text}", class_="note") for target, text, _ in row.notes]
    return element("td", element("p", f"{row.score:.3f}"), html.pretty(row.error or row.output), *notes)


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of an example with its score."""

    example: Example[Any]
    run: Run[Any, Any]
    score: Score
    repeat: int = 0

    def blame(self, perfect: float) -> dict[str, float]:
        """Stage path -> how much of what went wrong it caused; *perfect* is the score that cannot be improved."""
        return blame(self.run, self.score, perfect=perfect)

    @property
    def row(self) -> ReportRow:
        """It as a row of a report."""
        run, score = self.run, self.score
        return ReportRow(
            example=self.example.id,
            repeat=self.repeat,
            score=score.value,
            notes=tuple((note.target, note.text, note.weight) for note in score.notes),
            stages=tuple(stage_of(run, note.target) for note in score.notes),
            objectives=dict(score.objectives),
            run_id=run.id,
            status=run.status,
            error=str(run.error) if run.error is not None else None,
            seconds=run.duration,
            cost=None if run.cost is None else float(run.cost),
            judging=score.cost,
            requests=run.usage.requests,
            tokens=run.usage.total_tokens,
            input=_plain(run.input),
            output=_plain(run.output),
            expected=_plain(self.example.expected),
        )


def blame_in(trials: Iterable[Trial], perfect: float) -> dict[str, float]:
    """Stage path -> its blame in all of the runs."""
    total: dict[str, float] = {}
    for trial in trials:
        for path, weight in trial.blame(perfect).items():
            total[path] = total.get(path, 0.0) + weight
    return total


def _plain(value: object) -> Any:
    """A value as JSON data, or its `repr`."""
    try:
        return to_jsonable_python(value, fallback=repr)
    except ValueError:  # such as bytes that are no text
        return repr(value)


def _total(costs: Iterable[float | None]) -> float | None:
    known = list(costs)
    return None if None in known else math.fsum(cost or 0 for cost in known)


def dollars_text(cost: float | None) -> str:
    """Money, if it is known."""
    return "unknown" if cost is None else f"${cost:.4f}"
