"""What a benchmark prints: one row a claim, with what was measured, what was promised, and what the README says."""

from __future__ import annotations

import gc
import os
import platform
import re
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

README = Path(__file__).parents[2] / "README.md"
YARDSTICK = "the machine: a bare await that makes a model"
"""The row by which times that were measured on another machine are scaled."""
WORSE = 1.25


@dataclass(frozen=True)
class Row:
    """One claim; a time is better when it is smaller, and so is a ratio unless *more* is better."""

    what: str
    value: float
    unit: str
    target: float | None
    """The promise, in the same unit; `None` for what is only reported."""
    note: str = ""
    more: bool = False

    @property
    def ok(self) -> bool:
        """Whether the promise is kept."""
        if self.target is None:
            return True
        return self.value >= self.target if self.more else self.value <= self.target

    def __str__(self) -> str:
        note = f" ({self.note})" if self.note else ""
        promised = "" if self.target is None else f"{self.target:g} {self.unit}"
        sign = "" if self.target is None else "ok" if self.ok else "**missed**"
        return f"| {self.what} | {_figure(self.value)} {self.unit}{note} | {promised} | {sign} |"


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


async def interleaved(
    contenders: dict[str, Callable[[], Awaitable[object]]],
    rounds: int,
    *,
    cold: bool = False,
    clock: Callable[[], float] = time.process_time,
) -> dict[str, float]:
    """The median seconds of each contender, of CPU unless another *clock* is given; all run in every round.

    A *cold* run follows a garbage collection, which leaves little of it in the caches of the processor.
    """
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            if cold:
                gc.collect()
            began = clock()
            await contenders[name]()
            if number:  # the first round warms up
                times[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in times.items()}


def machine() -> str:
    """Where and when this was measured."""
    cpu = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines()
            if line.startswith("model name")
        ),
        platform.processor(),
    )
    packages = ", ".join(
        f"{name} {version(name)}" for name in ("pydantic-ai-slim", "pydantic-graph", "langgraph", "dbos")
    )
    day = datetime.now(UTC).strftime("%Y-%m-%d")
    python = ".".join(map(str, sys.version_info[:3]))
    return f"{day}, {os.cpu_count()} cores ({cpu}), Python {python}, {packages}, load {os.getloadavg()[0]:.1f}"


def printed(rows: list[Row]) -> str:
    """The table as Markdown, which also reads well on a terminal."""
    return "\n".join(["| what | measured | target | |", "| --- | --- | --- | --- |", *map(str, rows), "", machine()])


def worse(rows: list[Row]) -> list[str]:
    """What got worse by more than a quarter since the README was written, as ratios.

    Times are scaled by the yardstick, since that table may come from another machine.
    """
    before = {
        what.strip(): float(figure)
        for what, figure in re.findall(r"^\| ([^|]+) \| (\d+(?:\.\d+)?) ", README.read_text("utf-8"), re.MULTILINE)
    }
    here = next((row.value for row in rows if row.what == YARDSTICK), 0.0)
    scale = here / before[YARDSTICK] if here and YARDSTICK in before else 1.0
    found: list[str] = []
    for row in rows:
        if row.what == YARDSTICK or not before.get(row.what) or not row.value:
            continue
        if row.more:
            ratio = before[row.what] / row.value
        else:
            ratio = row.value / before[row.what] / (scale if row.unit in {"us", "ms", "s"} else 1.0)
        if ratio > WORSE:
            found.append(f"{row.what}: {ratio:.2f} x worse than in the README")
    return found
