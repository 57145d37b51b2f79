"""Errors as problem details (RFC 9457): what happened and what to do, never a stack trace or a prompt."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping
from typing import Any

from fastapi import Response
from fastapi.exceptions import RequestValidationError
from pydantic_ai.exceptions import AgentRunError, ModelAPIError
from starlette.exceptions import HTTPException as StarletteHTTPException

from stagegraph.agent.failures import causes
from stagegraph.record.rows import DamagedError
from stagegraph.record.run import InputError, LimitError, Run, RunError
from stagegraph.schema.errors import BusyError, JournalError, StageError

_log = logging.getLogger("stagegraph.service")

MEDIA_TYPE = "application/problem+json"
_UNPARSED = (400, "There was an error parsing the body")
"""The status and the detail of FastAPI's error for a body that it cannot parse."""
_FACTS = {"type": "string", "title": "string", "status": "integer", "detail": "string", "run_id": "string"}
_SCHEMA = {
    "type": "object",
    "title": "Problem details",
    "required": ["type", "title", "status"],
    "properties": {
        **{name: {"type": kind} for name, kind in _FACTS.items()},
        "errors": {"type": "array", "items": {"type": "object"}},
    },
}
_TITLES = {
    400: "The request cannot be understood",
    401: "Authentication is required",
    403: "This is not allowed",
    404: "There is no such run or call",
    405: "The method is not possible here",
    408: "The body did not come",
    409: "The run is in another state",
    413: "The body is too large",
    415: "The body is not JSON",
    422: "The request is not valid",
    429: "Too many runs at once",
    500: "The run failed",
    502: "A model failed",
    503: "The service cannot run this now",
    504: "The run took too long",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses with these statuses, for the OpenAPI document."""
    return {s: {"description": _TITLES[s], "content": {MEDIA_TYPE: {"schema": _SCHEMA}}} for s in statuses}


class Problem(Exception):  # noqa: N818 - the name that the RFC gives it
    """An error response.

    Args:
        status: The HTTP status.
        kind: What it is, for programs: the end of the problem's `type`.
        detail: What it is, for people.
        headers: Headers of the response.
        more: Further members of the problem's JSON.
    """

    def __init__(
        self, status: int, kind: str, detail: str, *, headers: Mapping[str, str] | None = None, **more: object
    ) -> None:
        super().__init__(detail)
        self.status = status
        self.kind = kind
        self.detail = detail
        self.headers = dict(headers or {})
        self.more = more

    def response(self) -> Response:
        """The problem as a response."""
        body = {
            "type": f"urn:stagegraph:problem:{self.kind}",
            "title": _TITLES.get(self.status, "The request failed"),
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        return Response(json.dumps(body), self.status, self.headers, MEDIA_TYPE)


def problem_of(error: Exception, *, ready: bool) -> Problem:
    """The response to an error that is not the failure of a run; *ready* is whether the runner accepts runs."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        errors = [{"pointer": _pointer(one["loc"]), "detail": str(one["msg"])} for one in error.errors()]
        return Problem(422, "invalid", "the request is not valid: see `errors`", errors=errors[:20])
    if isinstance(error, StarletteHTTPException):
        if isinstance(error.__cause__, Problem):  # raised while FastAPI read the body
            return error.__cause__
        if is_unparsed_body(error):
            return Problem(422, "invalid", "the body is not readable JSON")
        return Problem(error.status_code, "refused", str(error.detail), headers=error.headers)
    if isinstance(error, BusyError):
        after = {"Retry-After": str(math.ceil(error.retry_after))}
        if ready:
            return Problem(429, "busy", "the limit of concurrent runs is reached; try again later", headers=after)
        return Problem(503, "draining", "the service is shutting down", headers=after)
    if isinstance(error, DamagedError):
        _log.error("%s", error)
        return Problem(500, "damaged", "the record of this run is damaged; the log says where")
    if isinstance(error, JournalError):
        _log.error("the journal failed: %s", error)
        return Problem(503, "journal", "the service cannot record runs now; try again later")
    _log.error("a request failed", exc_info=error)
    return Problem(500, "internal", "the service failed; its log has the details")


def is_unparsed_body(error: Exception) -> bool:
    """Whether this is FastAPI's error for a body that it cannot parse; a hook may raise the same status as well."""
    return (
        isinstance(error, StarletteHTTPException)
        and (error.status_code, error.detail) == _UNPARSED
        and isinstance(error.__cause__, (Problem, ValueError, RecursionError))
    )


def _pointer(place: tuple[int | str, ...]) -> str:
    """The place in the request: `body/spec/text`."""
    return "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in place)


def problem_of_run(error: RunError, run_id: str, *, ready: bool) -> Problem:
    """The response to a run without an output, by what its caller can do about it."""
    if error.attached and error.run.status == "cancelled":
        if ready:
            return Problem(409, "cancelled", "the run was cancelled", run_id=run_id)
        text = "the service is shutting down; it resumes the run after its restart, if it has a journal"
        return Problem(503, "interrupted", text, headers={"Retry-After": "5"}, run_id=run_id)
    _log.info("run %s failed: %s", run_id, type(error).__name__)
    if isinstance(error, InputError):
        return Problem(422, "invalid", "the input does not fit the input type of the graph", run_id=run_id)
    if isinstance(error, LimitError):
        if error.timed_out:
            return Problem(504, "timeout", "the run exceeded its time limit", run_id=run_id)
        return Problem(500, "limit", "the run reached a limit of what it may spend", run_id=run_id)
    failures = error.failures
    place = f" at `{failures[0].key}`" if failures and failures[0].key else ""
    found = list(causes(error))
    if any(isinstance(cause, TimeoutError) for cause in found):
        return Problem(504, "timeout", f"a call exceeded its time limit{place}", run_id=run_id)
    if any(isinstance(cause, (ModelAPIError, AgentRunError)) for cause in found):
        return Problem(502, "model", f"a model gave no usable answer{place}", run_id=run_id)
    who = "stage" if any(isinstance(cause, StageError) for cause in found) else "run"
    return Problem(500, "failed", f"the {who} failed{place}", run_id=run_id)


def problem_of_record(run: Run[Any, Any]) -> Problem:
    """The same from the record of a run, which has the names of errors."""
    failures = run.failures()
    error = failures[0].error if failures else run.error
    place = f" at `{failures[0].key}`" if failures and failures[0].key else ""
    kind = "" if run.error is None else run.error.type
    if run.status == "cancelled":
        return Problem(409, "cancelled", "the run was cancelled", run_id=run.id)
    if kind == InputError.__name__:
        return Problem(422, "invalid", "the input does not fit the input type of the graph", run_id=run.id)
    if kind == LimitError.__name__:
        return Problem(500, "limit", "the run reached a limit of what it may spend", run_id=run.id)
    if error is not None and error.type.endswith(("TimeoutError", "CallTimeout")):
        return Problem(504, "timeout", f"a call exceeded its time limit{place}", run_id=run.id)
    if error is not None and error.transient:
        return Problem(502, "model", f"a model gave no usable answer{place}", run_id=run.id)
    return Problem(500, "failed", f"the run failed{place}", run_id=run.id)
