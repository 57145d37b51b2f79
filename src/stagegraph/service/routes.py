"""The endpoints of one graph: their paths, parameters and documented responses."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Query, Request, Response
from fastapi.dependencies.utils import get_dependant
from fastapi.params import Depends as Dependency
from fastapi.routing import APIRoute
from pydantic import WrapValidator

from stagegraph.nodes.node import Node
from stagegraph.runner.deps import DepsOf, unwrapped
from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import DeclarationError

from .access import Access, Policy, only_its_user
from .bodies import Health, view_type
from .endpoints import Asked, Endpoints, LastEventId, Wait
from .event_stream import EventFormat
from .problems import documented
from .repeats import Key
from .requests import route_class

_log = logging.getLogger("stagegraph.service")

Hook = Callable[..., Any]
"""A FastAPI dependency: a function whose parameters FastAPI fills in."""
Responses = dict[int | str, dict[str, Any]]
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
            _runs(graph, endpoints, route, [*_noted("session", session), *_noted("deps", deps)]),
            dependencies=[*dependencies, *_noted("user", user)],
        )
    except Exception as error:
        types = f"{graph.__node__.input_type.name} or {graph.__node__.output_type.name}"
        msg = f"{name} cannot be served: {types} has no JSON form: {error}"
        raise DeclarationError(msg) from error
    return outer


def _noted(name: str, hook: Hook | None) -> list[Dependency]:
    """A dependency that notes what a hook returns, if there is one.

    An id is noted as the text that it is in the journal: a `UUID` would match no run after a restart.
    """
    if hook is None:
        return []
    given = Depends(hook)

    async def note(request: Request, found: Any = given) -> None:
        as_it_is = name == "deps" or found is None or isinstance(found, str)
        setattr(Asked.by(request), name, found if as_it_is else str(found))

    return [Depends(note)]


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


def _runs(graph: Node[Any, Any], endpoints: Endpoints, route: type[APIRoute], begins: list[Dependency]) -> APIRouter:
    """The endpoints of runs; *begins* is for those that begin or resume one."""
    api = APIRouter(tags=[graph.__node__.name], route_class=route)
    view = view_type(graph)
    begun: Responses = {202: {"model": view, "description": "The run is running, or waits for answers."}}
    ending: Responses = {202: {"model": view, "description": "The run is still ending."}}

    async def create(request: Request, value: Any, wait: Wait = True, key: Key = None) -> Response:
        """Run the graph on the body, and wait for its output unless `wait=false`."""
        return await endpoints.create(request, value, key, wait=wait)

    async def create_stream(
        request: Request,
        value: Any,
        deltas: Annotated[bool, Query(description="Whether to send text as the models write it.")] = False,
        last_event_id: LastEventId = None,
        key: Key = None,
    ) -> Response:
        """Run the graph on the body, and send its events as they happen."""
        return await endpoints.create_stream(request, value, key, last_event_id, deltas=deltas)

    as_json = WrapValidator(lambda data, _: graph.__node__.input_type.load(data))  # FastAPI validates as Python data
    body = Annotated[graph.__node__.input_type.type, as_json, Body(description=f"The input of {graph.__node__.name}.")]
    create.__annotations__["value"] = create_stream.__annotations__["value"] = body
    starts = {**documented(409), **_REFUSED}
    api.post("/runs", response_model=view, responses={**begun, **starts}, dependencies=begins)(create)
    stream: Responses = {**_STREAM, **starts}
    api.post("/runs/stream", response_class=Response, responses=stream, dependencies=begins)(create_stream)
    api.get("/runs", responses=documented(409, 422, 503))(endpoints.listed)
    api.get("/runs/{run_id}", response_model=view, responses=documented(404, 422, 500, 503))(endpoints.read)
    followed: Responses = {**_STREAM, **documented(404, 422, 503)}
    api.get("/runs/{run_id}/events", response_class=Response, responses=followed)(endpoints.events)
    failed = documented(403, 404, 408, 409, 413, 415, 422, 503)
    cancelled: Responses = {**ending, **failed, **documented(500)}
    api.post("/runs/{run_id}/cancel", response_model=view, responses=cancelled)(endpoints.cancel)
    resumed: Responses = {**begun, **starts, **documented(404)}
    api.post("/runs/{run_id}/answers", response_model=view, responses=resumed, dependencies=begins)(endpoints.answers)
    api.post("/runs/{run_id}/feedback", status_code=204, responses=failed)(endpoints.score)
    api.get("/graph")(endpoints.declared)
    return api
