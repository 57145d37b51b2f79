"""Runs whose process is gone: which they are, how often that may happen, and how they are finished or given up."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from dataclasses import replace
from typing import Protocol

from stagegraph.data.call import Status
from stagegraph.journal.owner import is_alive, this_process
from stagegraph.record.rows import Journal, RunFilter, RunRow
from stagegraph.schema.errors import JournalError, StagegraphError

__all__ = ["GIVEN_UP", "DepsOf", "TakesUp", "counted", "finish_interrupted", "give_up", "is_interrupted", "segment_of"]

_log = logging.getLogger("stagegraph")

GIVEN_UP = "GivenUp"
"""The error type of a run that is not taken up any more."""
_AT_ONCE = 8
"""How many interrupted runs are taken up at the same time."""
_MANY = 1_000_000

DepsOf = Callable[[RunRow], Awaitable[object]]
"""From what is recorded of an interrupted run to the deps that it goes on with."""


class TakesUp(Protocol):
    """A runner, as far as this file knows it."""

    journal: Journal | None

    def take_up(self, row: RunRow) -> Coroutine[None, None, object] | None:
        """Finish an interrupted run, if its graph is known here."""
        ...


def is_interrupted(row: RunRow) -> bool:
    """Whether a run should go on and nobody runs it: its process is gone."""
    return row.status == "running" and (row.owner is None or not is_alive(row.owner))


def segment_of(row: RunRow) -> int:
    """How often a run was resumed."""
    return len(json.loads(row.labels).get("resumed", ()))


def counted(row: RunRow) -> RunRow:
    """The row of a run that is taken up now, with how often it was, and how often its process died in the middle."""
    labels = json.loads(row.labels)
    labels["resumed"] = [*labels.get("resumed", ()), time.time()]
    if row.status == "running" and row.owner is not None:  # who shuts down in order lets go of its runs
        labels["crashes"] = labels.get("crashes", 0) + 1
    return replace(row, labels=json.dumps(labels, ensure_ascii=False))


async def give_up(journal: Journal, row: RunRow, status: Status, why: str | None = None) -> RunRow:
    """End a run that nobody runs.

    Raises:
        JournalError: somebody has taken it up meanwhile.
    """
    mine = counted(row)
    await journal.claim(replace(mine, status="running", owner=this_process()), fresh=False)
    ended = replace(
        mine,
        status=status,
        owner=None,
        duration=time.time() - row.started,
        error_type=GIVEN_UP if why else None,
        error=why,
    )
    await journal.put(ended)
    return ended


async def finish_interrupted(runner: TakesUp, attempts: int) -> None:
    """Finish the runs that a crash or a shutdown interrupted, some at a time; another process may be at it as well.

    A run whose process has died more often than *attempts* times is given up: it may be what kills it.
    """
    journal = runner.journal
    if journal is None or attempts == 0:
        return
    rows = await journal.runs(RunFilter(status="running", limit=_MANY))
    waiting = iter([row for row in reversed(rows) if is_interrupted(row)])
    async with asyncio.TaskGroup() as group:
        for _ in range(_AT_ONCE):
            group.create_task(_take_up(runner, journal, waiting, attempts))


async def _take_up(runner: TakesUp, journal: Journal, rows: Iterable[RunRow], attempts: int) -> None:
    for row in rows:
        try:
            crashes = json.loads(counted(row).labels).get("crashes", 0)
            if crashes > attempts:
                await _leave(journal, row, crashes)
            elif (finishing := runner.take_up(row)) is not None:
                await finishing
            else:
                _log.warning(
                    "run %s of %s was interrupted, and nothing here can take it up: make its graph known with "
                    "`runner.add(graph)` or `router(graph, runner)`, before the runner's lifespan begins",
                    row.run_id,
                    row.graph,
                )
        except JournalError as error:
            _log.info("run %s was not taken up: %s", row.run_id, error)  # another process was first
        except StagegraphError as error:
            _log.warning("run %s was taken up and ended with %s", row.run_id, type(error).__name__)
        except Exception as error:  # noqa: BLE001 - the next one may do better
            _log.warning("run %s could not be taken up: %s", row.run_id, type(error).__name__)


async def _leave(journal: Journal, row: RunRow, crashes: int) -> None:
    why = (
        f"the process that ran it ended {crashes} times before the run did, so it is not taken up by itself any more: "
        f"see what ends the process, then `stagegraph resume {row.run_id}`"
    )
    await give_up(journal, row, "failed", why)
    _log.error("run %s of %s is given up: %s", row.run_id, row.graph, why)
