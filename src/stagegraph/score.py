"""What a metric says about a run: notes that belong to the call that earned them."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Note", "note"]


@dataclass(frozen=True, slots=True)
class Note:
    """Feedback about one call (`build[2].code`), one stage (`build.code`) or the whole run (empty target)."""

    target: str
    """A call's key, a stage's path, or an empty string for the run."""
    text: str
    weight: float = 1.0
    """How much this note counts beside others; 1.0 is an ordinary one."""


def note(path_or_key: str, text: str, weight: float = 1.0) -> Note:
    """Hang feedback on a stage (`"plan"`) or on one call (`"build[2].code"`)."""
    return Note(path_or_key, text, weight)
