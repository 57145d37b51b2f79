"""Stored calls, for resuming, replaying and inspecting runs, and for the cache of tuning."""

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
