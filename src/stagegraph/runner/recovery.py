"""Resuming recorded runs: the graphs that are known by name, what is left of a run, and interrupted runs.

A recorded run has no more than the name of its graph; an interrupted run is one whose process has ended.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import replace
from functools import cached_property
from math import inf
from typing import TYPE_CHECKING, Any, Literal

from stagegraph.agent.durable import unanswered_in
from stagegraph.data.call import GIVEN_UP, Status, path_of
from stagegraph.data.prompt import Origin
from stagegraph.data.prompts import Prompts, PromptSource
from stagegraph.record.deferred import by_call, check
from stagegraph.record.labels import Labels
from stagegraph.record.rows import DamagedError, Journal, RunFilter, RunRow
from stagegraph.record.run import ReplayError, Run, stored_run
from stagegraph.schema.errors import DeclarationError, JournalError, StagegraphError

from .deps import DepsOf, check_deps_of
from .limits import Limits
from .options import ResumeOptions, RunSpec, fitted

if TYPE_CHECKING:
    from stagegraph.nodes.node import Node
    from stagegraph.schema.schema import Schema

_log = logging.getLogger("stagegraph")

_LOOK_EVERY = 2.0
"""Seconds between two looks for interrupted runs."""
_LONGEST_DELAY = 300.0
"""Seconds until a run that cannot be taken up is tried again, at most."""
_MANY = 1_000_000


class Registry:
    """Graphs by name, and how the interrupted runs of each are finished."""

    def __init__(self) -> None:
        self.by_name: dict[str, Node[Any, Any]] = {}
        """The graphs that ran here or were added; `resume` looks them up."""
        self._added: dict[str, tuple[Node[Any, Any], DepsOf | Literal["never"] | None]] = {}

    def add(self, graph: Node[Any, Any], deps_of: DepsOf | Literal["never"] | None) -> None:
        """Finish the interrupted runs of a graph; `"never"` leaves them alone.

        Raises:
            DeclarationError: another graph of that name was added, or the same one with other deps, or *deps_of* can
                make none.
        """
        name = graph.__node__.name
        if deps_of is not None and deps_of != "never":
            check_deps_of(deps_of, name)
        before, deps_before = self._added.get(name, (graph, None))
        if before is not graph and (type(before) is not type(graph) or _state(before) != _state(graph)):
            msg = (
                f"two different graphs named {name!r} on one runner: runs are recorded by that name, so they "
                "would be taken for each other's; give one of the classes another name, or a runner and a journal of "
                "its own"
            )
            raise DeclarationError(msg)
        if deps_of is not None and deps_before is not None and deps_of != deps_before:
            msg = (
                f"{name!r} was added twice to one runner, with different deps for interrupted runs, which are "
                "recorded by that name alone: say the same both times, or give the second one another name"
            )
            raise DeclarationError(msg)
        self.by_name[name] = before
        self._added[name] = (before, deps_before if deps_of is None else deps_of)

    def to_finish(self, name: str) -> tuple[Node[Any, Any], DepsOf | None] | None:
        """The graph whose interrupted runs are finished here, and the function that makes their deps."""
        graph, deps_of = self._added.get(name, (None, None))
        return None if graph is None or deps_of == "never" else (graph, deps_of)


def _state(node: Node[Any, Any]) -> dict[str, object]:
    """The attributes of an object, without its cached properties."""
    return {
        name: value
        for name, value in vars(node).items()
        if not isinstance(getattr(type(node), name, None), cached_property)
    }


TakeUp = Callable[[RunRow], Coroutine[None, None, object] | None]
"""Finishes an interrupted run, if its graph is known; else it returns `None`."""


def counted(row: RunRow) -> RunRow:
    """The row of a run that is resumed now, with a count of its resumes and of the crashes of its process."""
    labels = row.read_labels()
    crashed = row.status == "running" and row.owner is not None  # an orderly shutdown releases its runs
    counts = replace(labels, resumed=(*labels.resumed, time.time()), crashes=labels.crashes + crashed)
    return replace(row, labels=counts.to_json())


async def give_up(journal: Journal, row: RunRow, status: Status, why: str | None = None) -> RunRow:
    """End an interrupted run.

    Raises:
        JournalError: another process has resumed it meanwhile.
    """
    mine = counted(row)
    await journal.claim(replace(mine, status="running", owner=journal.owner), fresh=False)
    ended = replace(
        mine,
        status=status,
        owner=None,
        duration=max(0.0, time.time() - row.started),
        error_type=GIVEN_UP if why else None,
        error=why,
    )
    await journal.put(ended)
    return ended


async def finish_interrupted(journal: Journal | None, take_up: TakeUp, attempts: int, at_once: int | None) -> None:
    """Finish the runs that a crash or a shutdown interrupts, here or in another process, until this is cancelled.

    Other processes may do the same. A run whose process has crashed more than *attempts* times is given up, since the
    run may be the reason. *at_once* is how many are finished at the same time.
    """
    if journal is None or attempts == 0:
        return
    finisher = _Finisher(journal, take_up, attempts)
    seats = asyncio.Semaphore(at_once or _MANY)
    async with asyncio.TaskGroup() as group:
        while True:
            for row in await finisher.interrupted():
                await seats.acquire()
                group.create_task(finisher.finish(row)).add_done_callback(lambda _: seats.release())
            await asyncio.sleep(_LOOK_EVERY)


class _Finisher:
    """Takes up interrupted runs, each once at a time."""

    def __init__(self, journal: Journal, take_up: TakeUp, attempts: int) -> None:
        self._journal = journal
        self._take_up = take_up
        self._attempts = attempts
        self._later: dict[str, tuple[float, float]] = {}
        """Run id -> when it may be tried again, not before its end if it is tried now, and how long it was put off."""
        self._unknown: set[str] = set()
        """The runs of graphs that are not known here."""

    async def interrupted(self) -> list[RunRow]:
        """The runs that can be taken up now, the oldest first."""
        try:
            rows = await self._journal.runs(RunFilter(status="interrupted", limit=None))
        except JournalError as error:
            _log.warning("interrupted runs cannot be looked for just now: %s", error)
            return []
        now = time.monotonic()
        return [row for row in reversed(rows) if self._later.get(row.run_id, (now, 0))[0] <= now]

    async def finish(self, row: RunRow) -> None:
        """Take up a run and wait for its end; if that fails, it is tried again after a longer delay each time."""
        self._later[row.run_id] = inf, self._later.get(row.run_id, (0.0, _LOOK_EVERY / 2))[1]
        try:
            await self._finish(row)
        except DamagedError as error:
            self._put_off(row, "could not be taken up", error)
        except JournalError as error:
            _log.info("run %s was not taken up: %s", row.run_id, error)  # another process was first
            del self._later[row.run_id]
        except ReplayError as error:  # it would be the same error every time
            _log.warning("run %s was not taken up: %s", row.run_id, error)
        except StagegraphError as error:
            self._put_off(row, "was taken up and ended without an output", error)
        except Exception as error:  # noqa: BLE001 - the next one may do better
            self._put_off(row, "could not be taken up", error)
        else:
            del self._later[row.run_id]

    def _put_off(self, row: RunRow, what: str, error: Exception) -> None:
        delay = min(2 * self._later[row.run_id][1], _LONGEST_DELAY)
        self._later[row.run_id] = time.monotonic() + delay, delay
        _log.error("run %s of %s %s: %s", row.run_id, row.graph, what, error, exc_info=error)

    async def _finish(self, row: RunRow) -> None:
        crashes = counted(row).read_labels().crashes
        if crashes > self._attempts:
            why = (
                f"the process that ran it ended {crashes} times before the run did, so it is not taken up by itself "
                f"any more: see what ends the process, then `stagegraph resume {row.run_id}`"
            )
            await give_up(self._journal, row, "failed", why)
            _log.error("run %s of %s is given up: %s", row.run_id, row.graph, why)
        elif (finishing := self._take_up(row)) is not None:
            await finishing
        elif row.run_id not in self._unknown:
            self._unknown.add(row.run_id)
            _log.warning(
                "run %s of %s was interrupted, and nothing here can take it up: make its graph known with "
                "`runner.add(graph)` or `router(graph, runner)`, before the runner's lifespan begins",
                row.run_id,
                row.graph,
            )


async def resumed_spec(
    journal: Journal, run_id: str, known: Mapping[str, Node[Any, Any]], options: ResumeOptions
) -> RunSpec | Run[Any, Any]:
    """What is left of a recorded run; a finished run is returned itself.

    Raises:
        JournalError: there is no such run.
        ReplayError: its graph is unknown, an answer fits no deferred call, or what it needs was redacted.
    """
    row = await journal.run(run_id)
    if row is None:
        msg = f"there is no run {run_id!r} in this journal"
        raise JournalError(msg)
    node = options.get("graph") or known.get(row.graph)
    if node is None:
        msg = f"run {run_id!r} is a run of {row.graph}, which this runner does not know: say `graph={row.graph}()`"
        raise ReplayError(msg)
    try:
        labels = row.read_labels()
        limits = options.get("limits") or Limits.recorded(labels)
    except (TypeError, ValueError, ArithmeticError) as error:
        msg = f"the record of run {run_id!r} is damaged: its labels cannot be read: {error}"
        raise ReplayError(msg) from error
    recorded = await stored_run(journal, row, node)
    if row.status == "succeeded":
        return recorded
    strict = options.get("strict", False)
    _check_same(recorded, node, strict=strict)
    prompts, answers = options.get("prompts"), options.get("answers") or {}
    _check_whole(row, prompts, anew="input" in options)
    if "input" in options:
        given, fits = fitted(node, options["input"])
    else:  # a run may have failed because its input does not fit
        what, data = f"the input of run {run_id!r}", json.loads(row.input)
        given, fits = _read(what, node.__node__.input_type, data, row.input_whole)
    waiting = await unanswered_in(journal, run_id, recorded.pending) if answers else ()
    answered = by_call(waiting, answers)
    check(waiting, answered)
    return RunSpec(
        run_id=run_id,
        own_id=True,
        node=node,
        input=given,
        fits=fits,
        model=options.get("model") or row.model,
        models={**labels.models, **(options.get("models") or {})},
        deps=options.get("deps"),
        prompts=prompts if prompts is not None else _recorded_prompts(row, labels),
        limits=limits,
        session_id=labels.session_id,
        user_id=labels.user_id,
        tags=labels.tags,
        metadata=labels.metadata,
        override=_recorded_override(labels, node),
        replay=labels.replay,
        answers=answered,
        resumed=row,
        strict=strict,
    )


def _check_same(recorded: Run[Any, Any], node: Node[Any, Any], *, strict: bool) -> None:
    """Make sure that a graph, which may have changed and have another name, is the one that was run."""
    known = node.__node__.tree.nodes
    leaves = {call.path for call in recorded.root.walk() if call.kind != "graph"}
    gone = sorted(leaves - known.keys())
    if gone and (strict or len(gone) == len(leaves)):
        msg = f"run {recorded.id!r} of {recorded.graph} called `{gone[0]}`, which is not part of {node.__node__.name}"
        raise ReplayError(msg)


def _check_whole(row: RunRow, prompts: Prompts | PromptSource | None, *, anew: bool) -> None:
    """Refuse to resume a run whose input or prompts the record does not hold, unless they are given *anew*."""
    run_id, gone = row.run_id, row.read_labels().redacted
    if not anew and row.input_whole == "":
        msg = (
            f"the record of run {run_id!r} does not hold its whole input, since a part is a secret, is excluded or "
            f"has no JSON: give it again, as in `resume({run_id!r}, input=...)` or `stagegraph resume --input`"
        )
    elif not anew and "input" in gone:
        msg = (
            f"`redact=` changed the input of run {run_id!r} when it was recorded, so the run cannot go on with it: "
            f"give it again, as in `resume({run_id!r}, input=...)`, or run it anew with the whole input; "
            f"`replay={run_id!r}` gives it the answers that were recorded"
        )
    elif "prompts" in gone and prompts is None:
        msg = (
            f"`redact=` changed the prompts of run {run_id!r} when they were recorded: "
            "say with which it is to go on, as in `resume(..., prompts=...)`"
        )
    else:
        return
    raise ReplayError(msg)


def _recorded_override(labels: Labels, node: Node[Any, Any]) -> dict[str, object]:
    """Call key -> output."""
    found: dict[str, object] = {}
    for key, data in labels.override.items():
        declared = node.__node__.tree.nodes.get(path_of(key))
        whole = labels.override_whole.get(key)
        type_ = None if declared is None else declared.__node__.output_type
        found[key] = data if type_ is None else _read(f"the `override` of `{key}`", type_, data, whole)[0]
    return found


def _read(what: str, type_: Schema, data: object, whole: str | None) -> tuple[object, bool]:
    """A recorded value, and whether it is one of its type."""
    try:
        return type_.recall(json.dumps(data), whole), True
    except ValueError as error:
        if whole:
            msg = f"{what} cannot be read back as {type_.name}, whose types may have changed since: {error}"
            raise ReplayError(msg) from error
        return data, False


def _recorded_prompts(row: RunRow, labels: Labels) -> Prompts | None:
    """The prompts that the run alone was given, or that came from a server."""
    if row.prompts is None:
        return None
    origins = {path: Origin(*origin) for path, origin in labels.origins.items()}
    return Prompts.from_json(row.prompts, origins)
