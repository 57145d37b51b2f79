"""Statistics of a few numbers: bootstrap intervals, percentiles, and the size of a data set."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from statistics import fmean, stdev

SAME = 1e-9
"""Differences of scores up to this one count as none."""

_RESAMPLES = 4_000
_95 = 1.959964
"""Standard deviations on either side that hold 95 % of a normal distribution."""
_80 = 0.841621
"""The same for a power of 80 %."""


def bootstrap(values: Sequence[float], *, seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a mean by the percentile bootstrap (Efron 1979); of one value, that value twice."""
    if len(values) < 2 or len(set(values)) == 1:  # noqa: PLR2004
        return (fmean(values), fmean(values)) if values else (math.nan, math.nan)
    rng = random.Random(seed)  # noqa: S311 - nothing secret
    size = len(values)
    means = sorted(fmean(rng.choices(values, k=size)) for _ in range(_RESAMPLES))
    return means[int(0.025 * _RESAMPLES)], means[int(0.975 * _RESAMPLES) - 1]


def needed(differences: Sequence[float], effect: float) -> int:
    """The number of examples that would show a paired difference of *effect*, four times in five."""
    if len(differences) < 2 or effect <= 0:  # noqa: PLR2004
        return 0
    return math.ceil(((_95 + _80) * stdev(differences) / effect) ** 2)


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which a share of them lies (nearest rank)."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, math.ceil(share * len(ordered)) - 1))] if ordered else math.nan
