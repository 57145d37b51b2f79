"""Routes that meet anybody: bodies no longer than they may be, and problem details for whatever goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message

from stagegraph import StagegraphError

from ._problems import Problem, is_of_the_body, problem_of

__all__ = ["route_class"]


def route_class(max_body: int) -> type[APIRoute]:
    """A kind of route that reads no body over *max_body* bytes, and answers errors with problem details.

    What a hook raises is the app's to answer, if it has registered something for it.
    """

    class ProblemRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handler(request: Request) -> Response:
                try:
                    within = _limited(request, max_body)
                    content = await within.body()
                    if content and "content-type" not in request.headers:  # a web page may send one from any browser
                        raise _no_json()
                    _check_text(content)
                    return await handle(within)
                except Exception as error:
                    if _is_for_the_app(error, request):
                        raise
                    return problem_of(error).response()

            return handler

    return ProblemRoute


def _is_for_the_app(error: Exception, request: Request) -> bool:
    """Whether the app has an answer of its own to what one of its hooks raised."""
    if isinstance(error, (Problem, RequestValidationError, StagegraphError)) or is_of_the_body(error):
        return False
    by_type, by_status = request.scope.get("starlette.exception_handlers", ({}, {}))
    handlers = [by_type[kind] for kind in type(error).__mro__ if kind in by_type][:1]
    if isinstance(error, HTTPException) and error.status_code in by_status:
        handlers = [by_status[error.status_code]]
    packages = {getattr(handler, "__module__", "").partition(".")[0] for handler in handlers}
    return bool(packages - {"fastapi", "starlette"})


def _no_json() -> Problem:
    return Problem(415, "media-type", "send the body as JSON, with `Content-Type: application/json`")


def _limited(request: Request, most: int) -> Request:
    """The same request, which reads no more than *most* bytes.

    Raises:
        Problem: its header says already that it is longer, or that it is something else than JSON.
    """
    too_long = Problem(413, "too-large", f"a body may have {most} bytes here")
    said = request.headers.get("content-length", "")
    if said.isdecimal() and int(said) > most:
        raise too_long
    kind = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if request.method == "POST" and kind != "application/json" and not kind.endswith("+json"):
        raise _no_json()
    read = 0

    async def receive() -> Message:
        nonlocal read
        message = await request.receive()
        if message["type"] == "http.request":
            read += len(message.get("body", b""))
            if read > most:
                raise too_long
        return message

    return Request(request.scope, receive)


def _check_text(body: bytes) -> None:
    """Refuse half characters, which JSON can spell, and Python reads even from bytes, but no text can hold.

    Raises:
        Problem: there is one, or the bytes are no UTF-8 at all.
    """
    try:
        body.decode()
    except UnicodeDecodeError:
        raise Problem(422, "invalid", "the body is no JSON that can be read: it has to be UTF-8") from None
    if b"\\ud" not in body and b"\\uD" not in body:
        return
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Problem(422, "invalid", "the body has half of a character (a lone surrogate)") from None
    except (ValueError, RecursionError):
        return  # no JSON, which is found out and told elsewhere
