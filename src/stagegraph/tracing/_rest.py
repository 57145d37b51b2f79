"""Langfuse's public API: JSON in, JSON out, patient with a server that asks for patience."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, cast

import anyio
import httpx

from stagegraph.schema.errors import TracingError

from ._connection import LATER, retry_after

if TYPE_CHECKING:
    from ._connection import Connection

__all__ = ["NotFoundError", "Rest"]

_JSON = {"Content-Type": "application/json"}
_BACKOFF = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)


class NotFoundError(TracingError):
    """The server has no such thing."""


class Rest:
    """A session with the server. Use it as an async context manager.

    Args:
        connection: Which project.
        patience: Seconds in all that one request may be tried again for, while the server is busy (429, 5xx) or away.
    """

    def __init__(self, connection: Connection, *, patience: float = 60.0) -> None:
        self._connection = connection
        self._patience = patience
        self._client = httpx.AsyncClient(
            base_url=connection.base_url,
            auth=(connection.public_key, connection.secret_key),
            timeout=max(connection.timeout, 1.0),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._client.aclose()

    async def get(self, path: str, **query: object) -> dict[str, Any]:
        """Ask for something; parameters that are `None` are left out.

        Raises:
            TracingError: the server does not answer, or not with JSON; `NotFoundError`: it has none.
        """
        return await self._ask("GET", path, query, None)

    async def post(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Make something.

        Raises:
            TracingError: the server does not take it.
        """
        return await self._ask("POST", path, {}, body)

    async def patch(self, path: str, body: Mapping[str, object]) -> dict[str, Any]:
        """Change something.

        Raises:
            TracingError: the server does not take it.
        """
        return await self._ask("PATCH", path, {}, body)

    async def rows(self, path: str, **query: object) -> AsyncGenerator[dict[str, Any]]:
        """All rows of a list, page after page, whether the server counts pages or gives a cursor.

        Raises:
            TracingError: the server does not answer, or not with a list.
        """
        cursor: object = None
        page = 1
        while True:
            step: dict[str, object] = {"cursor": cursor} if cursor is not None else {"page": page} if page > 1 else {}
            answer = await self.get(path, **query, **step)
            if not isinstance(answer.get("data"), list):
                msg = f"{self._connection.base_url}/{path} gave no list"
                raise TracingError(msg)
            data: list[Any] = answer["data"]
            for row in data:
                if isinstance(row, dict):
                    yield cast("dict[str, Any]", row)
            meta: Any = answer.get("meta")
            pages = cast("dict[str, Any]", meta) if isinstance(meta, dict) else {}
            following: object = pages.get("cursor")
            if following and following != cursor:
                cursor = following
            elif data and cursor is None and page < _count(pages.get("totalPages")):
                page += 1
            else:
                return

    async def _ask(
        self, method: str, path: str, query: Mapping[str, object], body: Mapping[str, object] | None
    ) -> dict[str, Any]:
        base = self._connection.base_url
        params = {name: value for name, value in query.items() if value is not None}
        content = None if body is None else _content(body, path)
        until = anyio.current_time() + self._patience
        for attempt in range(100):
            wait = _BACKOFF[min(attempt, len(_BACKOFF) - 1)]
            try:
                answer = await self._client.request(
                    method,
                    f"/api/public/{path}",
                    params=params,  # pyright: ignore[reportArgumentType]
                    content=content,
                    headers=_JSON if content is not None else None,
                )
            except httpx.HTTPError as error:
                problem = f"{base} does not answer ({type(error).__name__})"
            else:
                status = answer.status_code
                if status < 300:  # noqa: PLR2004
                    return _json(answer, base)
                if status == 404:  # noqa: PLR2004
                    msg = f"{base} has no {path}"
                    raise NotFoundError(msg)
                if status not in LATER and status < 500:  # noqa: PLR2004
                    raise TracingError(_refusal(base, path, answer))
                problem = f"{base} answered {status} to {method} {path}"
                asked = retry_after(answer.headers.get("retry-after"))
                wait = wait if asked is None else asked
            if anyio.current_time() + wait > until:
                msg = f"{problem}, and was asked {attempt + 1} times; try again later"
                raise TracingError(msg)
            await anyio.sleep(wait)
        msg = "unreachable"
        raise AssertionError(msg)


def _content(body: Mapping[str, object], path: str) -> bytes:
    """JSON that any server can read; half of a surrogate pair, which no UTF-8 holds, becomes a question mark."""
    try:
        return json.dumps(body, allow_nan=False, ensure_ascii=False).encode("utf-8", "replace")
    except (ValueError, TypeError) as error:
        msg = f"what should go to {path} cannot be written as JSON: {error}"
        raise TracingError(msg) from error


def _count(value: object) -> int:
    return value if isinstance(value, int) else 0


def _json(answer: httpx.Response, base: str) -> dict[str, Any]:
    try:
        data = answer.json()
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, dict):
        msg = f"{base} answered something that is no JSON object; is it a Langfuse server?"
        raise TracingError(msg)
    return data  # pyright: ignore[reportUnknownVariableType]


def _refusal(base: str, path: str, answer: httpx.Response) -> str:
    if answer.status_code in {401, 403}:
        return f"{base} answered {answer.status_code}: check LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY"
    try:
        said = str(answer.json().get("message") or "")
    except (ValueError, AttributeError):
        said = ""
    return f"{base} refused {path} ({answer.status_code}){': ' + said[:300] if said else ''}"
