"""The endpoints of one graph: their paths, parameters and documented responses."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request, Response
from fastapi.dependencies.utils import get_dependant
from fastapi.params import Depends as Dependency
from fastapi.routing import APIRoute
from pydantic import WrapValidator

from stagegraph.nodes.node import Node
from stagegraph.runner.deps import DepsOf, unwrapped
from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import DeclarationError

from .access import Access, Policy, only_its_user
from .bodies import Answers, FeedbackBody, GraphInfo, Health, graph_info, view_type
from .endpoints import Asked, Endpoints
from .event_stream import EventFormat
from .listing import RunList, Wanted, list_runs
from .problems import documented
from .repeats import Key, Repeatable
from .requests import route_class

_log = logging.getLogger("stagegraph.service")

Hook = Callable[..., Any]
"""A FastAPI dependency: a function whose parameters FastAPI fills in."""
Responses = dict[int | str, dict[str, Any]]
RunId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:~-]{1,128}$", description="The run's id.")]
Wait = Annotated[bool, Query(description="Whether to respond when the run has ended; otherwise 202 at once.")]
After = Annotated[
    str, Query(pattern=r"^(-1|([0-9]{1,9}-)?[0-9]{1,16})$", description="The id of the last event that the client has.")
]
LastEventId = Annotated[str | None, Header(description="The id of the last event that the client has.")]

_EVENT = {
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {
            "type": "string",
            "description": "The value of `Last-Event-ID` or `after` to continue after this event.",
        },
        "event": {"type": "string", "description": "The event's type."},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": {"type": "object"}},
    },
}
_STREAM: Responses = {
    200: {"description": "The events of the run.", "content": {"text/event-stream": {"schema": _EVENT}}}
}
_REFUSED = documented(403, 408, 413, 415, 422, 429, 500, 502, 503, 504)


async def _none() -> None:
    """The value of a hook that is not given."""


def router(
    graph: Node[Any, Any],
    runner: Runner,
    *,
    user: Hook | Dependency | None = None,
    session: Hook | Dependency | None = None,
    deps: Hook | Dependency | None = None,
    policy: Policy = only_its_user,
    dependencies: Sequence[Dependency] = (),
    resume_deps: DepsOf | Literal["never"] | None = None,
    on_disconnect: Literal["continue", "cancel"] = "continue",
    max_body: int = 1_000_000,
    heartbeat: float = 15.0,
    body_seconds: float = 30.0,
    remember: int = 100,
    remember_bytes: int = 100_000_000,
    errors: bool = False,
) -> APIRouter:
    """The endpoints of a graph, to include in an app: `app.include_router(router(Graph(), runner), prefix="/graph")`.

    Args:
        graph: What is served.
        runner: What runs it; its `lifespan` belongs to the app.
        user: A FastAPI dependency that returns the id of the user (converted to `str`), or raises `HTTPException(401)`.
        session: A dependency that returns the id of the conversation that a run is part of.
        deps: A dependency that returns the `deps` of a run. It should not `yield`: a run may outlive its request.
        policy: Who may see a run and act on it; by default the user who started it.
        dependencies: Further dependencies, for every endpoint except the health checks.
        resume_deps: A function, plain or async, that makes the deps of an interrupted run from its row in the journal
            (`row.run_id`, `row.read_labels().user_id`), since there is no request then; `"never"` leaves interrupted
            runs of this graph alone.
        on_disconnect: Whether a run continues when the client that waits for it, or streams it, leaves.
        max_body: The largest body in bytes.
        heartbeat: Seconds of silence after which an event stream sends a comment.
        body_seconds: How long a client may take to send a body.
        remember: How many ended runs keep their events.
        remember_bytes: How much memory these may take, about; older ones are forgotten, and read from the journal.
        errors: Whether events contain the texts of errors, which may include parts of prompts, inputs and provider
            answers.

    Raises:
        DeclarationError: the graph's types have no JSON form; the runner serves another graph of that name; or the
            runner resumes interrupted runs, and *resume_deps* is missing.
    """
    name = graph.__node__.name
    user, session, deps = (one.dependency if isinstance(one, Dependency) else one for one in (user, session, deps))
    if deps is not None and (closed := _yields(deps)) is not None:
        _log.warning(
            "router(%s(), deps=...): `%s` yields, so it is closed when its request ends, and a run may outlive "
            "its request (`wait=false`, or a client that left): return something that lives as long as the app, such "
            "as a pool, and open the session in the step that needs it",
            name,
            closed,
        )
    if deps is not None and resume_deps is None and runner.resumes_interrupted:
        msg = (
            f"router({name}(), deps=...) on a Runner(resume_interrupted=True): interrupted runs are resumed without a "
            'request: pass a function that makes their deps, `resume_deps=`, or leave them alone, `resume_deps="never"`'
        )
        raise DeclarationError(msg)
    runner.add(graph, deps_of=resume_deps)
    access = Access(graph, runner, policy, remember, remember_bytes)
    endpoints = Endpoints(access, EventFormat(runner.journal, heartbeat, errors), cancels=on_disconnect == "cancel")
    route = route_class(runner, max_body, body_seconds)
    outer = APIRouter(route_class=route)
    outer.include_router(_health(runner, route))
    try:
        outer.include_router(
            _runs(graph, endpoints, route, user=user or _none, session=session or _none, deps=deps or _none),
            dependencies=[*dependencies, *([Depends(user)] if user is not None else [])],
        )
    except Exception as error:
        types = f"{graph.__node__.input_type.name} or {graph.__node__.output_type.name}"
        msg = f"{name} cannot be served: {types} has no JSON form: {error}"
        raise DeclarationError(msg) from error
    return outer


def _id_of(hook: Hook) -> Hook:
    """The id that a hook returns as text, as it is in the journal: a `UUID` would match no run after a restart."""
    given = Depends(hook)

    async def text(found: Any = given) -> str | None:
        return found if found is None or isinstance(found, str) else str(found)

    return text


def _yields(hook: Hook) -> str | None:
    """The hook, or one that it depends on, that is a generator: FastAPI closes it after the request."""
    waiting = [get_dependant(path="", call=hook)]
    for one in waiting:
        call: Any = one.call
        if any(inspect.isgeneratorfunction(part) or inspect.isasyncgenfunction(part) for part in unwrapped(call)):
            return getattr(call, "__name__", None) or type(call).__name__
        waiting += one.dependencies
    return None


def _health(runner: Runner, route: type[APIRoute]) -> APIRouter:
    api = APIRouter(prefix="/health", tags=["health"], route_class=route)

    @api.get("/live")
    async def alive() -> Health:
        """Whether the process answers."""
        return Health(status="alive")

    @api.get("/ready", responses={503: {"model": Health}})
    async def ready(response: Response) -> Health:
        """Whether new runs are accepted; false as soon as a shutdown is requested."""
        response.status_code = 200 if runner.ready else 503
        return Health(status="ready" if runner.ready else "draining")

    return api


def _asked(graph: str, who: Any, in_session: Any, with_deps: Any) -> Hook:
    """A dependency: who asks for a run, and with what."""

    async def asked(
        request: Request, key: Key = None, user_id: Any = who, session_id: Any = in_session, run_deps: Any = with_deps
    ) -> Asked:
        repeatable = None if key is None else await Repeatable.of(request, key, graph, user_id)
        return Asked(user_id, session_id, run_deps, repeatable)

    return asked


def _runs(
    graph: Node[Any, Any], endpoints: Endpoints, route: type[APIRoute], *, user: Hook, session: Hook, deps: Hook
) -> APIRouter:
    api = APIRouter(tags=[graph.__node__.name], route_class=route)
    view = view_type(graph)
    begins: Responses = {202: {"model": view, "description": "The run is running, or waits for answers."}}
    who, with_deps = Depends(_id_of(user)), Depends(deps)
    by = Depends(_asked(graph.__node__.name, who, Depends(_id_of(session)), with_deps))

    async def create(request: Request, value: Any, wait: Wait = True, asked: Any = by) -> Response:
        """Run the graph on the body, and wait for its output unless `wait=false`."""
        live = await endpoints.start(value, asked)
        return await endpoints.answer(live, request, wait=wait, keyed=asked.repeatable is not None)

    async def create_stream(
        value: Any,
        deltas: Annotated[bool, Query(description="Whether to send text as the models write it.")] = False,
        last_event_id: LastEventId = None,
        asked: Any = by,
    ) -> Response:
        """Run the graph on the body, and send its events as they happen."""
        live = await endpoints.start(value, asked, deltas=deltas)
        return await endpoints.streamed(live, asked, None if asked.repeatable is None else last_event_id)

    as_json = WrapValidator(lambda data, _: graph.__node__.input_type.load(data))  # FastAPI validates as Python data
    body = Annotated[graph.__node__.input_type.type, as_json, Body(description=f"The input of {graph.__node__.name}.")]
    create.__annotations__["value"] = create_stream.__annotations__["value"] = body
    api.post("/runs", response_model=view, responses={**begins, **documented(409), **_REFUSED})(create)
    api.post("/runs/stream", response_class=Response, responses={**_STREAM, **documented(409), **_REFUSED})(
        create_stream
    )

    @api.get("/runs", responses=documented(409, 422, 503))
    async def listed(wanted: Annotated[Wanted, Depends()], user_id: Any = who) -> RunList:
        """The runs that the user may see, the newest first, a page at a time."""
        return await list_runs(endpoints.access, user_id, wanted)

    @api.get("/runs/{run_id}", response_model=view, responses=documented(404, 422, 500, 503))
    async def read(run_id: RunId, user_id: Any = who) -> Response:
        """The state of a run, with its output if it has one."""
        return await endpoints.state(run_id, user_id)

    @api.get("/runs/{run_id}/events", response_class=Response, responses={**_STREAM, **documented(404, 422, 503)})
    async def events(
        run_id: RunId, after: After = "-1", last_event_id: LastEventId = None, user_id: Any = who
    ) -> Response:
        """The events of a run from its beginning, or after the last one that the client has."""
        return await endpoints.events(run_id, user_id, last_event_id, after)

    ending: Responses = {202: {"model": view, "description": "The run is still ending."}}
    failed = documented(403, 404, 408, 409, 413, 415, 422, 500, 503)

    @api.post("/runs/{run_id}/cancel", response_model=view, responses={**ending, **failed})
    async def cancel(run_id: RunId, user_id: Any = who) -> Response:
        """Cancel a run, in whichever process it is; a run that has ended stays as it is."""
        return await endpoints.cancel(run_id, user_id)

    @api.post("/runs/{run_id}/answers", response_model=view, responses={**begins, **documented(404, 409), **_REFUSED})
    async def answers(  # noqa: PLR0917
        request: Request,
        run_id: RunId,
        given: Answers,
        wait: Wait = True,
        user_id: Any = who,
        run_deps: Any = with_deps,
    ) -> Response:
        """Answer what a suspended run waits for, and resume it."""
        return await endpoints.resume(request, run_id, user_id, given.answers, run_deps, wait=wait)

    @api.post("/runs/{run_id}/feedback", status_code=204, responses=documented(403, 404, 408, 409, 413, 415, 422, 503))
    async def score(run_id: RunId, given: FeedbackBody, user_id: Any = who) -> None:
        """Score a run, or one call of it."""
        await endpoints.score(run_id, user_id, given)

    @api.get("/graph")
    async def declared() -> GraphInfo:
        """What the graph declares: its nodes, its types, and a drawing in Mermaid."""
        return graph_info(graph)

    return api
