"""What each endpoint does, in terms of runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import anyio.to_thread
from fastapi import Depends, Header, Path, Query, Request, Response
from pydantic import JsonValue, ValidationError
from pydantic_ai import ToolDenied

from stagegraph.data.call import GIVEN_UP
from stagegraph.record.calls import rows_so_far
from stagegraph.record.deferred import by_call
from stagegraph.record.rows import CORRECTION, RunRow
from stagegraph.record.run import ReplayError, RunError, run_of, stored_run
from stagegraph.record.source import corrected
from stagegraph.runner.feedback import feedback
from stagegraph.runner.live import LiveRun
from stagegraph.runner.recovery import give_up
from stagegraph.schema.errors import DeclarationError, JournalError, problems_of

from .bodies import Answers, Denied, FeedbackBody, GraphInfo, graph_info, run_json
from .event_stream import EventFormat, EventStream, cancel_if_left, last_seen
from .listing import RunList, Wanted, list_runs
from .problems import Problem, problem_of_run
from .repeats import Repeatable

if TYPE_CHECKING:
    from stagegraph.data.call import Pending
    from stagegraph.nodes.node import Node
    from stagegraph.record.rows import CallRow
    from stagegraph.runner.options import RunOptions

    from .access import Access

_log = logging.getLogger("stagegraph.service")
T = TypeVar("T")

RunId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:~-]{1,128}$", description="The run's id.")]
Wait = Annotated[bool, Query(description="Whether to respond when the run has ended; otherwise 202 at once.")]
After = Annotated[
    str, Query(pattern=r"^(-1|([0-9]{1,9}-)?[0-9]{1,16})$", description="The id of the last event that the client has.")
]
LastEventId = Annotated[str | None, Header(description="The id of the last event that the client has.")]

_CANCEL_SECONDS = 10.0
"""Seconds that a cancelled run has to clean up before the response says that it is still ending."""


@dataclass(slots=True)
class Asked:
    """Who sends a request, and with what a run begins or goes on, as the hooks of the router say."""

    user: str | None = None
    session: str | None = None
    deps: object = None

    @classmethod
    def by(cls, request: Request) -> Asked:
        return request.scope.setdefault("stagegraph.asked", cls())


class Endpoints:
    """The requests about the runs of one graph.

    Args:
        access: Finds runs, and checks who may see them.
        format: How events are sent.
        cancels: Whether a run is cancelled when the client that waits for it leaves.
    """

    def __init__(self, access: Access, format: EventFormat, *, cancels: bool) -> None:  # noqa: A002
        self._access = access
        self._graph = access.graph
        self._runner = access.runner
        self._format = format
        self._cancels = cancels

    async def create(self, request: Request, value: object, key: str | None, *, wait: bool) -> Response:
        """Run the graph, and respond with the state of the run."""
        return await self._answer(await self._start(request, value, key), request, wait=wait, keyed=key is not None)

    async def create_stream(
        self, request: Request, value: object, key: str | None, last_id: str | None, *, deltas: bool
    ) -> Response:
        """Run the graph, and respond with the events of the run; a repeated request may have had some of them."""
        live = await self._start(request, value, key, deltas=deltas)
        last_id = None if key is None else last_id
        if isinstance(live, RunRow):
            return await self.events(request, live.run_id, last_event_id=last_id)
        await live.recorded()

        def leave() -> None:
            if self._cancels and key is None and not live.done:
                live.task.cancel()

        return EventStream(self._format.live(live, last_seen(last_id)), live.run_id, on_leave=leave)

    async def _start(
        self, request: Request, value: object, key: str | None, *, deltas: bool = False
    ) -> LiveRun[Any, Any] | RunRow:
        """Start a run, or find the one that an earlier request with the same key has started."""
        asked = Asked.by(request)
        options: RunOptions = {"user_id": asked.user, "session_id": asked.session}
        found = repeatable = None
        if key is not None:
            repeatable = await Repeatable.of(request, key, self._graph.__node__.name, asked.user)
            found = await self._access.repeated(repeatable, asked.user)
            options |= {"run_id": repeatable.run_id, "metadata": repeatable.metadata}
        if isinstance(found, RunRow):
            return found
        live = found or self._runner.start(self._graph, value, deps=asked.deps, deltas=deltas, **options)
        if repeatable is not None:
            try:
                await live.recorded()
            except JournalError:
                begun = await self._access.repeated(repeatable, asked.user)
                if isinstance(begun, RunRow):
                    return begun  # by another process, which was faster
                raise
        if found is None:
            self._access.keep(live)
        return live

    async def _answer(
        self, found: LiveRun[Any, Any] | RunRow, request: Request, *, wait: bool, keyed: bool = False
    ) -> Response:
        """The state of a run that was started: at its end, or as soon as it is in the journal.

        A *keyed* run is not cancelled when its client leaves, which may come back with the same key.
        """
        if isinstance(found, LiveRun):
            await found.recorded()
        if not wait:
            return await self._state(found, 202, request)
        if isinstance(found, RunRow):  # another process, or an earlier one, has started it
            found = await _until_left(self._access.end_of(found), request) or found
            if found.status in {"failed", "cancelled"}:
                raise problem_of_run(await stored_run(self._access.journal, found, self._graph))
            return await self._state(found, 200 if found.status == "succeeded" else 202, request)
        if self._cancels and not keyed:
            await _until_left(asyncio.wait([found.task]), request)
            if not found.done:
                await found.cancel()
        try:
            run = await found.result()
        except RunError as error:
            _log.info("run %s failed: %s", found.run_id, type(error).__name__)
            raise problem_of_run(error.run, ready=self._runner.ready) from None
        return await self._state(found, 202 if run.status == "suspended" else 200, request)

    async def listed(self, request: Request, wanted: Annotated[Wanted, Depends()]) -> RunList:
        """The runs that the user may see, the newest first, a page at a time."""
        return await list_runs(self._access, Asked.by(request).user, wanted)

    async def read(self, request: Request, run_id: RunId) -> Response:
        """The state of a run, with its output if it has one."""
        return await self._state(await self._access.find(run_id, Asked.by(request).user), 200)

    async def events(
        self, request: Request, run_id: RunId, after: After = "-1", last_event_id: LastEventId = None
    ) -> Response:
        """The events of a run from its beginning, or after the last one that the client has.

        Those of a run of another process come from the journal.
        """
        found, live = await self._access.find(run_id, Asked.by(request).user), self._access.here(run_id)
        seen = last_seen(last_event_id, after)
        if live is not None and live.segment == found.segment:
            return EventStream(self._format.live(live, seen), run_id)
        return EventStream(self._format.recorded(self._access.events(found), seen, self._runner.live), run_id)

    async def cancel(self, request: Request, run_id: RunId) -> Response:
        """Cancel a run, in whichever process it is; a run that has ended stays as it is."""
        found = await self._access.find(run_id, Asked.by(request).user)
        ended = True
        if isinstance(found, LiveRun):
            with anyio.move_on_after(_CANCEL_SECONDS):
                await found.cancel()
            ended = found.done
        elif found.shown_status == "running":
            found = await self._access.ask_to_cancel(found, _CANCEL_SECONDS)
            ended = found.status != "running"
        elif found.status in {"running", "suspended"}:
            try:
                found = await give_up(self._access.journal, found, "cancelled")
            except JournalError:
                raise Problem(409, "elsewhere", "another process runs the run now", run_id=run_id) from None
        return await self._state(found, 200 if ended else 202)

    async def answers(self, request: Request, run_id: RunId, given: Answers, wait: Wait = True) -> Response:
        """Answer what a suspended run waits for, and resume it."""
        if self._runner.journal is None:
            text = "a suspended run is resumed from its record, and this service has none: give its runner a journal"
            raise Problem(409, "no-journal", text, run_id=run_id)
        row = await self._access.find(run_id, Asked.by(request).user)
        if isinstance(row, LiveRun) or row.status != "suspended":
            status = row.run.status if isinstance(row, LiveRun) else row.status
            raise Problem(409, "not-suspended", f"its status is {status}: it waits for no answer", run_id=run_id)
        run = await stored_run(self._runner.journal, row, self._graph)
        try:
            named = _answers(run.pending, given.answers)
            live = await self._runner.start_resume(
                run_id, graph=self._graph, answers=named, deps=Asked.by(request).deps
            )
            self._access.keep(live)
            return await self._answer(live, request, wait=wait)
        except ReplayError as error:
            raise Problem(422, "invalid", str(error), run_id=run_id) from None
        except JournalError:
            raise Problem(409, "not-suspended", "another request has answered it already", run_id=run_id) from None

    async def score(self, request: Request, run_id: RunId, given: FeedbackBody) -> None:
        """Score a run, or one call of it."""
        await self._access.find(run_id, Asked.by(request).user)
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
        """Refuse a correction that could never become an expected output."""
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

    async def declared(self) -> GraphInfo:
        """What the graph declares: its nodes, its types, and a drawing in Mermaid."""
        return graph_info(self._graph)

    async def _state(self, found: LiveRun[Any, Any] | RunRow, status: int, request: Request | None = None) -> Response:
        """A run's state, which a thread writes unless it is little."""
        if isinstance(found, LiveRun):
            run = found.progress
            _ = run.usage  # counted here: the calls of a run that goes on belong to the event loop
            write = partial(run_json, self._graph, run, run.status)
        else:
            write = partial(_stored_json, self._graph, *await rows_so_far(self._access.journal, found))
        content = write() if self._access.is_little(found) else await anyio.to_thread.run_sync(write)
        headers: dict[str, str] = {}
        if status == 202 and request is not None:  # noqa: PLR2004
            headers["Location"] = f"{request.url.path.rpartition('/runs')[0]}/runs/{found.run_id}"
        return Response(content, status, headers, "application/json")


async def _until_left(awaitable: Awaitable[T], request: Request) -> T | None:
    """Wait for something, or until the client of a request leaves."""
    with anyio.CancelScope() as scope:
        leaving = asyncio.create_task(cancel_if_left(request.receive, scope))
        try:
            return await awaitable
        finally:
            leaving.cancel()
    return None


def _stored_json(graph: Node[Any, Any], row: RunRow, calls: list[CallRow]) -> bytes:
    detail = row.error if row.error_type == GIVEN_UP else None
    if row.interrupted:
        detail = "the process that ran it has ended; a service that resumes interrupted runs finishes it"
    return run_json(graph, run_of(row, calls, [], graph), row.shown_status, detail)


def _answers(pending: tuple[Pending, ...], given: Mapping[str, JsonValue]) -> dict[str, object]:
    """The answers as `Runner.resume` takes them."""
    approvals = {one.id for one in pending if one.kind == "approval"}
    by_key = by_call(pending, given)
    named = {f"{key}:{call_id}": answer for key, by_id in by_key.items() for call_id, answer in by_id.items()}
    return {name: _approval(name, answer) if name in approvals else answer for name, answer in named.items()}


def _approval(question: str, answer: object) -> bool | ToolDenied:
    try:
        return answer if isinstance(answer, bool) else ToolDenied(Denied.model_validate(answer).message)
    except ValueError:
        msg = f'the answer to `{question}` is true, false or {{"approved": false, "message": ...}}'
        raise ReplayError(msg) from None
