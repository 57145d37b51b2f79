"""What a benchmark prints: one row a claim, with what was measured and what was promised."""

from __future__ import annotations

import os
import platform
import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path


@dataclass(frozen=True)
class Row:
    """One claim."""

    what: str
    measured: str
    target: str
    ok: bool


async def interleaved(contenders: dict[str, Callable[[], Awaitable[None]]], rounds: int) -> dict[str, float]:
    """The median seconds of each contender; all of them run in every round, so that noise meets all alike."""
    times: dict[str, list[float]] = {name: [] for name in contenders}
    names = list(contenders)
    for number in range(rounds + 1):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            began = time.perf_counter()
            await contenders[name]()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - began)
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
    lines = ["| what | measured | target | |", "| --- | --- | --- | --- |"]
    lines += [f"| {row.what} | {row.measured} | {row.target} | {'ok' if row.ok else '**missed**'} |" for row in rows]
    return "\n".join([*lines, "", machine()])
