"""A Langfuse project and its API: where it is, Langfuse's own client for it, when to ask again, and what failed.

The `langfuse` package is imported only where its API is used: that takes a third of a second. `Langfuse()` itself is
never made: the second client of one key ignores its address, and reading a prompt may block for 16 seconds.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, NotRequired, Protocol, Self, TypeVar

import anyio
import httpx
from pydantic import TypeAdapter, ValidationError
from pydantic.alias_generators import to_snake
from typing_extensions import TypedDict

from stagegraph.schema.errors import TracingError

from .attributes import is_mapping

if TYPE_CHECKING:
    from langfuse.api.core import RequestOptions

    from .connection import Connection

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)

_LATER = frozenset((408, 425, 429))
"""What a server answers that would take the same later; so does what is 500 or above."""
_BACKOFF, _LONGEST_BACKOFF = 0.5, 30.0
_LONGEST_WAIT = 300.0
"""Seconds; a server that asks for more is asked again after these."""


class NotFoundError(TracingError):
    """The server has no such thing."""


class UnreachableError(TracingError):
    """The server did not take a request now, and may later: *retry_after* seconds from now, if it says so."""

    def __init__(self, text: str, retry_after: float | None = None) -> None:
        super().__init__(text)
        self.retry_after = retry_after


class RefusedError(TracingError):
    """The server will not take *count* items of a batch (`None`: all); *divisible*: but it may take parts of it."""

    def __init__(self, text: str, *, count: int | None = None, divisible: bool = False) -> None:
        super().__init__(text)
        self.count, self.divisible = count, divisible


class _UnreadableError(TracingError):
    """The server's answer is not what its API promises."""


def failure(base: str, error: Exception, what: str = "") -> TracingError:
    """What an error of httpx, of Langfuse's client or of its types means; *what* was asked for.

    An answer as `httpx.HTTPStatusError` is one that is not success.
    """
    if isinstance(error, httpx.HTTPStatusError):
        return _refused(base, error.response.status_code, error.response.headers, what)
    if isinstance(error, httpx.HTTPError):
        return UnreachableError(f"{base} does not answer ({type(error).__name__})")
    status, headers, body = (getattr(error, name, None) for name in ("status_code", "headers", "body"))
    if isinstance(status, int) and status >= 300:  # noqa: PLR2004 - Langfuse's `ApiError`
        said = str(body.get("message") or "") if is_mapping(body) else ""
        return _refused(base, status, headers or {}, what, said)
    return _UnreadableError(f"{base} answered something else than {what} of Langfuse's API; is it a Langfuse server?")


def _refused(base: str, status: int, headers: Mapping[str, str], what: str, said: str = "") -> TracingError:
    """What an answer other than success means; the server *said* so."""
    if status in _LATER or status >= 500:  # noqa: PLR2004
        text = f"{base} answered {status}{what and ' to ' + what}"
        return UnreachableError(text, _retry_after(headers.get("retry-after")))
    if status in {401, 403}:
        return RefusedError(f"{base} answered {status}: check LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY")
    if not what:
        return RefusedError(f"{base} answered {status}", divisible=status == 413)  # noqa: PLR2004
    if status == 404:  # noqa: PLR2004
        return NotFoundError(f"{base} has no {what}")
    return RefusedError(f"{base} refused {what} ({status}){said and ': ' + said[:300]}")


def _retry_after(text: str | None) -> float | None:
    """Seconds that a server asks to be left alone; `None` when it does not say, or says a date."""
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None


class Retry:
    """When to ask a server again that did not take a request: the one policy for everything that is sent and read.

    A server that says when to come back is believed any number of times.

    Args:
        attempts: How often it is asked in all, without a time that the server named.
        seconds: How long in all.
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
    """Import `langfuse` and leave the host's logging as it was: the package sets up the logger of httpx for itself."""
    if "langfuse" in sys.modules:
        return
    logger = logging.getLogger("httpx")
    level, handlers = logger.level, list(logger.handlers)
    import langfuse.api  # noqa: PLC0415, F401  # pyright: ignore[reportUnusedImport]

    logger.setLevel(level)
    logger.handlers[:] = handlers


def as_sent(value: object, what: str) -> Any:
    """A value as the JSON that is sent holds it; half of a surrogate pair, which no UTF-8 holds, is a question mark."""
    try:
        return json.loads(json.dumps(value, allow_nan=False, ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, TypeError) as error:
        msg = f"what should go to {what} cannot be written as JSON: {error}"
        raise TracingError(msg) from error


def mended(read: Callable[[object], T], defaults: Mapping[str, object]) -> Callable[[object], T | None]:
    """What makes the best of one row of a page that does not fit: a field that does not is left out, or its default."""

    def parse(row: object) -> T | None:
        if not is_mapping(row):
            return None
        odd: set[object] = set()
        for _ in range(2):
            try:
                return read({**defaults, **{name: held for name, held in row.items() if to_snake(name) not in odd}})
            except ValidationError as error:
                odd = {fault["loc"][0] for fault in error.errors() if fault["loc"]}
        return None

    return parse


class _Page(Protocol[T_co]):
    """One page of a list; its meta is a cursor, or the number of pages."""

    @property
    def data(self) -> Sequence[T_co]: ...
    @property
    def meta(self) -> object: ...


class _Body(TypedDict):
    """The same, of whatever rows."""

    data: list[Any]
    meta: NotRequired[dict[str, Any]]


_BODY = TypeAdapter(_Body)


class Api:
    """A session with the server, by Langfuse's own client (`sdk`). Use it as an async context manager.

    Args:
        connection: Which project.
        patience: Seconds in all that one request may be tried again for, while the server is busy (429, 5xx) or away.
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
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._http.aclose()

    async def _remember(self, answer: httpx.Response) -> None:
        self._answer = answer

    async def ask(self, what: str, request: Callable[..., Awaitable[T]], /, *args: object, **query: object) -> T:
        """Send one request of `sdk`; *what* names in errors what it is about.

        Raises:
            TracingError: the server does not answer, or not as its API promises; `NotFoundError`: it has no such thing;
                `RefusedError`: it does not take it.
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
                    msg = f"{problem}, and was asked {retry.asked} times; try again later"
                    raise TracingError(msg) from error
            await anyio.sleep(wait)

    async def rows(
        self,
        what: str,
        request: Callable[..., Awaitable[_Page[T]]],
        parse: Callable[[object], T | None],
        /,
        **query: object,
    ) -> AsyncGenerator[T | None]:
        """All rows of a list, page after page, whether the server counts pages or gives a cursor.

        A page that does not fit Langfuse's types is read row by row: *parse* makes the best of each, and gives `None`
        for one that cannot be used.

        Raises:
            TracingError: the server does not answer, or not with a list.
        """
        step: dict[str, object] | None = {}
        while step is not None:
            try:
                page = await self.ask(what, request, **query, **step)
                rows, meta = page.data, vars(page.meta)
            except _UnreadableError:
                try:
                    body = _BODY.validate_json(self._answer.content if self._answer is not None else b"")
                except ValidationError:
                    body = None
                if body is None:
                    raise
                rows = [parse(row) for row in body["data"]]
                meta = {to_snake(name): value for name, value in body.get("meta", {}).items()}
            for row in rows:
                yield row
            step = _next(meta, step, empty=not rows)


def _next(meta: Mapping[str, Any], step: Mapping[str, object], *, empty: bool) -> dict[str, object] | None:
    """The query parameters of the page after one with this *meta*; `None` after the last."""
    cursor, page, pages = meta.get("cursor"), step.get("page", 1), meta.get("total_pages")
    if cursor and cursor != step.get("cursor"):
        return {"cursor": cursor}
    if empty or "cursor" in step or not isinstance(page, int) or not isinstance(pages, int):
        return None
    return {"page": page + 1} if page < pages else None
