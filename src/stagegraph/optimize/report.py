"""What an evaluation found: scores with their uncertainty, notes by stage, failures, time and money."""

from __future__ import annotations

import json
import math
from collections import Counter
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import fmean, pstdev
from typing import TYPE_CHECKING, Any, Self, cast

from pydantic import TypeAdapter, ValidationError

from stagegraph.schema.errors import TuningError

from ._page import section, write_page
from ._statistics import bootstrap, percentile

if TYPE_CHECKING:
    import os

__all__ = ["Report", "ReportRow"]

FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
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
    """Of each note, the path of the stage or step it is about; empty for the run."""
    objectives: dict[str, float] = field(default_factory=dict[str, float])
    run_id: str
    status: str
    error: str | None = None
    seconds: float
    cost: float | None
    """US dollars; `None` when the price of a request is not known."""
    judging: float | None = 0.0
    """US dollars that the verdict itself cost; `None` when that is not known."""
    requests: int = 0
    tokens: int = 0
    input: Any = None
    output: Any = None
    expected: Any = None


@dataclass(frozen=True, kw_only=True)
class Report:
    """A graph evaluated on examples, each run as often as asked for."""

    graph: str
    metric: str
    prompts_digest: str
    created: str
    rows: tuple[ReportRow, ...]

    @cached_property
    def scores(self) -> dict[str, float]:
        """Example id -> its mean over the repeats, in the order of the examples."""
        found: dict[str, list[float]] = {}
        for row in self.rows:
            found.setdefault(row.example, []).append(row.score)
        return {example: fmean(values) for example, values in found.items()}

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
        groups: dict[str, list[float]] = {}
        for row in self.rows:
            groups.setdefault(row.example, []).append(row.score)
        return fmean([pstdev(values) for values in groups.values()])

    @property
    def notes(self) -> dict[str, int]:
        """Stage path -> how many notes its calls got, the most blamed first; the run's own under an empty path."""
        return dict(Counter(path for row in self.rows for path in row.stages).most_common())

    @property
    def failures(self) -> list[ReportRow]:
        """Runs that ended without an output."""
        return [row for row in self.rows if row.status != "succeeded"]

    @property
    def cost(self) -> float | None:
        """US dollars of all runs; `None` when one of them is not known."""
        costs = [row.cost for row in self.rows]
        return None if None in costs else math.fsum(cost or 0 for cost in costs)

    @property
    def judging(self) -> float | None:
        """US dollars of all verdicts, where a model gave them; `None` when one of them is not known."""
        costs = [row.judging for row in self.rows]
        return None if None in costs else math.fsum(cost or 0 for cost in costs)

    def seconds(self, share: float = 0.5) -> float:
        """The duration that a share of the runs stayed below."""
        return percentile([row.seconds for row in self.rows], share)

    def dollars(self, share: float = 0.5) -> float | None:
        """The cost that a share of the runs stayed below."""
        known = [row.cost for row in self.rows if row.cost is not None]
        return percentile(known, share) if len(known) == len(self.rows) else None

    def table(self) -> str:
        """The report as a Markdown table, which also reads well on a terminal."""
        low, high = self.interval
        lines = [
            ("examples", f"{len(self.scores)}, {len(self.rows)} runs, {len(self.failures)} failed"),
            ("mean score", f"{self.mean:.3f} (95 % between {low:.3f} and {high:.3f})"),
            ("spread over repeats", f"{self.spread:.3f}"),
            (
                "seconds a run",
                f"{self.seconds(0.5):.2f} median, {self.seconds(0.9):.2f} p90, {self.seconds(0.99):.2f} p99",
            ),
            ("cost", self._cost_text()),
            *([] if self.judging == 0 else [("cost of the judge", _dollars(self.judging))]),
            *((f"notes for {path or 'the run'}", str(count)) for path, count in self.notes.items()),
        ]
        head = f"| {self.graph}, {self.metric} | |\n| --- | --- |\n"
        return head + "\n".join(f"| {name} | {value} |" for name, value in lines)

    def _cost_text(self) -> str:
        if self.cost is None:
            return "unknown"
        median, most = self.dollars(0.5), self.dollars(0.9)
        return f"{_dollars(self.cost)} in all, ${median or 0:.5f} median, ${most or 0:.5f} p90"

    def html(self, path: str | os.PathLike[str], *, examples: int = 50) -> None:
        """Write one self-contained page with the examples that scored worst."""
        low, high = self.interval
        sentence = f"{self.metric}: {self.mean:.3f} (95 % between {low:.3f} and {high:.3f}), made {self.created}"
        worst = sorted(self.scores, key=lambda example: self.scores[example])[:examples]
        runs = {example: [row for row in self.rows if row.example == example] for example in worst}
        sections = [section(example, rows) for example, rows in runs.items()]
        write_page(path, title=self.graph, graph=self.graph, sentence=sentence, table=self.table(), sections=sections)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it as JSON."""
        data = {
            "format": FORMAT,
            **{name: getattr(self, name) for name in ("graph", "metric", "prompts_digest", "created")},
        }
        data["rows"] = [asdict(row) for row in self.rows]
        Path(path).write_text(json.dumps(data, ensure_ascii=False, indent=1), encoding="utf-8", errors="replace")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Raises:
            TuningError: it is no report.
        """
        try:
            data = cast("dict[str, Any]", json.loads(Path(path).read_text("utf-8")))
            if data.pop("format") != FORMAT:
                msg = f"{path}: a report in a format that this version does not read"
                raise TuningError(msg)
            rows = TypeAdapter(tuple[ReportRow, ...]).validate_python(data.pop("rows"))
            if not rows:
                msg = f"{path}: this report has no rows, so there is nothing that it could say"
                raise TuningError(msg)
            return cls(rows=rows, **data)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError) as error:
            msg = f"{path}: this is no report of an evaluation: {type(error).__name__}: {str(error).splitlines()[0]}"
            raise TuningError(msg) from error

    def __repr__(self) -> str:
        low, high = self.interval
        return f"<Report of {self.graph}: {self.mean:.3f} ({low:.3f} to {high:.3f}), {len(self.scores)} examples>"


def _dollars(cost: float | None) -> str:
    return "unknown" if cost is None else f"${cost:.4f}"
