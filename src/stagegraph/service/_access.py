"""Which runs there are here, and who may see them."""

from __future__ import annotations

import asyncio
import inspect
import json
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import anyio

from stagegraph.journal import CancelRow
from stagegraph.record.reading import stored_run
from stagegraph.runner.recovery import give_up, is_interrupted, segment_of

from ._problems import Problem
from ._watch import Watch

if TYPE_CHECKING:
    from stagegraph import LiveRun, Node, Run, Runner
    from stagegraph.journal import Journal, RunRow

__all__ = ["Desk", "Policy", "RunRef", "only_its_user"]

_log = logging.getLogger("stagegraph.service")

_LOOK_EVERY = 0.25
"""Seconds between two looks whether another process has ended a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    """What a policy knows of a run."""

    run_id: str
    graph: str
    user_id: str | None
    session_id: str | None


Policy = Callable[[str | None, RunRef], bool | Awaitable[bool]]
"""Whether a user (`None` when nobody is known) may see a run and act on it: only `True` lets in."""


def only_its_user(user: str | None, run: RunRef) -> bool:
    """A run belongs to the user who started it; one without a user is for those who have no name here either."""
    return user == run.user_id


class Desk:
    """The runs of one graph: those that go on, some that have ended, and those in the journal.

    Args:
        graph: What is served.
        runner: What runs it.
        policy: Who may see which run.
        remember: How many ended runs keep their events.
    """

    def __init__(self, graph: Node[Any, Any], runner: Runner, policy: Policy, remember: int) -> None:
        self.graph = graph
        self.runner = runner
        self._policy = policy
        self._remember = remember
        self._ended: OrderedDict[str, LiveRun[Any, Any]] = OrderedDict()
        self._watched: OrderedDict[str, Watch] = OrderedDict()

    def keep(self, live: LiveRun[Any, Any]) -> None:
        """Remember a run after its end, until too many others have ended."""

        def ended(_: asyncio.Task[None]) -> None:
            self._ended[live.run_id] = live
            self._ended.move_to_end(live.run_id)
            while len(self._ended) > self._remember:
                self._ended.popitem(last=False)

        live.task.add_done_callback(ended)

    async def live(self, run_id: str, user: str | None) -> LiveRun[Any, Any] | None:
        """A run that goes on here, or that ended here not long ago."""
        live = self.runner.live(run_id) or self._ended.get(run_id)
        if live is not None:
            await self._check(
                user, RunRef(run_id=run_id, graph=live.graph, user_id=live.user_id, session_id=live.session_id)
            )
        return live

    async def row(self, run_id: str, user: str | None) -> RunRow:
        """What the journal has of a run.

        Raises:
            Problem: it has nothing, or nothing for this user.
        """
        row = None if self.runner.journal is None else await self.runner.journal.run(run_id)
        if row is None:
            raise _unknown(run_id)
        labels = json.loads(row.labels)
        user_id, session_id = labels["user_id"], labels["session_id"]
        await self._check(user, RunRef(run_id=run_id, graph=row.graph, user_id=user_id, session_id=session_id))
        return row

    async def stored(self, row: RunRow) -> Run[Any, Any]:
        """The run that the journal has."""
        journal = cast("Journal", self.runner.journal)  # which the row came from
        return await stored_run(journal, row, self.graph)

    def watch(self, run_id: str) -> Watch:
        """What the journal shows of a run that is not here; one for all who look, and for those who come back."""
        found = self._watched.get(run_id) or Watch(cast("Journal", self.runner.journal), run_id)
        self._watched[run_id] = found
        self._watched.move_to_end(run_id)
        while len(self._watched) > self._remember:
            self._watched.popitem(last=False)
        return found

    async def forget(self, row: RunRow) -> RunRow:
        """Give up a run that nobody runs: it will not go on.

        Raises:
            JournalError: somebody has taken it up meanwhile.
        """
        return await give_up(cast("Journal", self.runner.journal), row, "cancelled")

    async def ask_to_cancel(self, row: RunRow, seconds: float) -> RunRow:
        """Tell the process that holds a run to end it, and wait so long; gives the run as it stands then."""
        journal = cast("Journal", self.runner.journal)
        await journal.put(CancelRow(run_id=row.run_id, segment=segment_of(row)))
        with anyio.move_on_after(seconds):
            while row.status == "running" and not is_interrupted(row):
                await anyio.sleep(_LOOK_EVERY)
                row = await journal.run(row.run_id) or row
        return row

    async def _check(self, user: str | None, run: RunRef) -> None:
        """Who may not see a run is told what somebody is told who made its id up."""
        policy: Callable[..., Any] = self._policy  # which may be written in code that nobody type-checks
        allowed = run.graph == self.graph.__node__.name and policy(user, run)
        if inspect.isawaitable(allowed):
            allowed = await allowed
        if not isinstance(allowed, bool):
            _log.warning("policy= gave %s, which lets nobody in: it has to be a bool", type(allowed).__name__)
        if allowed is not True:
            raise _unknown(run.run_id)


def _unknown(run_id: str) -> Problem:
    return Problem(404, "unknown-run", f"there is no run {run_id} here for you")
