"""The tables of a journal file, made from the rows themselves."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container
from dataclasses import MISSING, fields
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from stagegraph.record.rows import CallRow, CancelRow, FeedbackRow, OpRow, Row, RunRow

__all__ = ["APPLICATION_ID", "INDEXES", "SQL_TYPES", "TABLES", "VERSION", "Statement", "row_of", "statement_for"]

APPLICATION_ID = 0x53474A31
"""Marks the file as ours (`SGJ1`)."""
VERSION = 2
"""2 has `cancels`; an older file gets what it lacks when it is opened."""

TABLES: dict[type[Row], tuple[str, tuple[str, ...]]] = {
    RunRow: ("runs", ("run_id",)),
    CallRow: ("calls", ("run_id", "key")),
    OpRow: ("ops", ("run_id", "key", "identity", "op")),
    FeedbackRow: ("feedback", ("id",)),
    CancelRow: ("cancels", ("run_id", "segment")),
}
"""Row type -> table and primary key."""
INDEXES = (
    "CREATE INDEX IF NOT EXISTS runs_started ON runs (started)",
    "CREATE INDEX IF NOT EXISTS feedback_run ON feedback (run_id)",
)
SQL_TYPES = {"int": "INTEGER", "float": "REAL", "bool": "INTEGER"}
_NAMES = {row_type: tuple(field.name for field in fields(row_type)) for row_type in TABLES}

R = TypeVar("R", RunRow, CallRow, OpRow, FeedbackRow, CancelRow)


_DEFAULTS = {
    row_type: {field.name: field.default for field in fields(row_type) if field.default is not MISSING}
    for row_type in TABLES
}
"""What an empty column stands for."""
_OF_STAGES_AND_FAILURES = {"error_type", "error", "usage", "attempts", "messages", "prompt", "pending"}


class Statement(NamedTuple):
    """How rows of one shape are written: in the place of what was there."""

    sql: str
    values: Callable[[Row], tuple[Any, ...]]


def _statement(row_type: type[Row], left_out: Container[str] = ()) -> Statement:
    names = [name for name in _NAMES[row_type] if name not in left_out]
    sql = f"INSERT OR REPLACE INTO {TABLES[row_type][0]} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - our own names
    return Statement(sql, attrgetter(*names))


_STATEMENTS = {row_type: _statement(row_type) for row_type in TABLES}
_PLAIN_CALL = _statement(CallRow, _OF_STAGES_AND_FAILURES)


def statement_for(row: Row) -> Statement:
    """A third of the time to write a row goes into columns that most calls leave empty: for those they are left out."""
    if isinstance(row, CallRow) and row.kind != "stage" and row.error_type is None:
        return _PLAIN_CALL
    return _STATEMENTS[type(row)]


def row_of(row_type: type[R], found: sqlite3.Row) -> R:
    values: dict[str, Any] = {name: found[name] for name in _NAMES[row_type]}
    for name, default in _DEFAULTS[row_type].items():
        if values[name] is None:
            values[name] = default
    if "replayed" in values:
        values["replayed"] = bool(values["replayed"])
    return row_type(**values)
