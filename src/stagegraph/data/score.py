"""What a metric says about a run: notes that belong to the call that earned them."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import SupportsFloat

__all__ = ["Feedback", "Note", "Score", "Scored", "note"]

Scored = int | float | bool | str
"""What a score may be: a number, a yes or no, a category or a text."""


@dataclass(frozen=True, slots=True)
class Note:
    """Feedback about one call (`build[2].code`), one stage (`build.code`) or the whole run (empty target)."""

    target: str
    """A call's key, a stage's path, or an empty string for the run."""
    text: str
    weight: float = 1.0
    """How much this note counts beside others; 1.0 is an ordinary one, 0.0 blames nobody."""

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
    """What went wrong (or right), each at the call or stage that earned it."""
    objectives: Mapping[str, float] = field(default_factory=dict[str, float])
    """Further things to have more of: `{"cost": -0.02}`."""
    cost: float | None = field(default=0.0, kw_only=True)
    """US dollars that the verdict itself cost, where a model gave it; `None` when that is not known."""
    tokens: int = field(default=0, kw_only=True)
    """Tokens that the verdict itself took."""

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
    """Whatever says that it is a number (NumPy's, a `Decimal`, a `bool`) as one; `None` when it is not finite."""
    if not isinstance(value, SupportsFloat):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError, OverflowError):  # such as an array
        return None
    return number if math.isfinite(number) else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Feedback:
    """A score that somebody gave to a run, or to one call of it."""

    name: str
    value: Scored
    key: str | None = None
    """The call; `None` for the whole run."""
    comment: str | None = None
    time: datetime
    """Time zone aware, UTC."""


def note(path_or_key: str, text: str, weight: float = 1.0) -> Note:
    """Hang feedback on a stage (`"plan"`) or on one call (`"build[2].code"`)."""
    return Note(path_or_key, text, weight)
