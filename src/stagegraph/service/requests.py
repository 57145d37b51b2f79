"""What every request passes: limits of its body, and problem details for every error.

FastAPI's own limit (`max_body_size`) answers with plain text instead of problem details where the length is declared.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Coroutine
from typing import Any
from urllib.parse import urlsplit

import anyio
from fastapi import Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import StagegraphError

from .problems import Problem, is_unparsed_body, problem_of

_JSON = re.compile(r"application/(?:[a-z0-9!#$&^_.-]+\+)?json")


def route_class(runner: Runner, max_body: int, body_seconds: float) -> type[APIRoute]:
    """A class of routes that read no body over *max_body* bytes, and answer errors with problem details.

    A body that has not come after *body_seconds* is not waited for.

    An error of a hook is left to the app where the app has registered a handler for it.
    """
    methods: dict[str, set[str]] = {}

    class ProblemRoute(APIRoute):
        def __init__(self, path: str, *args: Any, **options: Any) -> None:
            super().__init__(path, *args, **options)
            methods.setdefault(path, set()).update(self.methods or ())

        async def handle(self, scope: Scope, receive: Receive, send: Send) -> None:
            try:
                await super().handle(scope, receive, send)
            except HTTPException as error:
                await _refused(error, methods[self.path], Request(scope))(scope, receive, send)

        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handler(request: Request) -> Response:
                try:
                    return await handle(await _checked(request, max_body, body_seconds))
                except Exception as error:
                    if _has_handler(error, request):
                        raise
                    return problem_of(error, ready=runner.ready).response()

            return handler

    return ProblemRoute


def _refused(error: HTTPException, methods: set[str], request: Request) -> Response:
    """The response to a method that a path does not have; FastAPI's own names the methods of one route alone."""
    if error.status_code != 405:  # noqa: PLR2004
        raise error
    allowed = {"Allow": ", ".join(sorted(methods))}
    if _has_handler(error, request):
        raise HTTPException(405, error.detail, allowed)
    return Problem(405, "method", "this path has other methods: see `Allow`", headers=allowed).response()


def _has_handler(error: Exception, request: Request) -> bool:
    """Whether the app has registered a handler for an error that one of its hooks raised."""
    if isinstance(error, (Problem, RequestValidationError, StagegraphError)) or is_unparsed_body(error):
        return False
    by_type, by_status = request.scope.get("starlette.exception_handlers", ({}, {}))
    handlers = [by_type[kind] for kind in type(error).__mro__ if kind in by_type][:1]
    if isinstance(error, HTTPException) and error.status_code in by_status:
        handlers = [by_status[error.status_code]]
    packages = {getattr(handler, "__module__", "").partition(".")[0] for handler in handlers}
    return bool(packages - {"fastapi", "starlette"})


async def _checked(request: Request, limit: int, seconds: float) -> Request:
    """The request with its body, which was read."""
    too_large = Problem(413, "too-large", f"the limit of a body is {limit} bytes")
    not_json = Problem(415, "media-type", "send the body as JSON, with `Content-Type: application/json`")
    declared, media_type = request.headers.get("content-length", ""), request.headers.get("content-type")
    if declared.isdecimal() and int(declared) > limit:
        raise too_large
    if request.method == "POST":
        if media_type is None:
            _check_origin(request)
        elif _JSON.fullmatch(media_type.partition(";")[0].strip().lower()) is None:
            raise not_json
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > limit:
            raise too_large
        return message

    limited, content = Request(request.scope, receive), None
    with anyio.move_on_after(seconds):
        content = await limited.body()
    if content is None:
        raise Problem(408, "timeout", f"the body has not come in {seconds} s", headers={"Connection": "close"})
    if content and media_type is None:  # any web page may send such a request
        raise not_json
    _check_text(content)
    return limited


def _check_origin(request: Request) -> None:
    """Refuse what the page of another site can send without asking: a POST whose content has no declared type.

    Before a browser sends JSON to another site, it asks, and the app's CORS decides.

    Raises:
        Problem: the request is of that kind.
    """
    origin, site = request.headers.get("origin"), request.headers.get("sec-fetch-site")
    elsewhere = site not in {None, "same-origin", "none"} or (
        site is None and origin is not None and urlsplit(origin).netloc != request.headers.get("host")
    )
    if elsewhere:
        text = "a page of another site may not do this: it sends JSON, with `Content-Type: application/json`"
        raise Problem(403, "cross-origin", text)


def _check_text(body: bytes) -> None:
    """Refuse lone surrogates, which JSON can spell and Python reads even from bytes, but no text can contain."""
    try:
        body.decode()
    except UnicodeDecodeError:
        raise Problem(422, "invalid", "the body is not readable JSON: it has to be UTF-8") from None
    if b"\\ud" not in body and b"\\uD" not in body:
        return
    try:
        json.dumps(json.loads(body), ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise Problem(422, "invalid", "the body contains half of a character (a lone surrogate)") from None
    except (ValueError, RecursionError):
        return  # invalid JSON, which FastAPI reports
