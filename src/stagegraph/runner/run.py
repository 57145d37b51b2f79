"""One run from its input to its record: how it begins, how it may end, and the error that it ends with."""

from __future__ import annotations

import asyncio
import inspect
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import anyio
from pydantic import ValidationError

from stagegraph.agent.failures import cause_of
from stagegraph.data.call import Call, CallError, Cause, Status
from stagegraph.data.events import RunFinished, RunStarted
from stagegraph.data.prompts import Prompts
from stagegraph.nodes.current import Suspended
from stagegraph.nodes.group import whole
from stagegraph.record.run import InputError, LimitError, ReplayError, Run, RunError
from stagegraph.schema.errors import JournalError, StagegraphError, leaves, problems_of, shortened

from .calls import run_root
from .executor import Executor
from .limits import Ledger
from .observer import TraceStart
from .options import check_prompts
from .recorder import Recorder, with_deployed
from .state import call_tree, total

if TYPE_CHECKING:
    from collections.abc import Callable

    from stagegraph.record.rows import RunRow

    from .event_log import EventLog
    from .executor import Resources
    from .limits import Seat
    from .observer import Trace
    from .options import RunSpec
    from .state import RunState

_LAST_SECONDS = 5.0
"""Seconds that a cancelled run may take to record how it ended."""
_SHOWN = 3
_ONE_ERROR = 1_000
"""Characters of one error in the message of a run."""


class ActiveRun:
    """One run: awaited once, readable at any time."""

    def __init__(  # noqa: PLR0917 - what a runner gives to a run
        self, spec: RunSpec, state: RunState, resources: Resources, log: EventLog | None, row: RunRow | None, seat: Seat
    ) -> None:
        self.spec = spec
        self.state = state
        self._resources = resources
        self._log = log
        self._row = row
        """The run's row in the journal, if it is recorded."""
        self._seat = seat
        self._ledger = Ledger.of(resources.limits)
        self._recorder: Recorder | None = None
        """From when the run is in its journal."""
        self._trace: Trace | None = None
        """From when the run has its seat."""
        self.opened = asyncio.Event()
        """Set when the run is in its journal, or never will be."""

    async def complete(self) -> Run[Any, Any]:
        """Run to the end.

        Raises:
            RunError: the run ended without an output; subclasses say why.
            JournalError: the journal does not let it begin.
            CancelledError: the task or a scope around it was cancelled; see `RunError.from_cancellation`.
        """
        cancelled: BaseException | None = None
        try:
            await self._deploy()
            journal = self._resources.journal
            if self._row is not None and journal is not None:
                opening = Recorder.open(journal, self._row, self.spec, self.state, self._ledger)
                self._recorder, cancelled = await whole(opening)
            self.opened.set()
            return await self._seated(cancelled)
        finally:
            self._leave()

    async def written(self) -> None:
        """Wait until the run is in its journal, or never will be."""
        await self.opened.wait()
        if self._resources.journal is not None:
            await self._resources.journal.put()

    def never_began(self, error: CallError | None) -> None:
        """End a run that was cancelled, or failed with *error*, before it began."""
        self.state.end = ("failed" if error is not None else "cancelled", error)
        self.state.ended = self.state.clock.tick()
        self._announce(self.record())
        self._leave()

    def cancelled(self, why: str = "") -> RunError:
        """The error of a run that was cancelled."""
        run = self.record()
        return RunError(f"the run of {run.graph} was cancelled{why}", run=run)

    def _leave(self) -> None:
        self.opened.set()
        self._seat.leave()

    async def _deploy(self) -> None:
        """Ask a source of prompts once: what it has deployed may change while the run goes on."""
        source = self._resources.prompts
        if isinstance(source, Prompts):
            return
        deployed = await source.current(self.spec)
        check_prompts(deployed, self.spec, self.state.tree)
        self.state.prompts = deployed
        if self._row is not None:
            self._row = with_deployed(self._row, deployed)

    async def _seated(self, cancelled: BaseException | None) -> Run[Any, Any]:
        try:
            if cancelled is not None:
                raise cancelled
            await self._seat.taken()
            if self._resources.tracing is not None:
                self._trace = self._resources.tracing.open(self._trace_start())
            if self._log is not None:
                began = self.state.clock.stamp() if self._row is None else self._row.started
                self._log.put(RunStarted, began, {"graph": self.state.name})
            executor = Executor(
                spec=self.spec,
                state=self.state,
                resources=self._resources,
                log=self._log,
                ledger=self._ledger,
                recorder=self._recorder,
                trace=self._trace,
            )
            cause = await self._flow(executor)
        except Suspended:
            return await self._ended("suspended")
        except BaseException as error:
            await whole(self._broken_off(error))
            raise
        if cause is None:
            return await self._ended("succeeded")
        error = _run_error(cause, executor.origin_of, self.record(), never_awaited=self.state.never_awaited())
        ended = CallError(type(error).__name__, str(error), cause=_cause_of(error, cause))
        error.attach(await self._ended("failed", ended))
        raise error from (cause if cause is not error else cause.__cause__)

    async def _broken_off(self, error: BaseException) -> None:
        with anyio.move_on_after(_LAST_SECONDS):
            vars(error)["stagegraph_run"] = await self._ended("cancelled")

    def _trace_start(self) -> TraceStart:
        spec, state = self.spec, self.state
        return TraceStart(
            run_id=spec.run_id,
            graph=state.name,
            root_key=state.root.key,
            segment=state.segment,
            prompts=state.prompts,
            clock=state.clock,
            session_id=spec.session_id,
            user_id=spec.user_id,
            tags=spec.tags,
            metadata=spec.metadata,
        )

    async def _flow(self, executor: Executor) -> Exception | None:
        """Call what is run; returns the failure, if there was one."""
        recorder, state, root = self._recorder, self.state, self.state.tree.root
        failure: Exception | None = None
        try:
            value = self.spec.input if self.spec.fits else root.__node__.input_type.validate(self.spec.input)
        except ValidationError as error:
            executor.reject(self.spec.input, error)
            what = f"the input does not fit {root.__node__.input_type.name}, which {state.name} takes"
            failure = InputError(f"{what}: {problems_of(error)}")
            failure.__cause__ = error
            return failure
        seconds = self._resources.limits.seconds
        with executor.scope as scope:
            if seconds is not None:
                before = 0.0 if recorder is None else recorder.seconds_before()
                scope.deadline = anyio.current_time() + seconds - before
            try:
                await run_root(executor, value)
            except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - how the run ends is decided below
                failure = _failure(error)
        if failure is None and recorder is not None:
            failure = recorder.unused_override()
        if state.broken is not None:
            return state.broken
        timed_out = state.limit is None and scope.cancel_called  # whatever the flow did when it was cancelled
        if timed_out:
            state.limit = f"it took longer than {seconds} s"
        elif state.limit is None and self._ledger is not None:
            state.limit = self._ledger.overspent()
        if state.limit is None:
            return failure
        reached = LimitError(f"the run of {state.name} reached a limit: {state.limit}; raise `Limits`, or ask for less")
        reached.timed_out = timed_out
        reached.__cause__ = failure or state.stopped
        return reached

    async def _ended(self, status: Status, error: CallError | None = None) -> Run[Any, Any]:
        """Settle how the run ended, in the record, the events, the trace and the journal."""
        state = self.state
        state.over = True
        state.end, state.ended = (status, error), state.clock.tick()
        if self._trace is not None:
            self._trace.finished(state.root, status, error)
        run = self.record()
        try:
            if self._recorder is not None:
                left = status == "cancelled" and self._resources.draining() and not state.cancel_requested
                await self._recorder.close(run, left=left)
        except JournalError as failure:
            if status == "succeeded":
                msg = f"{run.graph} finished (see `error.run`), but its end could not be recorded: {failure}"
                raise RunError(msg, run=run) from failure
        finally:
            self._announce(run)
        return run

    def _announce(self, run: Run[Any, Any]) -> None:
        if self._log is None:
            return
        output = None
        if run.status == "succeeded":
            try:
                output = self.state.tree.root.__node__.output_type.show(run.output)
            except (ValueError, TypeError):
                output = None  # the event only announces the end; the output itself is in the run
        error = run.error.message if run.error else None
        fields = {"status": run.status, "error": error, "output": output, "duration": run.duration}
        self._log.put(RunFinished, self.state.clock.seconds(self.state.ended), fields)
        self._log.close()

    def record(self, *, frozen: bool = True) -> Run[Any, Any]:
        """The run as it stands now; its calls do not change any more, unless it is still running and not *frozen*."""
        spec, state = self.spec, self.state
        root, clock, calls = state.root, state.clock, state.calls
        status, error = state.end or (root.status, root.error)

        def read_root() -> Call:
            return call_tree(list(calls.values()) or [root], clock)

        root_now = read_root() if state.end is None and frozen else None
        began, duration = root.times(clock)
        return Run(
            id=spec.run_id,
            graph=state.name,
            status=status,
            input=root.input,
            output=root.output,
            error=error,
            started=datetime.fromtimestamp(began, UTC),
            duration=duration,
            metadata=spec.metadata,
            tags=spec.tags,
            session_id=spec.session_id,
            user_id=spec.user_id,
            prompts_digest=state.prompts.digest,
            pending=tuple(one for call in calls.values() if call.status == "suspended" for one in call.use.pending),
            rerun=dict(state.rerun),
            tree=state.tree,
            read_root=read_root if root_now is None else lambda: root_now,
            read_spent=(lambda: total(calls.values())) if root_now is None and len(calls) > 1 else None,
        )


def _failure(error: BaseException) -> Exception:
    """The failure of a flow: its only error, or all together; of what a user's own task group raised, the first one.

    Raises:
        Suspended: there is no failure in it, and a call waits for an answer.
        BaseException: there is a cancellation in it.
    """
    found = leaves(error)
    failures = [leaf for leaf in found if isinstance(leaf, Exception)]
    if any(not isinstance(leaf, (Suspended, Exception)) for leaf in found):
        raise error
    if not failures:
        raise Suspended from error
    return error if isinstance(error, Exception) and len(failures) > 1 else failures[0]


def _run_error(
    cause: Exception,
    origin_of: Callable[[BaseException], str | None],
    run: Run[Any, Any],
    *,
    never_awaited: bool,
) -> RunError:
    """The error of a run that failed because of *cause*; *origin_of* gives the call where an error was first seen."""
    if isinstance(cause, (InputError, LimitError, ReplayError)) and not cause.attached:
        return cause
    causes = leaves(cause)
    origin, by_place = origin_of(cause), dict[str | None, list[str]]()
    for leaf in causes[:_SHOWN]:
        by_place.setdefault(origin_of(leaf) or origin, []).append(_described(leaf))
    text = ";".join(_placed("; ".join(texts), place) for place, texts in by_place.items())
    if len(causes) > _SHOWN:
        text += f"; and {len(causes) - _SHOWN} more"
    if any(isinstance(leaf, (AttributeError, TypeError)) for leaf in causes) and never_awaited:
        text += " (is an `await` missing before a call?)"
    others = sum(call.key not in by_place for call in run.failures())
    calls = "call" if others == 1 else "calls"
    more = f" (and {others} more failed {calls}, see `error.failures`)" if others else ""
    return RunError(f"{run.graph} failed{text if text.startswith(' at') else ':' + text}{more}")


def _cause_of(error: RunError, cause: Exception) -> Cause | None:
    match error:
        case InputError():
            return "input"
        case LimitError():
            return "seconds" if error.timed_out else "limit"
        case _:
            return cause_of(cause)


def _placed(text: str, place: str | None) -> str:
    return f" at `{place}`: {text}" if place and f"`{place}`" not in text else f" {text}"


def _described(error: BaseException) -> str:
    """An error in the message of a run; our own errors need no type name."""
    if isinstance(error, ValidationError) and (fields := _not_awaited(error)):
        return f"{error.title} was given a coroutine as {fields} (is an `await` missing before a call?)"
    own = isinstance(error, StagegraphError) and str(error)
    return shortened(str(error) if own else str(CallError(type(error).__name__, str(error))), _ONE_ERROR)


def _not_awaited(error: ValidationError) -> str:
    """The fields that were given a coroutine; it is closed, since Python would warn of what the message says."""
    fields: list[str] = []
    for problem in error.errors(include_url=False):
        given = problem["input"]
        if inspect.iscoroutine(given):
            if inspect.getcoroutinestate(given) == inspect.CORO_CREATED:
                given.close()
            fields.append(f"`{'.'.join(map(str, problem['loc'])) or 'input'}`")
    return ", ".join(dict.fromkeys(fields))
