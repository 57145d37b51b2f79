"""Stored calls, for resuming, replaying and inspecting runs, and for the cache of tuning."""

from stagegraph.record.rows import CallRow, CancelRow, FeedbackRow, Journal, OpRow, RunFilter, RunRow
from stagegraph.schema.docs import document as _document

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

_document([CallRow, CancelRow, FeedbackRow, OpRow, RunFilter, RunRow])
