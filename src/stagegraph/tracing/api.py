"""The API of a Langfuse project through Langfuse's own client, with retries and errors.

The `langfuse` package is imported only where its API is used: the import takes a third of a second. `Langfuse()` itself
is never created: the second client of one key ignores its address, and reading a prompt may block for 16 seconds.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, Self, TypeVar

import anyio
import httpx
from pydantic import ValidationError
from pydantic.alias_generators import to_snake

from stagegraph.schema.errors import TracingError
from stagegraph.schema.types import is_list, is_mapping

from .connection import sdk_version

if TYPE_CHECKING:
    from langfuse.api.core import RequestOptions

    from .connection import Connection

T = TypeVar("T")

_LATER = frozenset((408, 425, 429))
"""Statuses after which a retry may succeed; so do those from 500."""
_BACKOFF, _LONGEST_BACKOFF = 0.5, 30.0
_LONGEST_WAIT = 300.0
"""Seconds; a longer Retry-After is cut to this."""


class NotFoundError(TracingError):
    """The server does not have the requested object."""


class UnreachableError(TracingError):
    """The server did not accept a request but may later: in *retry_after* seconds, if it sent that header."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class RefusedError(TracingError):
    """The server rejects *count* items of a batch (`None`: all); if *divisible*, it may accept parts of it."""

    def __init__(self, text: str, *, count: int | None = None, divisible: bool = False) -> None:
        super().__init__(text)
        self.count, self.divisible = count, divisible


class _UnreadableError(TracingError):
    """The server's answer does not have the form of its API."""


def failure(base: str, error: Exception, what: str = "") -> TracingError:
    """The `TracingError` for an error of httpx, of Langfuse's client or of its types; *what* was requested."""
    answer = getattr(error, "response", error)  # the client's own error is the answer
    status, body = getattr(answer, "status_code", None), getattr(answer, "body", None)
    if not isinstance(status, int) or status < 300:  # noqa: PLR2004
        if isinstance(error, httpx.HTTPError):
            return UnreachableError(f"{base} does not answer ({type(error).__name__})")
        return _UnreadableError(f"{base} did not answer with {what} of Langfuse's API; is it a Langfuse server?")
    if status in _LATER or status >= 500:  # noqa: PLR2004
        headers: Mapping[str, str] = getattr(answer, "headers", None) or {}
        return UnreachableError(
            f"{base} answered {status}{what and ' to ' + what}", _retry_after(headers.get("retry-after"))
        )
    if status in {401, 403}:
        return RefusedError(f"{base} answered {status}: check LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY")
    if not what:
        return RefusedError(f"{base} answered {status}", divisible=status == 413)  # noqa: PLR2004
    if status == 404:  # noqa: PLR2004
        return NotFoundError(f"{base} has no {what}")
    said = str(body.get("message") or "") if is_mapping(body) else ""
    return RefusedError(f"{base} refused {what} ({status}){said and ': ' + said[:300]}")


def _retry_after(text: str | None) -> float | None:
    """The seconds of a Retry-After header; `None` when it is missing or a date."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None


class Retry:
    """The retries of one request: one policy for everything that is sent and read.

    Args:
        attempts: Maximum number of attempts; those that the server answers with Retry-After do not count.
        seconds: Maximum time of all attempts.
    """

    def __init__(self, *, attempts: int = 100, seconds: float = inf) -> None:
        self._attempts = attempts
        self._until = monotonic() + seconds
        self._failures = 0
        self.asked = 0

    def wait(self, problem: UnreachableError) -> float | None:
        """Seconds until the next attempt; `None` when there is none."""
        self.asked += 1
        if problem.retry_after is None:
            self._failures += 1
            wait = min(_BACKOFF * 2.0 ** (self._failures - 1), _LONGEST_BACKOFF)
        else:
            wait = min(max(_BACKOFF, problem.retry_after), _LONGEST_WAIT)
        return wait if self._failures < self._attempts and monotonic() + wait <= self._until else None


def load_langfuse() -> None:
    """Import `langfuse` and restore the host's logging: the package sets up the logger of httpx."""
    if "langfuse" in sys.modules:
        return
    logger = logging.getLogger("httpx")
    level, handlers = logger.level, list(logger.handlers)
    import langfuse.api  # noqa: PLC0415, F401  # pyright: ignore[reportUnusedImport]

    logger.setLevel(level)
    logger.handlers[:] = handlers


def as_sent(value: object, what: str) -> Any:
    """A value as in the JSON that is sent; half of a surrogate pair, which UTF-8 cannot hold, is a question mark."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, TypeError) as error:
        msg = f"the data for {what} cannot be written as JSON: {error}"
        raise TracingError(msg) from error


def _mended(row: object, type_: Any, defaults: Mapping[str, object]) -> Any:
    """A row read without the fields that are wrong, which have their *defaults*; `None` if that is not possible."""
    from langfuse.api.core import parse_obj_as  # noqa: PLC0415

    if not is_mapping(row):
        return None
    odd: set[object] = set()
    for _ in range(2):
        try:
            return parse_obj_as(type_, {**defaults, **{k: held for k, held in row.items() if to_snake(k) not in odd}})
        except ValidationError as error:
            odd = {fault["loc"][0] for fault in error.errors() if fault["loc"]}
    return None


class Api:
    """A session with the server through Langfuse's own client (`sdk`). Use it as an async context manager.

    Args:
        connection: The project.
        patience: Seconds in total for retries of one request while the server is busy (429, 5xx) or unreachable.
    """

    def __init__(self, connection: Connection, *, patience: float = 60.0) -> None:
        load_langfuse()
        from langfuse.api import AsyncLangfuseAPI  # noqa: PLC0415

        self.base_url = connection.base_url
        self._patience = patience
        self._answer: httpx.Response | None = None
        self._http = httpx.AsyncClient(timeout=max(connection.timeout, 1.0), event_hooks={"response": [self._remember]})
        self.sdk = AsyncLangfuseAPI(
            base_url=connection.base_url,
            username=connection.public_key,
            password=connection.secret_key,
            httpx_client=self._http,
            x_langfuse_sdk_name="python",
            x_langfuse_sdk_version=sdk_version(),
            x_langfuse_public_key=connection.public_key,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def _remember(self, answer: httpx.Response) -> None:
        self._answer = answer

    async def ask(self, what: str, request: Callable[..., Awaitable[T]], /, *args: object, **query: object) -> T:
        """Send one request of `sdk`; *what* is its subject in errors.

        Raises:
            TracingError: the server does not answer, or not in the form of its API; `NotFoundError`: it does not have
                the requested object; `RefusedError`: it rejects the request.
        """
        once: RequestOptions = {"max_retries": 0}
        retry = Retry(seconds=self._patience)
        while True:
            try:
                return await request(*args, **query, request_options=once)
            except Exception as error:
                problem = failure(self.base_url, error, what)
                if not isinstance(problem, UnreachableError):
                    raise problem from error
                wait = retry.wait(problem)
                if wait is None:
                    msg = f"{problem}, after {retry.asked} attempts; try again later"
                    raise TracingError(msg) from error
            await anyio.sleep(wait)

    async def file(self, media_id: str) -> bytes:
        """The bytes of a file.

        Raises:
            TracingError: the server does not answer, or does not have it.
        """
        found = await self.ask("file", self.sdk.media.get, media_id)
        try:
            return (await self._http.get(found.url)).raise_for_status().content
        except httpx.HTTPError as error:
            raise failure(self.base_url, error, "file") from error

    async def rows(
        self,
        what: str,
        request: Callable[..., Awaitable[Any]],
        query: Mapping[str, object],
        type_: Any,
        *,
        unusable: Callable[[], object],
        defaults: Mapping[str, object] | None = None,
    ) -> AsyncGenerator[Any]:
        """All rows of a list, page by page, whether the server counts pages or returns a cursor.

        Of a page that does not fit Langfuse's types, each row is read by itself as a *type_*, with *defaults* for what
        is missing or wrong; *unusable* is called for a row that cannot be read.

        Raises:
            TracingError: the server does not answer, or not with a list.
        """
        step: dict[str, object] | None = {}
        while step is not None:
            try:
                page: Any = await self.ask(what, request, **query, **step)
                rows, meta = page.data, dict[str, Any](page.meta)
            except _UnreadableError:
                rows, meta = self._last_page()
                if rows is None:
                    raise
                rows = [_mended(row, type_, defaults or {}) for row in rows]
            for row in rows:
                if row is None:
                    unusable()
                else:
                    yield row
            step = _next(meta, step, empty=not rows)

    def _last_page(self) -> tuple[list[Any] | None, dict[str, Any]]:
        """The rows and the `meta` of the page that was received last; no rows if it is not a list."""
        try:
            body: object = None if self._answer is None else self._answer.json()
        except (ValueError, RecursionError):
            return None, {}
        rows, meta = (body.get(name) if is_mapping(body) else None for name in ("data", "meta"))
        named = {to_snake(str(name)): value for name, value in meta.items()} if is_mapping(meta) else {}
        return rows if is_list(rows) else None, named


def _next(meta: Mapping[str, Any], step: Mapping[str, object], *, empty: bool) -> dict[str, object] | None:
    """The query parameters of the page after one with this *meta*; `None` after the last."""
    cursor, page, pages = meta.get("cursor"), step.get("page", 1), meta.get("total_pages")
    if cursor and cursor != step.get("cursor"):
        return {"cursor": cursor}
    if empty or "cursor" in step or not isinstance(page, int) or not isinstance(pages, int):
        return None
    return {"page": page + 1} if page < pages else None
