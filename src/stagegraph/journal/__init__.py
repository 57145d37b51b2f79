"""Stored calls: what gives resume, replay, inspection, and the tuner's cache."""

from ._memory import MemoryJournal
from ._rows import CallRow, CancelRow, FeedbackRow, Journal, OpRow, RunFilter, RunRow
from ._sqlite import SqliteJournal

__all__ = [
    "CallRow",
    "CancelRow",
    "FeedbackRow",
    "Journal",
    "MemoryJournal",
    "OpRow",
    "RunFilter",
    "RunRow",
    "SqliteJournal",
]
