"""A metric is asked once a run; whatever it returns is a score, or an error."""

import asyncio
import math
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from words import ROWS, Doc, Rated, failing_run, rated

from stagegraph import Example, Run, Score, TuningError, note
from stagegraph.optimize import graded, wants_failed_runs

pytestmark = pytest.mark.anyio

RUN, FAILED = rated("a bc"), failing_run()


async def test_whoever_asks_first_may_be_cancelled() -> None:
    """The others still get their answer: the metric is asked again."""
    entered, times = asyncio.Event(), 0

    async def judge(_example: Example[Any], _run: Run[Any, Any]) -> float:
        nonlocal times
        times += 1
        entered.set()
        if times == 1:
            await asyncio.Event().wait()
        return 1.0

    first = asyncio.ensure_future(graded(judge, ROWS[0], RUN))
    await entered.wait()
    second = asyncio.ensure_future(graded(judge, ROWS[0], RUN))
    await asyncio.wait({second}, timeout=0)
    first.cancel()
    assert await second == Score(1.0)
    assert times == 2


@pytest.mark.parametrize(
    ("value", "score"),
    [
        (True, 1.0),
        (False, 0.0),
        (3, 3.0),
        (0.25, 0.25),
        (Score(0.5), 0.5),
        (Decimal("0.5"), 0.5),
        (Fraction(1, 2), 0.5),
        (np.float32(0.5), 0.5),
        (np.int64(1), 1.0),
        (np.True_, 1.0),
    ],
    ids=repr,
)
async def test_numbers_and_truths_are_scores(value: Any, score: float) -> None:
    """And so are scores."""
    assert (await graded(lambda _example, _run: value, ROWS[0], RUN)).value == score


def raises(_example: Any, _run: Any) -> float:
    raise KeyError("gone")


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (raises, "raised KeyError: 'gone'"),
        (lambda _e, _r: math.nan, "finite"),
        (lambda _e, _r: math.inf, "finite"),
        (lambda _e, _r: None, "did you forget `return`"),
        (lambda _e, _r: "good", "str 'good'; it gives a finite number"),
        (lambda _e, _r: 1j, "complex 1j; it gives a finite number"),
        (lambda _e, _r: Score(1, notes=["text"]), "among its notes"),
        (lambda _e, _r: Score(1, notes=[note("rate.juge", "typo")]), "did you mean `rate.judge`"),
        (lambda _e, _r: Score(1, notes=[note("rate[7].judge", "typo")]), "no call of the run"),
    ],
)
async def test_what_is_no_score_is_an_error(metric: Callable[..., Any], message: str) -> None:
    """It names the metric, the example and the run."""
    with pytest.raises(TuningError, match=message) as caught:
        await graded(metric, ROWS[0], RUN)
    assert ROWS[0].id in str(caught.value)
    assert RUN.id in str(caught.value)


async def test_a_failed_run_scores_nothing_unless_the_metric_wants_it() -> None:
    """A note says why at the call that failed; a metric that wants failed runs sees the partial record."""
    score = await graded(raises, ROWS[0], FAILED)
    assert score.value == 0
    assert [note.target for note in score.notes] == ["rate[1].judge"]
    assert "no idea" in score.notes[0].text

    @wants_failed_runs
    def patient(_example: Example[Doc], run: Run[Doc, Rated]) -> float:
        return 0.1 * sum(call.ok for call in run.calls())

    assert (await graded(patient, ROWS[0], FAILED)).value > 0
