"""Access to the runs of one graph: where a run is found, and who may see it."""

from __future__ import annotations

import asyncio
import gc
import inspect
import logging
import sys
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from math import inf
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

import anyio

from stagegraph.record.rows import CancelRow
from stagegraph.runner.live import LiveRun

from .journal_events import JournalEvents
from .problems import Problem

if TYPE_CHECKING:
    from stagegraph.nodes.node import Node
    from stagegraph.record.rows import Journal, RunRow
    from stagegraph.runner.runner import Runner

    from .repeats import Repeatable

_log = logging.getLogger("stagegraph.service")

_BYTES_PER_CALL = 2_500
_LITTLE = 50_000
"""Bytes that the event loop counts, or writes, without a thread, which takes longer."""
_FOLLOWED = 8
"""How many runs of other processes keep their events, for readers that reconnect."""
_POLL_EVERY = 0.25
"""Seconds between two reads of the journal while another process is asked to cancel a run."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRef:
    """What a policy is given about a run."""

    run_id: str
    graph: str
    user_id: str | None
    session_id: str | None


Policy = Callable[[str | None, RunRef], bool | Awaitable[bool]]
"""Whether a user (`None` for an anonymous one) may see a run and act on it; only the value `True` allows it."""


def only_its_user(user: str | None, run: RunRef) -> bool:
    """Allow the user who started the run; a run without a user is for anonymous requests."""
    return user == run.user_id


class Access:
    """The runs of one graph: running ones, some that ended recently, and those in the journal.

    Args:
        graph: What is served.
        runner: What runs it.
        policy: Who may see which run.
        remember: How many ended runs keep their events.
        remember_bytes: How much memory they may take, about.
    """

    def __init__(
        self, graph: Node[Any, Any], runner: Runner, policy: Policy, remember: int, remember_bytes: int
    ) -> None:
        self.graph = graph
        self.runner = runner
        self._policy = policy
        self._remember = remember
        self._remember_bytes = remember_bytes
        self._ended: OrderedDict[str, tuple[LiveRun[Any, Any], int]] = OrderedDict()
        """Runs with their sizes, the latest last."""
        self._followed: OrderedDict[str, JournalEvents] = OrderedDict()

    def keep(self, live: LiveRun[Any, Any]) -> None:
        """Keep a run after its end, until *remember* other runs have ended, or its memory is needed for them."""

        def ended(_: object) -> None:
            size = _bytes_of(live, _LITTLE)
            self._add(self._ended, live.run_id, (live, size), self._remember)
            if size <= _LITTLE:
                self._forget()
            else:
                weighing = asyncio.get_running_loop().run_in_executor(None, _bytes_of, live, self._remember_bytes)
                weighing.add_done_callback(weighed)

        def weighed(done: asyncio.Future[int]) -> None:
            if live.run_id in self._ended and not done.cancelled():
                self._ended[live.run_id] = live, done.result()
            self._forget()

        live.task.add_done_callback(ended)

    def _forget(self) -> None:
        """Forget ended runs until the others have their memory; without a journal, the newest is nowhere else."""
        alone = 0 if self.runner.journal is not None else 1
        while sum(size for _, size in self._ended.values()) > self._remember_bytes and len(self._ended) > alone:
            self._ended.popitem(last=False)

    def is_little(self, found: LiveRun[Any, Any] | RunRow) -> bool:
        """Whether a run has ended here and takes little memory, so that the event loop may write it."""
        kept, size = self._ended.get(found.run_id, (None, inf))
        return kept is found and size <= _LITTLE

    @property
    def by_user(self) -> bool:
        """Whether each user sees own runs alone."""
        return self._policy is only_its_user

    async def may_see(self, found: LiveRun[Any, Any] | RunRow, user: str | None) -> bool:
        """Whether the policy lets a user see a run."""
        about = found if isinstance(found, LiveRun) else found.read_labels()
        run = RunRef(run_id=found.run_id, graph=found.graph, user_id=about.user_id, session_id=about.session_id)
        policy: Callable[..., Any] = self._policy  # its code may be untyped, so that what it returns is checked
        allowed = run.graph == self.graph.__node__.name and policy(user, run)
        if inspect.isawaitable(allowed):
            allowed = await allowed
        if not isinstance(allowed, bool):
            _log.warning("policy= returned %s, which allows nothing: it has to be a bool", type(allowed).__name__)
        return allowed is True

    def here(self, run_id: str) -> LiveRun[Any, Any] | None:
        """A run of this process that is running, or that ended recently; whether a user may see it is not checked."""
        return self.runner.live(run_id) or self._ended.get(run_id, (None, 0))[0]

    async def _begun(self, run_id: str) -> LiveRun[Any, Any] | RunRow | None:
        """A run of this process, or the row of any other one.

        It is also the row of a run that was suspended in this process, which another one may have resumed since.
        """
        here, journal = self.here(run_id), self.runner.journal
        if journal is None or (here is not None and not (here.done and here.run.status == "suspended")):
            return here
        return await journal.run(run_id) or self.here(run_id)  # it may have begun while the journal was read

    async def find(self, run_id: str, user: str | None) -> LiveRun[Any, Any] | RunRow:
        """A run that a user may see.

        Raises:
            Problem: there is no such run, or this user may not see it: the same, so that ids cannot be probed.
        """
        return await self._seen(run_id, await self._begun(run_id), user)

    async def repeated(self, asked: Repeatable, user: str | None) -> LiveRun[Any, Any] | RunRow | None:
        """The run that an earlier request with the same key has begun.

        Raises:
            Problem: it had another body.
        """
        begun = await self._begun(asked.run_id)
        if begun is None:
            return None
        found = await self._seen(asked.run_id, begun, user)
        asked.check(found.metadata if isinstance(found, LiveRun) else found.read_labels().metadata)
        return found

    async def _seen(
        self, run_id: str, found: LiveRun[Any, Any] | RunRow | None, user: str | None
    ) -> LiveRun[Any, Any] | RunRow:
        if found is None or not await self.may_see(found, user):
            raise Problem(404, "unknown-run", f"there is no run {run_id} that you may see")
        return found

    def events(self, found: LiveRun[Any, Any] | RunRow) -> JournalEvents:
        """The events of a run of another process; all readers of one run share them, also those that reconnect."""
        name = f"{found.run_id} {found.segment}"  # what is suspended ends, and goes on when it is resumed
        events = self._followed.get(name) or JournalEvents(self.journal, found.run_id)
        self._add(self._followed, name, events, min(self._remember, _FOLLOWED))
        return events

    async def ask_to_cancel(self, row: RunRow, seconds: float) -> RunRow:
        """Ask the process that runs it to cancel a run, wait at most *seconds*, and return the row as it is then."""
        await self.journal.put(CancelRow(run_id=row.run_id, segment=row.segment))
        return await self.end_of(row, seconds)

    async def end_of(self, row: RunRow, seconds: float = inf) -> RunRow:
        """The row of a run once no process runs it any more, or as it is after *seconds*."""
        with anyio.move_on_after(seconds):
            while row.shown_status == "running":
                await anyio.sleep(_POLL_EVERY)
                row = await self.journal.run(row.run_id) or row
        return row

    @property
    def journal(self) -> Journal:
        """The journal of the runner.

        Raises:
            Problem: the runner has none.
        """
        if self.runner.journal is None:
            raise Problem(409, "no-journal", "this service records no runs: give its runner a journal")
        return self.runner.journal

    @staticmethod
    def _add(kept: OrderedDict[str, Any], name: str, value: object, most: int) -> None:
        kept[name] = value
        kept.move_to_end(name)
        while len(kept) > most:
            kept.popitem(last=False)


def _bytes_of(live: LiveRun[Any, Any], enough: int) -> int:
    """About how much memory a run that has ended takes: its values, and the rest of each call with its events."""
    values: list[object] = [(call.input, call.output, call.messages) for call in live.run.root.walk()]
    size, seen = _BYTES_PER_CALL * len(values), set[int]()
    while values and size <= enough:
        value = values.pop()
        if id(value) not in seen and not isinstance(value, (type, ModuleType, FunctionType)):
            seen.add(id(value))
            size += sys.getsizeof(value)
            values += gc.get_referents(value)
    return size
