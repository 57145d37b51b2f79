"""Stored calls: what gives resume, replay, inspection, and the tuner's cache."""

from stagegraph.record.rows import CallRow, CancelRow, FeedbackRow, Journal, OpRow, RunFilter, RunRow

from .memory import MemoryJournal
from .sqlite import SqliteJournal

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
