"""A Langfuse server on loopback, as far as SDK 5 talks to one.

with LangfuseServer() as server:
    client = Langfuse(**server.keys)
    ...
    server.wait_for(lambda: server.spans)
"""

from __future__ import annotations

import base64
import re
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

from _api import Api
from _http import Answer, Listener, Request
from _media import Stored
from _otlp import Event, Span, tree
from _queries import Row
from langfuse import Langfuse
from langfuse._client.resource_manager import LangfuseResourceManager

__all__ = ["Event", "LangfuseServer", "Request", "Span", "close_async", "close_client"]


@dataclass
class _Failure:
    left: int
    status: int
    retry_after: float | None
    path: str | None


class LangfuseServer(Api):
    """Receives what the SDK sends, answers what it reads, and fails on demand.

    Paths in the switches are regular expressions that are searched for in the path as it was sent.
    """

    public_key = "pk-lf-test"
    secret_key = "sk-lf-test"

    def __init__(self) -> None:
        super().__init__()
        self.requests: deque[Request] = deque(maxlen=10_000)
        """Every request, also those that were refused; the oldest are forgotten."""
        self.delay = 0.0
        """Seconds before an answer."""
        self.delayed_paths: list[str] = []
        """When not empty, only these paths are delayed."""
        self.status: int | None = None
        """The status of every answer, when set; nothing is kept then."""
        self.failing: str | None = None
        """When set, `status` is for these paths only."""
        self.retry_after: float | None = None
        """The Retry-After header of answers made by `status`."""
        self.nonsense: bytes | None = None
        """When set, the body of every answer, with status 200."""
        self.nonsense_paths: str | None = None
        """When set, `nonsense` is for these paths only."""
        self.errors: list[BaseException] = []
        """What broke in this server; leaving the `with` block raises when there is any."""
        self._failures: list[_Failure] = []
        self._closing = threading.Event()
        self._changed = threading.Condition()
        self._listener = Listener(self._answer, self.errors.append)
        self.url = self._listener.url

    def __enter__(self) -> Self:
        self._listener.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.close()
        if self.errors and kind is None:
            raise AssertionError(f"the Langfuse server broke {len(self.errors)} times") from self.errors[0]

    def close(self) -> None:
        """Stop listening and cut every connection: the port refuses from now on."""
        self._closing.set()
        self._listener.stop()

    def trace(self, trace_id: str) -> list[Span]:
        """The spans of one trace, by start."""
        return sorted((span for span in self.spans if span.trace_id == trace_id), key=lambda span: span.start)

    def tree(self, trace_id: str) -> list[Any]:
        """One trace by name: a leaf is `"name"`, an inner span `("name", [children])`, siblings by start."""
        return tree(self.trace(trace_id))

    @property
    def keys(self) -> dict[str, Any]:
        """The arguments with which a client finds this server."""
        return {"public_key": self.public_key, "secret_key": self.secret_key, "base_url": self.url}

    @property
    def variables(self) -> dict[str, str]:
        """The same as variables of the environment."""
        return {f"LANGFUSE_{name.upper()}": value for name, value in self.keys.items()}

    @property
    def scores(self) -> list[Row]:
        """The accepted bodies, in order."""
        return list(self._scores.sent)

    @property
    def scores_by_id(self) -> dict[str, Row]:
        """The last body of each id."""
        return dict(self._scores.by_id)

    @property
    def corrections(self) -> list[Row]:
        """The last body of each score that is a correction."""
        return [body for body in self.scores_by_id.values() if body.get("dataType") == "CORRECTION"]

    @property
    def prompts(self) -> dict[str, list[Row]]:
        """Versions by name, oldest first."""
        return self._prompts.by_name

    @property
    def datasets(self) -> dict[str, Row]:
        """Datasets by name."""
        return self._datasets.by_name

    @property
    def dataset_items(self) -> dict[str, Row]:
        """Dataset items by id."""
        return self._datasets.items

    @property
    def media(self) -> dict[str, Stored]:
        """Files by id."""
        return self._media.files

    def asked(self, path: str, method: str | None = None) -> list[Request]:
        """The requests whose path matches."""
        return [one for one in self.requests.copy() if re.search(path, one.path) and method in {None, one.method}]

    def fail_next(self, n: int, status: int, retry_after: float | None = None, path: str | None = None) -> None:
        """Answer the next *n* requests (to *path*) with *status*."""
        with self._changed:
            self._failures.append(_Failure(n, status, retry_after, path))

    def wait_for(self, condition: Callable[[], object], timeout: float = 10) -> None:
        """Wait until *condition* holds; it is asked again whenever a request was received or handled."""
        with self._changed:
            if not self._changed.wait_for(condition, timeout):
                paths = [f"{one.method} {one.path}" for one in self.requests][-5:]
                raise AssertionError(f"nothing of the kind within {timeout} s; last requests: {paths}")

    def _answer(self, request: Request) -> Answer:
        with self._changed:
            self.requests.append(request)
            forced = self._forced(request.path)
            self._changed.notify_all()
        if self.delay and (not self.delayed_paths or any(re.search(one, request.path) for one in self.delayed_paths)):
            self._closing.wait(self.delay)
        if forced:
            return forced
        keys = base64.b64encode(f"{self.public_key}:{self.secret_key}".encode()).decode()
        public = request.path == "/api/public/health" or request.path.startswith("/storage/")
        if not public and request.headers.get("authorization") != f"Basic {keys}":
            return Answer(401, {"message": "Invalid credentials. Confirm that you've configured the correct host."})
        with self._changed:
            answer = self.answer_to(request)
            self._changed.notify_all()
        return answer

    def _forced(self, path: str) -> Answer | None:
        for failure in self._failures:
            if failure.left and re.search(failure.path or "", path):
                failure.left -= 1
                return Answer.failure(failure.status, failure.retry_after)
        if self.status is not None and re.search(self.failing or "", path):
            return Answer.failure(self.status, self.retry_after)
        if self.nonsense is not None and re.search(self.nonsense_paths or "", path):
            return Answer(200, self.nonsense)
        return None


def close_client(client: Langfuse) -> None:
    """Shut a client down with all that it leaves open: the provider's export thread and its connections."""
    resources = client._resources  # pyright: ignore[reportPrivateUsage]
    client.shutdown()
    if resources is not None:
        if resources.tracer_provider is not None:
            resources.tracer_provider.shutdown()
        resources.httpx_client.close()
    LangfuseResourceManager.reset()


async def close_async(client: Langfuse) -> None:
    """Close the connections of `client.async_api`; to be awaited on the loop that used it."""
    wrapper = client.async_api._client_wrapper  # pyright: ignore[reportPrivateUsage]
    await wrapper.httpx_client.httpx_client.aclose()
