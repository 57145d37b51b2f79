"""The tables of a journal: which row is kept where, and the SQL that writes, makes and reads it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Container, Sequence
from dataclasses import MISSING, fields
from operator import attrgetter
from typing import Any, NamedTuple, TypeVar

from stagegraph.record.rows import CallRow, CancelRow, FeedbackRow, OpRow, Row, RunRow, check_row

APPLICATION_ID = 0x53474A31
"""Marks the file as a journal (`SGJ1`)."""
VERSION = 4
"""2 has `cancels`, 3 `origin` and `transient` of calls, 4 their `source`, values whole, and
owners that are locks; an older file gets what is missing when it is opened."""

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
_EMPTY: dict[type[Row], dict[str, Any]] = {
    row_type: {one.name: None if one.default is MISSING else one.default for one in fields(row_type)}
    for row_type in TABLES
}
"""The values of empty columns."""
_OF_STAGES_AND_FAILURES = {
    *("error_type", "error", "origin", "transient", "input_whole", "output_whole"),
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
    if isinstance(row, CallRow) and row.kind != "stage" and row.error_type is row.input_whole is row.output_whole:
        return _PLAIN_CALL  # all three are None
    return _STATEMENTS[type(row)]


def reader(row_type: type[R], cursor: sqlite3.Cursor) -> Callable[[Sequence[Any]], R]:
    """What makes rows of that type from the rows that the cursor finds.

    Raises `DamagedError` for one that a journal does not write.
    """
    empty = _EMPTY[row_type]
    # Others may add columns; a file of an older version, which is only read, lacks some.
    places = [(place, column[0]) for place, column in enumerate(cursor.description) if column[0] in empty]

    def read(found: Sequence[Any]) -> R:
        values = empty.copy()
        for place, name in places:
            if (value := found[place]) is not None:
                values[name] = value
        return check_row(row_type, values)

    return read


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
