"""What each endpoint does, in terms of runs."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import anyio
from pydantic import JsonValue
from pydantic_ai import ToolDenied
from starlette.requests import Request
from starlette.responses import Response

from stagegraph import BusyError, DeclarationError, JournalError, LiveRun, ReplayError, Run, RunError, feedback
from stagegraph.record.deferred import by_call
from stagegraph.runner.recovery import GIVEN_UP, is_interrupted, segment_of

from ._answer import Denied, state_json
from ._problems import RETRY_AFTER, Problem, problem_of_run
from ._stream import EventStream, after_id, live_chunks, watched_chunks

if TYPE_CHECKING:
    from stagegraph.journal import RunRow

    from ._access import Desk
    from ._answer import FeedbackBody, RunStatus

__all__ = ["Handling"]

_PATIENCE = 10.0
"""Seconds that a cancelled run has to clean up before the answer says that it still does."""


class Handling:
    """Requests about the runs of one graph."""

    def __init__(self, desk: Desk, cancels: bool, *, heartbeat: float, errors: bool) -> None:
        self._desk = desk
        self._graph = desk.graph
        self._runner = desk.runner
        self._cancels = cancels
        self._heartbeat = heartbeat
        self._errors = errors

    def start(
        self, value: Any, user: str | None, session: str | None, deps: object, *, deltas: bool = False
    ) -> LiveRun[Any, Any]:
        """Begin a run."""
        try:
            live = self._runner.start(self._graph, value, deps=deps, deltas=deltas, user_id=user, session_id=session)
        except BusyError as error:
            raise self._busy(error) from None
        self._desk.keep(live)
        return live

    def _busy(self, error: BusyError) -> Problem:
        after = {RETRY_AFTER: str(math.ceil(error.retry_after))}
        if self._runner.ready:
            return Problem(429, "busy", "as many runs go on as may; try again later", headers=after)
        return Problem(503, "draining", "the service is shutting down", headers=after)

    async def answer(self, live: LiveRun[Any, Any], request: Request, *, wait: bool) -> Response:
        """The state of a run that was begun: at its end, or as soon as a crash cannot lose it any more."""
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

    def _problem(self, error: RunError, live: LiveRun[Any, Any]) -> Problem:
        if not (error.attached and error.run.status == "cancelled"):
            return problem_of_run(error, live.run_id)
        if self._runner.ready:
            return Problem(409, "cancelled", "the run was cancelled", run_id=live.run_id)
        text = "the service is shutting down; the run goes on when it is back, if it keeps a journal"
        return Problem(503, "interrupted", text, headers={RETRY_AFTER: "5"}, run_id=live.run_id)

    async def _ended_or_left(self, live: LiveRun[Any, Any], request: Request) -> None:
        """Wait for the end of the run, or of its client, which cancels the run."""

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        leaving = asyncio.create_task(gone())
        try:
            await asyncio.wait([live.task, leaving], return_when=asyncio.FIRST_COMPLETED)
        finally:
            leaving.cancel()
        if not live.done:
            await live.cancel()

    def _response(self, run: Run[Any, Any], status: int, request: Request | None = None) -> Response:
        headers: dict[str, str] = {}
        if status == 202 and request is not None:  # noqa: PLR2004
            runs, _, _ = request.url.path.rpartition("/runs")
            headers["Location"] = f"{runs}/runs/{run.id}"
        shown: RunStatus = run.status
        return Response(state_json(self._graph, run, shown), status, headers, "application/json")

    async def streamed(self, live: LiveRun[Any, Any]) -> Response:
        """The events of a run that was begun for them."""
        await live.recorded()

        def leave() -> None:
            if self._cancels and not live.done:
                live.task.cancel()

        return self._stream(live, -1, on_leave=leave)

    def _stream(self, live: LiveRun[Any, Any], after: int, **options: Any) -> EventStream:
        chunks = live_chunks(live, after, self._heartbeat, errors=self._errors)
        return EventStream(chunks, headers={"X-Run-Id": live.run_id}, **options)

    async def events(self, run_id: str, user: str | None, after: int, last: str | None) -> Response:
        """The events of a run that was begun before; of one that is not here, what its journal shows."""
        live = await self._desk.live(run_id, user)
        if live is not None and not await self._is_elsewhere(live, user):
            return self._stream(live, after_id(last, str(live.segment)) if last is not None else after)
        await self._desk.row(run_id, user)
        watch = self._desk.watch(run_id)
        chunks = watched_chunks(
            watch,
            after_id(last, watch.name),
            self._heartbeat,
            errors=self._errors,
            here=lambda: self._runner.live(run_id),
        )
        return EventStream(chunks, headers={"X-Run-Id": run_id})

    async def _is_elsewhere(self, live: LiveRun[Any, Any], user: str | None) -> bool:
        """Whether somebody else has gone on with a run since it was suspended here."""
        return self._may_be_elsewhere(live) and segment_of(await self._desk.row(live.run_id, user)) != live.segment

    async def state(self, run_id: str, user: str | None) -> Response:
        """A run as it stands."""
        live = await self._desk.live(run_id, user)
        if live is not None and not self._may_be_elsewhere(live):
            return self._response(live.run, 200)
        row = await self._desk.row(run_id, user)
        return await self._stored(row)

    def _may_be_elsewhere(self, live: LiveRun[Any, Any]) -> bool:
        """Whether somebody else may have gone on with a run, or given it up, since it was suspended here."""
        return live.done and self._runner.journal is not None and live.run.status == "suspended"

    async def _stored(self, row: RunRow, status: int = 200) -> Response:
        run = await self._desk.stored(row)
        shown: RunStatus = "interrupted" if is_interrupted(row) else run.status
        detail = row.error if row.error_type == GIVEN_UP else None
        if shown == "interrupted":
            detail = "the process that ran it has ended; a service that resumes interrupted runs finishes it"
        return Response(state_json(self._graph, run, shown, detail), status, None, "application/json")

    async def cancel(self, run_id: str, user: str | None) -> Response:
        """End a run now, or forget about going on with it."""
        live = await self._desk.live(run_id, user)
        if live is not None and not self._may_be_elsewhere(live):
            with anyio.move_on_after(_PATIENCE):
                await live.cancel()
            return self._response(live.run, 200 if live.done else 202)
        row = await self._desk.row(run_id, user)
        if row.status == "running" and not is_interrupted(row):
            row = await self._desk.ask_to_cancel(row, _PATIENCE)
            return await self._stored(row, 202 if row.status == "running" else 200)
        if row.status in {"running", "suspended"}:
            try:
                row = await self._desk.forget(row)
            except JournalError:
                raise Problem(409, "elsewhere", "the run goes on in another process", run_id=run_id) from None
        return await self._stored(row)

    async def go_on(
        self,
        request: Request,
        run_id: str,
        user: str | None,
        given: Mapping[str, JsonValue],
        deps: object,
        *,
        wait: bool,
    ) -> Response:
        """Give a suspended run its answers."""
        live = await self._desk.live(run_id, user)
        if self._runner.journal is None:
            text = "a suspended run goes on from its record, and this service keeps none: give its runner a journal"
            raise Problem(409, "no-journal", text, run_id=run_id)
        if live is not None and not live.done:
            raise Problem(409, "not-suspended", "the run is going on and asks nothing", run_id=run_id)
        row = await self._desk.row(run_id, user)
        if row.status != "suspended":
            raise Problem(409, "not-suspended", f"the run has {row.status} and asks nothing", run_id=run_id)
        run = await self._desk.stored(row)
        try:
            answers = self._answers(run, given)
            live = await self._runner.start_resume(run_id, graph=self._graph, answers=answers, deps=deps)
        except BusyError as error:
            raise self._busy(error) from None
        except ReplayError as error:
            raise Problem(422, "invalid", str(error), run_id=run_id) from None
        except JournalError:
            raise self._elsewhere(run_id) from None
        self._desk.keep(live)
        try:
            return await self.answer(live, request, wait=wait)
        except JournalError:
            raise self._elsewhere(run_id) from None

    @staticmethod
    def _elsewhere(run_id: str) -> Problem:
        return Problem(409, "not-suspended", "somebody else has answered already", run_id=run_id)

    @staticmethod
    def _answers(run: Run[Any, Any], given: Mapping[str, JsonValue]) -> dict[str, object]:
        asking = by_call(run.pending, given)
        kinds = {(one.key, one.tool_call_id): one.kind for one in run.pending}
        answers: dict[str, object] = {}
        for key, by_id in asking.items():
            for call_id, answer in by_id.items():
                if kinds[key, call_id] == "external" or isinstance(answer, bool):
                    answers[f"{key}:{call_id}"] = answer
                    continue
                try:
                    answers[f"{key}:{call_id}"] = ToolDenied(Denied.model_validate(answer).message)
                except ValueError:
                    text = f'the answer to `{key}:{call_id}` is true, false or {{"approved": false, "message": ...}}'
                    raise ReplayError(text) from None
        return answers

    async def score(self, run_id: str, user: str | None, given: FeedbackBody) -> None:
        """Score a run or one of its calls."""
        if await self._desk.live(run_id, user) is None:
            await self._desk.row(run_id, user)
        try:
            await feedback(run_id, given.name, given.value, key=given.key, comment=given.comment, runner=self._runner)
        except DeclarationError:
            text = "feedback is stored with the run, and this service keeps no journal and shows no traces"
            raise Problem(409, "no-journal", text, run_id=run_id) from None
        except JournalError:
            if given.key is None:
                raise
            raise Problem(404, "unknown-call", "the run has no such call", run_id=run_id) from None
