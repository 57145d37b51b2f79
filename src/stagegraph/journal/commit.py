"""Rows into the tables, in one transaction; a row that can never be written does not keep the others out."""

from __future__ import annotations

import sqlite3
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from itertools import groupby
from typing import Any

from stagegraph.record.rows import Row
from stagegraph.schema.serialize import escaped

from .tables import statement_for

__all__ = ["Committed", "commit", "encodable", "transaction", "write_one"]

_OF_A_ROW = (sqlite3.DataError, sqlite3.IntegrityError, sqlite3.ProgrammingError, sqlite3.NotSupportedError)

Values = tuple[Any, ...]


@dataclass(slots=True)
class Committed:
    """What became of some rows."""

    size: int = 0
    """Characters of text that were written."""
    refused: dict[int, str] = field(default_factory=dict[int, str])
    """The place of each row that can never be written, among those that were handed in -> why."""


def _is_of_file(error: Exception) -> bool:
    """Whether the file is at fault (full, locked, read-only, damaged), so that another try may succeed."""
    return isinstance(error, (sqlite3.DatabaseError, OSError)) and not isinstance(error, _OF_A_ROW)


def commit(connection: sqlite3.Connection, rows: list[Row]) -> Committed:
    """Write rows together.

    Raises:
        sqlite3.Error: the file is at fault; nothing was written.
    """
    if not rows:
        return Committed()
    try:
        with transaction(connection):
            return Committed(_write_alike(connection, rows))
    except Exception as error:
        if _is_of_file(error):
            raise
    with transaction(connection):
        return _write_each(connection, rows)


@contextmanager
def transaction(connection: sqlite3.Connection) -> Generator[None]:
    """All that is done inside, or nothing."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def write_one(connection: sqlite3.Connection, row: Row) -> int:
    """Write one row; gives its size."""
    statement = statement_for(row)
    values = encodable(statement.values(row))
    connection.execute(statement.sql, values)
    return _size([values])


def encodable(values: Values) -> Values:
    """Values without half a surrogate pair, as broken JSON may hold it: SQLite takes no such text."""
    return tuple(escaped(value) if isinstance(value, str) else value for value in values)


def _write_alike(connection: sqlite3.Connection, rows: list[Row]) -> int:
    size = 0
    for statement, alike in groupby(rows, key=statement_for):
        values = [statement.values(row) for row in alike]
        connection.executemany(statement.sql, values)
        size += _size(values)
    return size


def _write_each(connection: sqlite3.Connection, rows: list[Row]) -> Committed:
    done = Committed()
    for place, row in enumerate(rows):
        try:
            done.size += write_one(connection, row)
        except Exception as error:
            if _is_of_file(error):
                raise
            done.refused[place] = _why(connection, row, error)
    return done


def _size(rows: Iterable[Values]) -> int:
    return sum(len(value) for row in rows for value in row if isinstance(value, str))


def _why(connection: sqlite3.Connection, row: Row, error: Exception) -> str:
    """Which value it was, as far as that can be told."""
    for one in fields(row):
        try:
            connection.execute("SELECT ?", encodable((getattr(row, one.name),)))
        except Exception as refusal:  # noqa: BLE001 - it only says which value it was
            return f"its `{one.name}` is nothing that a journal can hold ({refusal})"
    return str(error)
