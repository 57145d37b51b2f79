"""Scores of a run, and notes on the calls that they are about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import SupportsFloat

Scored = int | float | bool | str
"""The value of a recorded score: a number, a boolean, a category or a text."""


@dataclass(frozen=True, slots=True)
class Note:
    """Feedback about one call (`build[2].code`), one stage (`build.code`) or the whole run (empty target)."""

    target: str
    """A call's key, a stage's path, or an empty string for the run."""
    text: str
    weight: float = 1.0
    """The weight relative to other notes: 1.0 is normal, 0.0 blames no call."""

    def __post_init__(self) -> None:
        for name, text in (("target", self.target), ("text", self.text)):
            if not isinstance(text, str):  # pyright: ignore[reportUnnecessaryIsInstance]
                msg = f"the {name} of a note is a text, not {text!r}"
                raise TypeError(msg)
        weight = _number(self.weight)
        if weight is None or weight < 0:
            msg = f"the weight of a note is a finite number that is not below 0, not {self.weight!r}"
            raise ValueError(msg)
        object.__setattr__(self, "weight", weight)


@dataclass(frozen=True, slots=True)
class Score:
    """A metric's verdict on one run."""

    value: float
    """More is better; usually from 0 to 1."""
    notes: Sequence[Note] = ()
    """What went wrong (or right), each with its call or stage."""
    objectives: Mapping[str, float] = field(default_factory=dict[str, float])
    """Further values, of which more is better too: `{"cost": -0.02}`."""
    cost: float | None = field(default=0.0, kw_only=True)
    """US dollars of the verdict itself, if a model gave it; `None` if unknown."""
    tokens: int = field(default=0, kw_only=True)
    """Tokens of the verdict itself."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "value", _finite("a score", self.value))
        objectives = {name: _finite(f"objective {name!r}", value) for name, value in self.objectives.items()}
        object.__setattr__(self, "objectives", objectives)
        object.__setattr__(self, "notes", tuple(self.notes))


def _finite(what: str, value: object) -> float:
    number = _number(value)
    if number is None:
        msg = f"{what} is a finite number, not {value!r}"
        raise ValueError(msg)
    return number


def _number(value: object) -> float | None:
    """Anything that converts to a number (NumPy's, a `Decimal`, a `bool`); `None` when it is not finite."""
    if not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # such as an array
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A recorded score of a run, or of one call."""

    name: str
    value: Scored
    key: str | None = None
    """The call; `None` for the whole run."""
    comment: str | None = None
    time: datetime
    """Time zone aware, UTC."""


def note(path_or_key: str, text: str, weight: float = 1.0) -> Note:
    """Feedback on a stage (`"plan"`) or on one call (`"build[2].code"`)."""
    return Note(path_or_key, text, weight)
