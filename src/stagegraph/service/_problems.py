"""What goes wrong, as problem details (RFC 9457): what happened and what to do, never a stack trace or a prompt."""

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

from stagegraph import BusyError, InputError, JournalError, LimitError, RunError, StageError

__all__ = ["RETRY_AFTER", "Problem", "documented", "is_of_the_body", "problem_of", "problem_of_run"]

_log = logging.getLogger("stagegraph.service")

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER = "Retry-After"
_UNPARSED = (400, "There was an error parsing the body")
"""The status and the detail that FastAPI gives to a body which it cannot parse."""
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
    401: "Who are you?",
    403: "This is not allowed",
    404: "There is no such run",
    409: "The run is in another state",
    413: "The body is too large",
    415: "The body is not JSON",
    422: "The request does not fit",
    429: "Too many runs are going on",
    500: "The run failed",
    502: "A model failed",
    503: "The service cannot run this now",
    504: "The run took too long",
}


def documented(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These answers, for the OpenAPI document."""
    return {s: {"description": _TITLES[s], "content": {MEDIA_TYPE: {"schema": _SCHEMA}}} for s in statuses}


class Problem(Exception):  # noqa: N818 - the name that the RFC gives it
    """An answer that says what is wrong.

    Args:
        status: The HTTP status.
        kind: What it is, for programs: the end of the problem's `type`.
        detail: What it is, for people.
        headers: To send with it.
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
        """The problem as it is sent."""
        body = {
            "type": f"urn:stagegraph:problem:{self.kind}",
            "title": _TITLES.get(self.status, "This did not work"),
            "status": self.status,
            "detail": self.detail,
            **self.more,
        }
        return Response(json.dumps(body), self.status, self.headers, MEDIA_TYPE)


def problem_of(error: Exception) -> Problem:
    """What to tell about an error that no run is to blame for."""
    if isinstance(error, Problem):
        return error
    if isinstance(error, RequestValidationError):
        errors = [{"pointer": _pointer(one["loc"]), "detail": str(one["msg"])} for one in error.errors()]
        return Problem(422, "invalid", "the request does not fit: see `errors`", errors=errors[:20])
    if isinstance(error, StarletteHTTPException):
        if isinstance(error.__cause__, Problem):  # raised while FastAPI read the body
            return error.__cause__
        if is_of_the_body(error):
            return Problem(422, "invalid", "the body is no JSON that can be read")
        return Problem(error.status_code, "refused", str(error.detail), headers=error.headers)
    if isinstance(error, BusyError):
        headers = {RETRY_AFTER: str(math.ceil(error.retry_after))}
        return Problem(429, "busy", str(error), headers=headers)
    if isinstance(error, JournalError):
        _log.error("the journal failed: %s", error)
        return Problem(503, "journal", "the service cannot record runs now; try again later")
    _log.error("a request failed", exc_info=error)
    return Problem(500, "internal", "the service failed; its log says more")


def is_of_the_body(error: Exception) -> bool:
    """Whether this is what FastAPI makes of a body that it cannot parse; a hook may refuse because of an error too."""
    return (
        isinstance(error, StarletteHTTPException)
        and (error.status_code, error.detail) == _UNPARSED
        and isinstance(error.__cause__, (Problem, ValueError, RecursionError))
    )


def _pointer(place: tuple[int | str, ...]) -> str:
    """Where in the request: `body/spec/text`."""
    return "/".join(str(part).replace("~", "~0").replace("/", "~1") for part in place)


def problem_of_run(error: Exception, run_id: str) -> Problem:
    """Why a run has no output, in terms of what its caller can do about it."""
    _log.info("run %s failed: %s", run_id, type(error).__name__)
    if isinstance(error, InputError):
        return Problem(422, "invalid", "the input does not fit what the graph takes", run_id=run_id)
    if isinstance(error, LimitError):
        if error.timed_out:
            return Problem(504, "timeout", "the run took longer than it may", run_id=run_id)
        return Problem(500, "limit", "the run reached a limit of what it may spend", run_id=run_id)
    if not isinstance(error, RunError):
        return problem_of(error)
    failures = error.failures
    place = f" at `{failures[0].key}`" if failures and failures[0].key else ""
    causes = list(_causes(error))
    if any(isinstance(cause, TimeoutError) for cause in causes):
        return Problem(504, "timeout", f"a call took longer than it may{place}", run_id=run_id)
    if any(isinstance(cause, (ModelAPIError, AgentRunError)) for cause in causes):
        return Problem(502, "model", f"a model gave no usable answer{place}", run_id=run_id)
    who = "stage" if any(isinstance(cause, StageError) for cause in causes) else "run"
    return Problem(500, "failed", f"the {who} failed{place}", run_id=run_id)


def _causes(error: BaseException) -> list[BaseException]:
    found: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in found:
        found.append(current)
        current = current.__cause__
    return found
