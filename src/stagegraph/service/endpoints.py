"""What each endpoint does, in terms of runs."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio.to_thread
from pydantic import JsonValue, ValidationError
from pydantic_ai import ToolDenied
from starlette.requests import Request
from starlette.responses import Response

from stagegraph.data.events import EVENTS_PER_SEGMENT
from stagegraph.record.calls import rows_so_far
from stagegraph.record.deferred import by_call
from stagegraph.record.rows import CORRECTION, FeedbackRow, RunRow
from stagegraph.record.run import ReplayError, Run, RunError, run_of, stored_run
from stagegraph.record.source import corrected
from stagegraph.runner.feedback import feedback
from stagegraph.runner.live import LiveRun
from stagegraph.runner.recovery import GIVEN_UP, give_up
from stagegraph.schema.errors import DeclarationError, JournalError, problems_of

from .bodies import Denied, run_json
from .event_stream import EventFormat, EventStream, disconnected, event_number
from .problems import Problem, problem_of_record, problem_of_run

if TYPE_CHECKING:
    from stagegraph.data.call import ShownStatus
    from stagegraph.runner.options import RunOptions

    from .access import Access
    from .bodies import FeedbackBody
    from .repeats import Repeatable

_CANCEL_SECONDS = 10.0
"""Seconds that a cancelled run has to clean up before the response says that it is still ending."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Who asks for a run, and with what besides its input."""

    user: str | None
    session: str | None
    deps: object
    repeatable: Repeatable | None
    """For a request with an `Idempotency-Key`."""


class Endpoints:
    """The requests about the runs of one graph.

    Args:
        access: Finds runs, and checks who may see them.
        format: How events are sent.
        cancels: Whether a run is cancelled when the client that waits for it leaves.
    """

    def __init__(self, access: Access, format: EventFormat, *, cancels: bool) -> None:  # noqa: A002
        self.access = access
        self._graph = access.graph
        self._runner = access.runner
        self._format = format
        self._cancels = cancels

    async def start(self, value: Any, asked: Asked, *, deltas: bool = False) -> LiveRun[Any, Any] | RunRow:
        """Start a run, or find the one that an earlier request with the same key has started.

        Raises:
            BusyError: the runner accepts no more runs now.
            Problem: the key was used with another body.
        """
        options: RunOptions = {"user_id": asked.user, "session_id": asked.session}
        found, repeatable = None, asked.repeatable
        if repeatable is not None:
            found = await self.access.repeated(repeatable, asked.user)
            options |= {"run_id": repeatable.run_id, "metadata": repeatable.metadata}
        if isinstance(found, RunRow):
            return found
        live = found or self._runner.start(self._graph, value, deps=asked.deps, deltas=deltas, **options)
        if repeatable is not None:
            try:
                await live.recorded()
            except JournalError:
                begun = await self.access.repeated(repeatable, asked.user)
                if isinstance(begun, RunRow):
                    return begun  # by another process, which was faster
                raise
        if found is None:
            self.access.keep(live)
        return live

    async def answer(
        self, live: LiveRun[Any, Any] | RunRow, request: Request, *, wait: bool, keyed: bool = False
    ) -> Response:
        """The state of a run that was started: at its end, or as soon as it is in the journal.

        A *keyed* run is not cancelled when its client leaves, which may come back with the same key.
        """
        if isinstance(live, RunRow):
            return await self._answer_again(live, request, wait=wait)
        await live.recorded()
        if not wait:
            return await self._response(live.progress, 202, request)
        if self._cancels and not keyed:
            await self._ended_or_left(live, request)
        try:
            run = await live.result()
        except RunError as error:
            raise problem_of_run(error, live.run_id, ready=self._runner.ready) from None
        return await self._response(run, 202 if run.status == "suspended" else 200, request)

    async def _answer_again(self, row: RunRow, request: Request, *, wait: bool) -> Response:
        """The same of a run that another process, or an earlier one, has started."""
        if wait:
            async with anyio.create_task_group() as group:
                group.start_soon(_cancel_if_left, request, group.cancel_scope)
                row = await self.access.end_of(row)
                group.cancel_scope.cancel()
        if wait and row.status in {"failed", "cancelled"}:
            raise problem_of_record(await stored_run(self.access.journal, row, self._graph))
        return await self._stored(row, 200 if wait and row.status == "succeeded" else 202, request)

    async def streamed(self, live: LiveRun[Any, Any] | RunRow, asked: Asked, last_id: str | None) -> Response:
        """The events of a run that was started for them; a repeated request may have had some of them."""
        if isinstance(live, RunRow):
            return await self.events(live.run_id, asked.user, last_id)
        await live.recorded()

        def leave() -> None:
            if self._cancels and asked.repeatable is None and not live.done:
                live.task.cancel()

        return EventStream(self._format.live(live, _last_seen(live, last_id)), live.run_id, on_leave=leave)

    async def events(self, run_id: str, user: str | None, *last_ids: str | None) -> Response:
        """The events of a run that was started before, after the first of *last_ids* that is the id of an event.

        Those of a run of another process come from the journal.
        """
        found, live = await self.access.find(run_id, user), self.access.here(run_id)
        seen = _last_seen(found, *last_ids)
        if live is not None and live.segment == found.segment:
            return EventStream(self._format.live(live, seen), run_id)
        return EventStream(self._format.recorded(self.access.events(found), seen, self._runner.live), run_id)

    async def state(self, run_id: str, user: str | None) -> Response:
        """The state of a run."""
        found = await self.access.find(run_id, user)
        return await (self._response(found.progress, 200) if isinstance(found, LiveRun) else self._stored(found))

    async def cancel(self, run_id: str, user: str | None) -> Response:
        """End a run now; a suspended or interrupted one is given up."""
        found = await self.access.find(run_id, user)
        if isinstance(found, LiveRun):
            with anyio.move_on_after(_CANCEL_SECONDS):
                await found.cancel()
            return await self._response(found.progress, 200 if found.done else 202)
        if found.shown_status == "running":
            found = await self.access.ask_to_cancel(found, _CANCEL_SECONDS)
            return await self._stored(found, 202 if found.status == "running" else 200)
        if found.status in {"running", "suspended"}:
            try:
                found = await give_up(self.access.journal, found, "cancelled")
            except JournalError:
                raise Problem(409, "elsewhere", "another process runs the run now", run_id=run_id) from None
        return await self._stored(found)

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
        run = await stored_run(self.access.journal, row, self._graph)
        try:
            live = await self._runner.start_resume(run_id, graph=self._graph, answers=_answers(run, given), deps=deps)
            self.access.keep(live)
            return await self.answer(live, request, wait=wait)
        except ReplayError as error:
            raise Problem(422, "invalid", str(error), run_id=run_id) from None
        except JournalError:
            raise Problem(409, "not-suspended", "another request has answered it already", run_id=run_id) from None

    async def score(self, run_id: str, user: str | None, given: FeedbackBody) -> None:
        """Score a run or one of its calls."""
        await self.access.find(run_id, user)
        if given.name == CORRECTION:
            await self._check_correction(run_id, given)
        try:
            await feedback(run_id, given.name, given.value, key=given.key, comment=given.comment, runner=self._runner)
        except DeclarationError:
            text = "feedback is stored with the run, and this service has neither a journal nor tracing"
            raise Problem(409, "no-journal", text, run_id=run_id) from None
        except JournalError:
            if given.key is None:
                raise
            raise Problem(404, "unknown-call", "the run has no such call", run_id=run_id) from None

    async def _check_correction(self, run_id: str, given: FeedbackBody) -> None:
        """Refuse a correction that could never become an expected output.

        Raises:
            Problem: it does not fit the output type of the run, or of the call.
        """
        journal, node = self._runner.journal, self._graph
        if given.key is not None:
            calls = [] if journal is None else await journal.calls(run_id)
            path = next((call.path for call in calls if call.key == given.key), None)
            if path is None or path not in self._graph.__node__.tree.nodes:
                return  # `feedback` knows no such call, or the graph has changed since
            node = self._graph.__node__.tree.nodes[path]
        type_ = node.__node__.output_type
        try:
            corrected(given.value, type_)
        except ValueError as error:
            reason = problems_of(error) if isinstance(error, ValidationError) else str(error)
            text = f"a correction is the expected output, {type_.name}, as JSON in a text: {reason}"
            raise Problem(422, "invalid", text, run_id=run_id) from None

    async def _ended_or_left(self, live: LiveRun[Any, Any], request: Request) -> None:
        """Wait until the run ends, or until its client leaves, which cancels the run."""
        leaving = asyncio.create_task(disconnected(request.receive))
        try:
            await asyncio.wait([live.task, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
        if not live.done:
            await live.cancel()

    async def _response(self, run: Run[Any, Any], status: int, request: Request | None = None) -> Response:
        _ = run.usage  # counted here: the calls of a run that goes on belong to the event loop
        return await self._written(run, run.status, None, status, request)

    async def _written(
        self, run: Run[Any, Any], shown: ShownStatus, detail: str | None, status: int, request: Request | None
    ) -> Response:
        """A run's state, written beside the event loop: an output may be large."""
        content = await anyio.to_thread.run_sync(run_json, self._graph, run, shown, detail)
        return Response(content, status, _location(run.id, status, request), "application/json")

    async def _stored(self, row: RunRow, status: int = 200, request: Request | None = None) -> Response:
        row, calls = await rows_so_far(self.access.journal, row)
        scores: list[FeedbackRow] = []
        run = await anyio.to_thread.run_sync(run_of, row, calls, scores, self._graph)
        shown = row.shown_status
        detail = row.error if row.error_type == GIVEN_UP else None
        if shown == "interrupted":
            detail = "the process that ran it has ended; a service that resumes interrupted runs finishes it"
        return await self._written(run, shown, detail, status, request)

    async def _suspended(self, run_id: str, user: str | None) -> RunRow:
        """The row of a suspended run.

        Raises:
            Problem: the run is not suspended, or the service has no journal.
        """
        if self._runner.journal is None:
            text = "a suspended run is resumed from its record, and this service has none: give its runner a journal"
            raise Problem(409, "no-journal", text, run_id=run_id)
        found = await self.access.find(run_id, user)
        status = found.run.status if isinstance(found, LiveRun) else found.status
        if isinstance(found, LiveRun) or status != "suspended":
            raise Problem(409, "not-suspended", f"its status is {status}: it waits for no answer", run_id=run_id)
        return found


def _last_seen(found: LiveRun[Any, Any] | RunRow, *last_ids: str | None) -> int:
    """The number of the first of these ids that an event of the run can have."""
    numbers = (number for one in last_ids if (number := event_number(one)) is not None)
    return next((number for number in numbers if number < (found.segment + 1) * EVENTS_PER_SEGMENT), -1)


async def _cancel_if_left(request: Request, scope: anyio.CancelScope) -> None:
    await disconnected(request.receive)
    scope.cancel()


def _location(run_id: str, status: int, request: Request | None) -> dict[str, str]:
    if status != 202 or request is None:  # noqa: PLR2004
        return {}
    runs, _, _ = request.url.path.rpartition("/runs")
    return {"Location": f"{runs}/runs/{run_id}"}


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
