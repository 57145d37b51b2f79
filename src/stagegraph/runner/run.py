"""One run from its input to its record: validation, the outer cancel scope, and how it may end."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
from pydantic import ValidationError

from stagegraph.data.call import Call, CallError, Pending, Status
from stagegraph.data.events import RunFinished, RunStarted
from stagegraph.nodes.current import Suspended
from stagegraph.record import deferred as asking
from stagegraph.record.run import InputError, Run, RunError
from stagegraph.schema.errors import JournalError, problems_of

from .calls import root_frame
from .execution import Execution, Terms
from .failure import failure_in, limit_error, only_leaf, run_error
from .observer import TraceStart
from .state import Clock, Entry, freeze, total

if TYPE_CHECKING:
    from stagegraph.nodes.node import Tree

    from .limits import Limits
    from .options import Labels
    from .page import RunPage
    from .queue import Seat

__all__ = ["Running"]


_LAST_WORDS = 5.0
"""Seconds that a cancelled run may take to write down how it ended."""


class Running:
    """One run: awaited once, readable at any time."""

    def __init__(  # noqa: PLR0917
        self,
        tree: Tree,
        raw: object,
        terms: Terms,
        limits: Limits,
        labels: Labels,
        page: RunPage | None = None,
    ) -> None:
        self.tree = tree
        self.terms = terms
        self.limits = limits
        self.labels = labels
        self.execution = Execution(tree, terms)
        self.clock = Clock.now()
        self.seat: Seat | None = None
        self._recorded = anyio.Event()
        self.leaves: Callable[[], bool] = lambda: False
        """Whether a cancellation now is a shutdown, which leaves the run to whoever takes it up."""
        self._raw = raw
        self._page = page
        self._end: tuple[Status, CallError | None] | None = None
        name = self.execution.root_name
        self._waiting = Entry(tree.root, name, name, None, raw, 0)
        """The root call until it begins."""

    @property
    def segment(self) -> int:
        """0 for a run from its beginning, 1 when it was resumed, 2 the second time."""
        return self._page.segment if self._page is not None else 0

    async def complete(self) -> Run[Any, Any]:
        """Run to the end.

        Raises:
            RunError: it ended without an output; its subclasses say which way.
            JournalError: the journal does not let it begin.
            CancelledError: the task or a scope around it was cancelled; see `RunError.from_cancellation`.
        """
        try:
            return await self._seated()
        finally:
            self.leave()

    async def written(self) -> None:
        """Wait until the run is in its journal, or never will be."""
        await self._recorded.wait()
        if self._page is not None:
            await self._page.journal.put()

    def leave(self) -> None:
        """Nothing more is going on: let the next run in."""
        self._recorded.set()
        if self.seat is not None:
            self.seat.leave()

    async def _seated(self) -> Run[Any, Any]:
        log, page = self.terms.log, self._page
        await self._deploy()
        if page is not None:
            self.execution.recorder = await page.open(self.clock)
        self._recorded.set()
        try:
            if self.seat is not None:
                await self.seat.taken()
            if self.terms.tracing is not None:
                self.execution.trace = self.terms.tracing.open(self._trace_start())
            if log is not None:
                log.put(RunStarted, graph=self.tree.root.__node__.name)
            cause = await self._flow()
        except Suspended:
            return await self._ended("suspended")
        except BaseException as error:
            with anyio.move_on_after(_LAST_WORDS, shield=True):
                vars(error)["stagegraph_run"] = await self._ended("cancelled")
            raise
        if cause is None:
            return await self._ended("succeeded")
        error = run_error(cause, self.tree.root.__node__.name, self.record)
        error.attach(await self._ended("failed", CallError(type(error).__name__, str(error))))
        raise error from (cause if cause is not error else cause.__cause__)

    async def _deploy(self) -> None:
        """Settle which prompts this run uses, once: those that live elsewhere may change while it runs."""
        prompts = await self.terms.prompts.resolved()
        if prompts is not self.terms.prompts:
            self.terms = self.execution.terms = replace(self.terms, prompts=prompts)
            if self._page is not None:
                self._page.deploy(prompts)

    def _trace_start(self) -> TraceStart:
        labels, terms = self.labels, self.terms
        return TraceStart(
            run_id=terms.run_id,
            graph=self.tree.root.__node__.name,
            root_key=self.execution.root_name,
            segment=self.segment,
            prompts=terms.prompts,
            clock=self.clock,
            session_id=labels.session_id,
            user_id=labels.user_id,
            tags=labels.tags,
            metadata=labels.metadata,
        )

    def give_up(self, error: CallError | None) -> None:
        """End a run that never began: by this error, or else by a cancellation."""
        self._end = ("failed" if error is not None else "cancelled", error)
        self._announce(self.record())
        self.leave()

    async def _ended(self, status: Status, error: CallError | None = None) -> Run[Any, Any]:
        """Fix how the run ended, in the record, the events and the journal."""
        self.execution.over = True
        self._end = (status, error)
        if self.execution.trace is not None:
            root = self._root_entry()
            self.execution.trace.finished(root, status, error)
        run = self.record()
        try:
            if self._page is not None:
                left = status == "cancelled" and self.leaves()
                await self._page.close(run, self.execution.entries.values(), left=left)
        except JournalError as failure:
            if status == "succeeded":
                msg = f"{run.graph} finished (see `error.run`), but its end could not be recorded: {failure}"
                raise RunError(msg, run=run) from failure
        finally:
            self._announce(run)
        return run

    async def _flow(self) -> Exception | None:
        """Run the root call; gives the failure, if there was one."""
        execution, root = self.execution, self.tree.root
        failure: Exception | None = None
        try:
            value = root.__node__.input_type.validate(self._raw)
        except ValidationError as error:
            self._reject(error)
            msg = f"the input does not fit {root.__node__.input_type.name}, which {root.__node__.name} takes: {problems_of(error)}"
            failure = InputError(msg)
            failure.__cause__ = error
            return failure
        with execution.scope as scope:
            if self.limits.seconds is not None:
                scope.deadline = anyio.current_time() + self.limits.seconds
            try:
                await root_frame(execution).call(root, value)
            except Exception as error:  # noqa: BLE001 - what it was decides below how the run ends
                failure = only_leaf(error)
            except BaseExceptionGroup as group:
                failure = failure_in(group)
        if failure is None and execution.recorder is not None:
            failure = execution.recorder.unused_override()
        if execution.broken is not None:
            return execution.broken
        timed_out = execution.limit is None and scope.cancel_called  # whatever the flow made of being cancelled
        if timed_out:
            execution.limit = f"it took longer than {self.limits.seconds} s"
        elif execution.limit is None and self.terms.ledger is not None:
            execution.limit = self.terms.ledger.overspent()
        if execution.limit is None:
            return failure
        return limit_error(root.__node__.name, execution.limit, failure or execution.stopped, timed_out=timed_out)

    def _reject(self, error: ValidationError) -> None:
        name = self.execution.root_name
        entry = self.execution.open(self.tree.root, name, name, None, self._raw)
        entry.status, entry.error = "failed", CallError(type(error).__name__, str(error))
        self.execution.close(entry)

    def _announce(self, run: Run[Any, Any]) -> None:
        log = self.terms.log
        if log is None:
            return
        output = None
        if run.status == "succeeded":
            try:
                output = self.tree.root.__node__.output_type.show(run.output)
            except (ValueError, TypeError):
                output = None  # the event is a notice; the output itself is in the run
        error = run.error.message if run.error else None
        log.put(RunFinished, status=run.status, error=error, output=output, duration=run.duration)
        log.close()

    def _root_entry(self) -> Entry:
        return next(iter(self.execution.entries.values()), self._waiting)

    def record(self) -> Run[Any, Any]:
        """The run as it stands now; once it ended, it does not change any more."""
        root = self._root_entry()
        status, error = self._end or (root.status, root.error)
        frozen: Call | None = None
        if self._end is None:
            frozen = freeze(list(self.execution.entries.values()) or [root], self.clock)
        entries, clock = self.execution.entries, self.clock
        return Run(
            id=self.terms.run_id,
            graph=self.tree.root.__node__.name,
            status=status,
            input=root.input,
            output=root.output,
            error=error,
            started=self.clock.calendar(root.began),
            duration=root.duration,
            metadata=self.labels.metadata,
            tags=self.labels.tags,
            session_id=self.labels.session_id,
            user_id=self.labels.user_id,
            prompts_digest=self.terms.prompts.digest,
            pending=self._pending(),
            rerun=dict(self.execution.recorder.rerun) if self.execution.recorder is not None else {},
            tree=self.tree,
            read_root=lambda: frozen if frozen is not None else freeze(list(entries.values()) or [root], clock),
            read_spent=(lambda: total(entries.values())) if frozen is None and len(entries) > 1 else None,
        )

    def _pending(self) -> tuple[Pending, ...]:
        waiting = [entry.use.pending for entry in self.execution.entries.values() if entry.status == "suspended"]
        return tuple(one for text in filter(None, waiting) for one in asking.load(text))
