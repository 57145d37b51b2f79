"""Routes that meet anybody: bodies no longer than they may be, and problem details for whatever goes wrong."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import Request, Response
from fastapi.routing import APIRoute
from starlette.types import Message

from ._problems import Problem, problem_of

__all__ = ["route_class"]


def route_class(max_body: int) -> type[APIRoute]:
    """A kind of route that answers every error with problem details and reads no body over *max_body* bytes."""

    class ProblemRoute(APIRoute):
        def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
            handle = super().get_route_handler()

            async def handler(request: Request) -> Response:
                try:
                    within = _limited(request, max_body)
                    _check_text(await within.body())
                    return await handle(within)
                except Exception as error:  # noqa: BLE001 - nothing may reach the client as it is
                    return problem_of(error).response()

            return handler

    return ProblemRoute


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
        raise Problem(415, "media-type", "send the body as JSON, with `Content-Type: application/json`")
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
