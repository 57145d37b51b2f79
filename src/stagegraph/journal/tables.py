"""The tables of a journal: which row is kept where, and the SQL that writes, makes and reads it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container
from dataclasses import MISSING, fields
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from stagegraph.record.rows import CallRow, CancelRow, FeedbackRow, OpRow, Row, RunRow, check_row

APPLICATION_ID = 0x53474A31
"""Marks the file as a journal (`SGJ1`)."""
VERSION = 4
"""2 has `cancels`, 3 `origin` and `transient` of calls, 4 their `source`, `start_event` and `end_event`, values whole,
and owners that are locks; an older file gets what is missing when it is opened."""

TABLES: dict[type[Row], tuple[str, tuple[str, ...]]] = {
    RunRow: ("runs", ("run_id",)),
    CallRow: ("calls", ("run_id", "key")),
    OpRow: ("ops", ("run_id", "key", "identity", "op")),
    FeedbackRow: ("feedback", ("id",)),
    CancelRow: ("cancels", ("run_id", "segment")),
}
"""Row type -> table and primary key; the fields of a row are the columns."""
_INDEXES = {
    "runs_started": "runs (started)",
    "runs_running": "runs (owner) WHERE status = 'running'",
    "feedback_run": "feedback (run_id)",
}
_SQL_TYPES = {"int": "INTEGER", "Seconds": "REAL", "bool": "INTEGER"}
_NAMES = {row_type: tuple(field.name for field in fields(row_type)) for row_type in TABLES}
_DEFAULTS = {
    row_type: {field.name: field.default for field in fields(row_type) if field.default is not MISSING}
    for row_type in TABLES
}
"""The value of an empty column."""
_FLAGS = {row_type: [field.name for field in fields(row_type) if field.type == "bool"] for row_type in TABLES}
_OF_STAGES_AND_FAILURES = {
    *("error_type", "error", "origin", "transient", "source", "input_whole", "output_whole"),
    *("usage", "attempts", "messages", "prompt", "pending"),
}

R = TypeVar("R", RunRow, CallRow, OpRow, FeedbackRow, CancelRow)


class Statement(NamedTuple):
    """The SQL that writes rows with the same columns, and their values; a row with the same key is replaced."""

    sql: str
    values: Callable[[Row], tuple[Any, ...]]


def _statement(row_type: type[Row], left_out: Container[str] = ()) -> Statement:
    names = [name for name in _NAMES[row_type] if name not in left_out]
    sql = f"INSERT OR REPLACE INTO {TABLES[row_type][0]} ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"  # noqa: S608 - our own names
    return Statement(sql, attrgetter(*names))


_STATEMENTS = {row_type: _statement(row_type) for row_type in TABLES}
_PLAIN_CALL = _statement(CallRow, _OF_STAGES_AND_FAILURES)


def statement_for(row: Row) -> Statement:
    """The statement that writes a row.

    A third of the time to write a row goes into columns that most calls leave empty: those are left out.
    """
    if isinstance(row, CallRow) and row.kind != "stage" and row.error_type is None and row.source is None:
        return _PLAIN_CALL if row.input_whole is None and row.output_whole is None else _STATEMENTS[CallRow]
    return _STATEMENTS[type(row)]


def row_of(row_type: type[R], found: sqlite3.Row) -> R:
    """A row from the columns of its table.

    Raises:
        DamagedError: a journal writes no such row.
    """
    there: dict[str, Any] = dict(zip(found.keys(), found, strict=True))
    values: dict[str, Any] = {name: there.get(name) for name in _NAMES[row_type]}  # others may add columns
    for name, default in _DEFAULTS[row_type].items():
        if values[name] is None:  # also a column that a file of an older version lacks, which is only read
            values[name] = default
    check_row(row_type, values)
    for flag in _FLAGS[row_type]:
        values[flag] = bool(values[flag])
    return row_type(**values)


def missing_in(connection: sqlite3.Connection) -> list[str]:
    """The statements that give a file the tables, columns and indexes that it lacks."""
    there = {row["name"] for row in connection.execute("SELECT name FROM sqlite_schema")}
    statements: list[str] = []
    for row_type, (table, key) in TABLES.items():
        types = {field.name: _SQL_TYPES.get(str(field.type), "TEXT") for field in fields(row_type)}
        if table not in there:
            columns = ", ".join(f"{name} {type_}" for name, type_ in types.items())
            statements.append(f"CREATE TABLE {table} ({columns}, PRIMARY KEY ({', '.join(key)})) WITHOUT ROWID")
            continue
        present = {row["name"] for row in connection.execute(f"PRAGMA table_info({table})")}
        statements += [
            f"ALTER TABLE {table} ADD COLUMN {name} {type_}" for name, type_ in types.items() if name not in present
        ]
    return statements + [f"CREATE INDEX {name} ON {what}" for name, what in _INDEXES.items() if name not in there]


def bring_up_to_date(connection: sqlite3.Connection) -> None:
    """Make the tables of an empty file, or add what a file of an older version lacks; inside a transaction."""
    for statement in missing_in(connection):
        connection.execute(statement)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")
