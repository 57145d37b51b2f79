"""What a metric may say: any number, and notes that say something."""

import math
from decimal import Decimal
from fractions import Fraction
from typing import Any

import numpy as np
import pytest

from stagegraph import Note, Score, note


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), Decimal("0.5"), Fraction(1, 2), np.array(0.5)])
def test_every_number_is_a_score(number: Any) -> None:
    """It is kept as a float, in objectives and weights, too."""
    found = Score(number, [note("a", "b", number)], {"cost": number})
    assert (found.value, found.objectives["cost"], found.notes[0].weight) == (0.5, 0.5, 0.5)
    assert {type(found.value), type(found.objectives["cost"]), type(found.notes[0].weight)} == {float}


def test_truths_are_scores() -> None:
    """Also those of NumPy."""
    assert [Score(one).value for one in (True, np.True_, np.int64(1), np.False_)] == [1, 1, 1, 0]  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [None, "0.5", math.nan, math.inf, 1j, Decimal("NaN"), np.array([1, 2]), [1]])
def test_what_is_no_finite_number_is_no_score(value: Any) -> None:
    """Neither as the value nor as an objective, which is named."""
    with pytest.raises(ValueError, match="a score is a finite number, not "):
        Score(value)
    with pytest.raises(ValueError, match="objective 'cost' is a finite number, not "):
        Score(1, objectives={"cost": value})


@pytest.mark.parametrize("weight", [-1, math.nan, math.inf, None, "1"])
def test_a_note_has_a_weight_that_counts(weight: Any) -> None:
    """A negative one would be praise that blames others."""
    with pytest.raises(ValueError, match="the weight of a note is a finite number that is not below 0"):
        Note("plan", "too long", weight)
    assert note("plan", "fine", 0).weight == 0


def test_a_note_is_text() -> None:
    """What it says, and where."""
    with pytest.raises(TypeError, match="the text of a note is a text, not None"):
        note("plan", None)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="the target of a note is a text, not 3"):
        Note(3, "x")  # type: ignore[arg-type]
