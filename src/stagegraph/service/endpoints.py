"""What each endpoint does, in terms of runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import anyio
from pydantic import JsonValue
from pydantic_ai import ToolDenied
from starlette.requests import Request
from starlette.responses import Response

from stagegraph.record.deferred import by_call
from stagegraph.record.run import ReplayError, Run, RunError
from stagegraph.runner.feedback import feedback
from stagegraph.runner.recovery import GIVEN_UP, is_interrupted
from stagegraph.schema.errors import BusyError, DeclarationError, JournalError

from .bodies import Denied, run_json
from .event_stream import EventStream, disconnected, journal_chunks, last_seen, live_chunks
from .problems import RETRY_AFTER, Problem, problem_of_run

if TYPE_CHECKING:
    from stagegraph.record.rows import RunRow
    from stagegraph.runner.live import LiveRun

    from .access import Access
    from .bodies import FeedbackBody, ShownStatus

_CANCEL_SECONDS = 10.0
"""Seconds that a cancelled run has to clean up before the response says that it is still ending."""


class Endpoints:
    """The requests about the runs of one graph.

    Args:
        access: Finds runs, and checks who may see them.
        cancels: Whether a run is cancelled when the client that waits for it leaves.
        heartbeat: Seconds of silence after which an event stream sends a comment.
        errors: Whether events contain the texts of errors.
    """

    def __init__(self, access: Access, *, cancels: bool, heartbeat: float, errors: bool) -> None:
        self._access = access
        self._graph = access.graph
        self._runner = access.runner
        self._cancels = cancels
        self._heartbeat = heartbeat
        self._errors = errors

    def start(
        self, value: Any, user: str | None, session: str | None, deps: object, *, deltas: bool = False
    ) -> LiveRun[Any, Any]:
        """Start a run.

        Raises:
            Problem: the runner accepts no more runs now.
        """
        try:
            live = self._runner.start(self._graph, value, deps=deps, deltas=deltas, user_id=user, session_id=session)
        except BusyError as error:
            raise self._busy(error) from None
        self._access.keep(live)
        return live

    async def answer(self, live: LiveRun[Any, Any], request: Request, *, wait: bool) -> Response:
        """The state of a run that was started: at its end, or as soon as it is in the journal."""
        await live.recorded()
        if not wait:
            return self._response(live.run, 202, request)
        if self._cancels:
            await self._ended_or_left(live, request)
        try:
            run = await live.result()
        except RunError as error:
            raise self._problem(error, live) from None
        return self._response(run, 202 if run.status == "suspended" else 200, request)

    async def streamed(self, live: LiveRun[Any, Any]) -> Response:
        """The events of a run that was started for them."""
        await live.recorded()

        def leave() -> None:
            if self._cancels and not live.done:
                live.task.cancel()

        return EventStream(self._live_chunks(live, -1), live.run_id, on_leave=leave)

    async def events(self, run_id: str, user: str | None, after: int, last_event_id: str | None) -> Response:
        """The events of a run that was started before; those of a run of another process come from the journal."""
        live = await self._access.live(run_id, user)
        if live is not None and not await self._was_resumed_elsewhere(live, user):
            seen = after if last_event_id is None else last_seen(last_event_id, str(live.segment))
            return EventStream(self._live_chunks(live, seen), run_id)
        await self._access.row(run_id, user)
        recorded = self._access.events(run_id)
        chunks = journal_chunks(
            recorded,
            last_seen(last_event_id, recorded.name),
            self._heartbeat,
            errors=self._errors,
            find_live=lambda: self._runner.live(run_id),
        )
        return EventStream(chunks, run_id)

    async def state(self, run_id: str, user: str | None) -> Response:
        """The state of a run."""
        live = await self._access.live(run_id, user)
        if live is not None and not self._may_be_elsewhere(live):
            return self._response(live.run, 200)
        return await self._stored(await self._access.row(run_id, user))

    async def cancel(self, run_id: str, user: str | None) -> Response:
        """End a run now; a suspended or interrupted one is given up."""
        live = await self._access.live(run_id, user)
        if live is not None and not self._may_be_elsewhere(live):
            with anyio.move_on_after(_CANCEL_SECONDS):
                await live.cancel()
            return self._response(live.run, 200 if live.done else 202)
        row = await self._access.row(run_id, user)
        if row.status == "running" and not is_interrupted(row):
            row = await self._access.ask_to_cancel(row, _CANCEL_SECONDS)
            return await self._stored(row, 202 if row.status == "running" else 200)
        if row.status in {"running", "suspended"}:
            try:
                row = await self._access.give_up(row)
            except JournalError:
                raise Problem(409, "elsewhere", "another process runs the run now", run_id=run_id) from None
        return await self._stored(row)

    async def resume(
        self,
        request: Request,
        run_id: str,
        user: str | None,
        given: Mapping[str, JsonValue],
        deps: object,
        *,
        wait: bool,
    ) -> Response:
        """Resume a suspended run with its answers."""
        row = await self._suspended(run_id, user)
        run = await self._access.stored(row)
        try:
            live = await self._runner.start_resume(run_id, graph=self._graph, answers=_answers(run, given), deps=deps)
            self._access.keep(live)
            return await self.answer(live, request, wait=wait)
        except BusyError as error:
            raise self._busy(error) from None
        except ReplayError as error:
            raise Problem(422, "invalid", str(error), run_id=run_id) from None
        except JournalError:
            raise Problem(409, "not-suspended", "another request has answered it already", run_id=run_id) from None

    async def score(self, run_id: str, user: str | None, given: FeedbackBody) -> None:
        """Score a run or one of its calls."""
        if await self._access.live(run_id, user) is None:
            await self._access.row(run_id, user)
        try:
            await feedback(run_id, given.name, given.value, key=given.key, comment=given.comment, runner=self._runner)
        except DeclarationError:
            text = "feedback is stored with the run, and this service has neither a journal nor tracing"
            raise Problem(409, "no-journal", text, run_id=run_id) from None
        except JournalError:
            if given.key is None:
                raise
            raise Problem(404, "unknown-call", "the run has no such call", run_id=run_id) from None

    def _busy(self, error: BusyError) -> Problem:
        after = {RETRY_AFTER: str(math.ceil(error.retry_after))}
        if self._runner.ready:
            return Problem(429, "busy", "the limit of concurrent runs is reached; try again later", headers=after)
        return Problem(503, "draining", "the service is shutting down", headers=after)

    def _problem(self, error: RunError, live: LiveRun[Any, Any]) -> Problem:
        if not (error.attached and error.run.status == "cancelled"):
            return problem_of_run(error, live.run_id)
        if self._runner.ready:
            return Problem(409, "cancelled", "the run was cancelled", run_id=live.run_id)
        text = "the service is shutting down; it resumes the run after its restart, if it has a journal"
        return Problem(503, "interrupted", text, headers={RETRY_AFTER: "5"}, run_id=live.run_id)

    async def _ended_or_left(self, live: LiveRun[Any, Any], request: Request) -> None:
        """Wait until the run ends, or until its client leaves, which cancels the run."""
        leaving = asyncio.create_task(disconnected(request.receive))
        try:
            await asyncio.wait([live.task, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
        if not live.done:
            await live.cancel()

    def _live_chunks(self, live: LiveRun[Any, Any], after: int) -> AsyncIterator[bytes]:
        return live_chunks(live, after, self._heartbeat, errors=self._errors)

    def _response(self, run: Run[Any, Any], status: int, request: Request | None = None) -> Response:
        headers: dict[str, str] = {}
        if status == 202 and request is not None:  # noqa: PLR2004
            runs, _, _ = request.url.path.rpartition("/runs")
            headers["Location"] = f"{runs}/runs/{run.id}"
        return Response(run_json(self._graph, run, run.status), status, headers, "application/json")

    async def _was_resumed_elsewhere(self, live: LiveRun[Any, Any], user: str | None) -> bool:
        """Whether another process has resumed a run that was suspended in this one."""
        return self._may_be_elsewhere(live) and (await self._access.row(live.run_id, user)).segment != live.segment

    def _may_be_elsewhere(self, live: LiveRun[Any, Any]) -> bool:
        """Whether another process may have resumed or given up a run that was suspended in this one."""
        return live.done and self._runner.journal is not None and live.run.status == "suspended"

    async def _stored(self, row: RunRow, status: int = 200) -> Response:
        run = await self._access.stored(row)
        shown: ShownStatus = "interrupted" if is_interrupted(row) else run.status
        detail = row.error if row.error_type == GIVEN_UP else None
        if shown == "interrupted":
            detail = "the process that ran it has ended; a service that resumes interrupted runs finishes it"
        return Response(run_json(self._graph, run, shown, detail), status, None, "application/json")

    async def _suspended(self, run_id: str, user: str | None) -> RunRow:
        """The row of a suspended run.

        Raises:
            Problem: the run is not suspended, or the service has no journal.
        """
        live = await self._access.live(run_id, user)
        if self._runner.journal is None:
            text = "a suspended run is resumed from its record, and this service has none: give its runner a journal"
            raise Problem(409, "no-journal", text, run_id=run_id)
        if live is not None and not live.done:
            raise Problem(409, "not-suspended", "the run is running and waits for no answer", run_id=run_id)
        row = await self._access.row(run_id, user)
        if row.status != "suspended":
            raise Problem(409, "not-suspended", f"its status is {row.status}: it waits for no answer", run_id=run_id)
        return row


def _answers(run: Run[Any, Any], given: Mapping[str, JsonValue]) -> dict[str, object]:
    """The answers as `Runner.resume` takes them.

    Raises:
        ReplayError: an answer belongs to no question, or an approval is neither granted nor denied.
    """
    kinds = {(one.key, one.tool_call_id): one.kind for one in run.pending}
    answers: dict[str, object] = {}
    for key, by_id in by_call(run.pending, given).items():
        for call_id, answer in by_id.items():
            external = kinds[key, call_id] == "external" or isinstance(answer, bool)
            answers[f"{key}:{call_id}"] = answer if external else _denied(f"{key}:{call_id}", answer)
    return answers


def _denied(question: str, answer: object) -> ToolDenied:
    try:
        return ToolDenied(Denied.model_validate(answer).message)
    except ValueError:
        msg = f'the answer to `{question}` is true, false or {{"approved": false, "message": ...}}'
        raise ReplayError(msg) from None
