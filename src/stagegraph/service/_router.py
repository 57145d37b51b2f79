"""The endpoints of one graph."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Body, Depends, Header, Path, Query, Request, Response
from fastapi.params import Depends as Dependency
from pydantic import WrapValidator

from stagegraph import DeclarationError, Node, Runner
from stagegraph.runner.recovery import DepsOf

from ._access import Desk, Policy, only_its_user
from ._answer import Answers, FeedbackBody, GraphInfo, Health, answer_type, graph_info
from ._handling import Handling
from ._problems import documented
from ._route import route_class

__all__ = ["router"]

_log = logging.getLogger("stagegraph.service")

Hook = Callable[..., Any]
RunId = Annotated[str, Path(pattern=r"^[A-Za-z0-9_.:~-]{1,128}$", description="The run's id.")]
Wait = Annotated[bool, Query(description="Whether to answer when the run has ended; otherwise 202 at once.")]
After = Annotated[int, Query(ge=-1, le=2**53, description="Only events with a higher number.")]
LastEventId = Annotated[str | None, Header(description="The id of the last event that the client has.")]

_EVENT = {
    "type": "object",
    "required": ["id", "event", "data"],
    "properties": {
        "id": {"type": "string", "description": "What to send as `Last-Event-ID` to go on after this event."},
        "event": {"type": "string", "description": "The event's type."},
        "data": {"type": "string", "contentMediaType": "application/json", "contentSchema": {"type": "object"}},
    },
}


async def _nobody() -> None:
    """The value of a hook that is not given."""


def router(
    graph: Node[Any, Any],
    runner: Runner,
    *,
    user: Hook | None = None,
    session: Hook | None = None,
    deps: Hook | None = None,
    policy: Policy = only_its_user,
    dependencies: Sequence[Dependency] = (),
    resume_deps: DepsOf | Literal["never"] | None = None,
    on_disconnect: Literal["continue", "cancel"] = "continue",
    max_body: int = 1_000_000,
    heartbeat: float = 15.0,
    remember: int = 100,
    errors: bool = False,
) -> APIRouter:
    """The endpoints of a graph, to include in an app: `app.include_router(router(Graph(), runner), prefix="/graph")`.

    Args:
        graph: What is served.
        runner: What runs it; its `lifespan` belongs to the app.
        user: A FastAPI dependency that gives the id of who asks (what is no `str` is made one), or raises
            `HTTPException(401)`.
        session: A dependency that gives the id of the conversation that a run is part of.
        deps: A dependency that gives the `deps` of a run; better none that `yield`s: a run may outlive its request.
        policy: Who may see a run and act on it; by default the user who started it.
        dependencies: More of them, for every endpoint but the health checks.
        resume_deps: What makes the deps of a run that was interrupted, out of its row in the journal, since there is no
            request then; `"never"` leaves interrupted runs of this graph alone.
        on_disconnect: Whether a run goes on when the client that waits for it, or that streams it, has left.
        max_body: Bytes that a body may have.
        heartbeat: Seconds of silence after which an event stream says that it is still there.
        remember: How many ended runs keep their events.
        errors: Whether events say what an error said. That may hold parts of prompts, inputs and provider answers.

    Raises:
        DeclarationError: the graph's types have no JSON form; the runner serves another graph of that name; or the
            runner has to finish interrupted runs, and nothing says with which deps.
    """
    if deps is not None and _yields(deps):
        _log.warning(
            "router(%s(), deps=...): what `yield`s is closed when its request ends, and a run may outlive its request "
            "(`wait=false`, or a client that left): give something that lives as long as the app, such as a pool, and "
            "open the session in the step that needs it",
            graph.__node__.name,
        )
    if deps is not None and resume_deps is None and runner.resumes_interrupted:
        msg = (
            f"router({graph.__node__.name}(), deps=...) on a Runner(resume_interrupted=True): runs that were interrupted go on "
            'without a request: say what makes their deps, `resume_deps=`, or leave them alone, `resume_deps="never"`'
        )
        raise DeclarationError(msg)
    runner.add(graph, deps_of=resume_deps)
    handling = Handling(
        Desk(graph, runner, policy, remember), on_disconnect == "cancel", heartbeat=heartbeat, errors=errors
    )
    outer = APIRouter(route_class=route_class(max_body))
    outer.include_router(_health(runner, max_body))
    try:
        outer.include_router(
            _runs(graph, handling, user or _nobody, session or _nobody, deps or _nobody, max_body),
            dependencies=[*dependencies, *([Depends(user)] if user is not None else [])],
        )
    except Exception as error:
        msg = f"{graph.__node__.name} cannot be served: {graph.__node__.input_type.name} or {graph.__node__.output_type.name} has no JSON form: {error}"
        raise DeclarationError(msg) from error
    return outer


def _id_of(hook: Hook) -> Hook:
    """The same id as a text, which it is in the journal: a `UUID` would be nobody's after a restart."""
    given = Depends(hook)

    async def text(found: Any = given) -> str | None:
        return found if found is None or isinstance(found, str) else str(found)

    return text


def _yields(hook: Hook) -> bool:
    """Whether FastAPI closes what a hook gives; it looks through decorators, too."""
    plain = inspect.unwrap(hook)
    call = getattr(plain, "__call__", None)  # noqa: B004 - of an object, whose own generator this may be
    return any(map(inspect.isgeneratorfunction, (hook, plain, call))) or any(
        map(inspect.isasyncgenfunction, (hook, plain, call))
    )


def _health(runner: Runner, max_body: int) -> APIRouter:
    api = APIRouter(prefix="/health", tags=["health"], route_class=route_class(max_body))

    @api.get("/live")
    async def alive() -> Health:
        """Whether the process answers."""
        return Health(status="alive")

    @api.get("/ready", responses={503: {"model": Health}})
    async def ready(response: Response) -> Health:
        """Whether new runs may begin; not any more from the moment at which a shutdown is asked for."""
        response.status_code = 200 if runner.ready else 503
        return Health(status="ready" if runner.ready else "draining")

    return api


def _runs(  # noqa: PLR0917
    graph: Node[Any, Any], handling: Handling, user: Hook, session: Hook, deps: Hook, max_body: int
) -> APIRouter:
    api = APIRouter(tags=[graph.__node__.name], route_class=route_class(max_body))
    state = answer_type(graph)
    begins = {202: {"model": state, "description": "The run goes on, or asks something."}}
    refused = documented(413, 415, 422, 429, 500, 502, 503, 504)
    stream: dict[int | str, dict[str, Any]] = {
        200: {"description": "The events of the run.", "content": {"text/event-stream": {"schema": _EVENT}}}
    }
    who, in_session, with_deps = Depends(_id_of(user)), Depends(_id_of(session)), Depends(deps)

    async def create(  # noqa: PLR0917 - FastAPI gives them by name
        request: Request,
        value: Any,
        wait: Wait = True,
        user_id: Any = who,
        session_id: Any = in_session,
        run_deps: Any = with_deps,
    ) -> Response:
        """Run the graph on the body, and wait for its output unless `wait=false`."""
        live = handling.start(value, user_id, session_id, run_deps)
        return await handling.answer(live, request, wait=wait)

    async def create_stream(
        value: Any,
        deltas: Annotated[bool, Query(description="Whether to send text as the models write it.")] = False,
        user_id: Any = who,
        session_id: Any = in_session,
        run_deps: Any = with_deps,
    ) -> Response:
        """Run the graph on the body, and send its events as they happen."""
        live = handling.start(value, user_id, session_id, run_deps, deltas=deltas)
        return await handling.streamed(live)

    as_json = WrapValidator(lambda data, _: graph.__node__.input_type.load(data))  # FastAPI takes it for Python data
    body = Annotated[graph.__node__.input_type.type, as_json, Body(description=f"What {graph.__node__.name} takes.")]
    create.__annotations__["value"] = create_stream.__annotations__["value"] = body
    api.post("/runs", response_model=state, responses={**begins, **documented(409), **refused})(create)
    api.post("/runs/stream", response_class=Response, responses={**stream, **refused})(create_stream)

    @api.get("/runs/{run_id}", response_model=state, responses=documented(404, 422, 500, 503))
    async def read(run_id: RunId, user_id: Any = who) -> Response:
        """A run as it stands, with its output when it has one."""
        return await handling.state(run_id, user_id)

    @api.get("/runs/{run_id}/events", response_class=Response, responses={**stream, **documented(404, 422, 503)})
    async def events(
        run_id: RunId, after: After = -1, last_event_id: LastEventId = None, user_id: Any = who
    ) -> Response:
        """The events of a run from its beginning, or after the last one that the client has."""
        return await handling.events(run_id, user_id, after, last_event_id)

    ending: dict[int | str, dict[str, Any]] = {202: {"model": state, "description": "The run is still ending."}}
    left = documented(404, 409, 413, 415, 422, 500, 503)

    @api.post("/runs/{run_id}/cancel", response_model=state, responses={**ending, **left})
    async def cancel(run_id: RunId, user_id: Any = who) -> Response:
        """End a run now, in whichever process it is; one that has ended stays as it is."""
        return await handling.cancel(run_id, user_id)

    @api.post("/runs/{run_id}/answers", response_model=state, responses={**begins, **documented(404, 409), **refused})
    async def answers(  # noqa: PLR0917
        request: Request,
        run_id: RunId,
        given: Answers,
        wait: Wait = True,
        user_id: Any = who,
        run_deps: Any = with_deps,
    ) -> Response:
        """Answer what a suspended run asks, and go on with it."""
        return await handling.go_on(request, run_id, user_id, given.answers, run_deps, wait=wait)

    @api.post("/runs/{run_id}/feedback", status_code=204, responses=documented(404, 409, 413, 415, 422, 503))
    async def score(run_id: RunId, given: FeedbackBody, user_id: Any = who) -> None:
        """Score a run, or one call of it."""
        await handling.score(run_id, user_id, given)

    @api.get("/graph")
    async def declared() -> GraphInfo:
        """What the graph declares: its nodes, its types, and a drawing in Mermaid."""
        return graph_info(graph)

    return api
