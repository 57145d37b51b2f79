"""Batches over HTTP: spans as OTLP protobuf, scores as JSON, and what an answer means."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import httpx
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from ._connection import LATER, retry_after
from ._delivery import Refused, Unreachable

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from ._connection import Connection

__all__ = ["Wire"]

_LARGEST = 5_000_000
"""Bytes of one request before compression; servers and proxies take a little more."""


class Wire:
    """One connection pool to one Langfuse project, for one sending thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client: httpx.Client | None = None

    def reset(self) -> None:
        """Forget the connections: after a fork they belong to the parent."""
        self._client = None

    def close(self) -> None:
        """Close the connections; the next request makes new ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def send_spans(self, spans: Sequence[ReadableSpan]) -> None:
        """Send spans.

        Raises:
            Unreachable: it may work later.
            Refused: it will not, or not in one request.
        """
        try:
            content = encode_spans(spans).SerializeToString()
        except (TypeError, ValueError) as error:
            msg = f"one could not be encoded: {type(error).__name__}"
            raise Refused(msg, as_a_whole=True) from None
        _check_size(content, len(spans))
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}
        self._post("/api/public/otel/v1/traces", gzip.compress(content, 3), headers)

    def send_scores(self, scores: Sequence[dict[str, Any]]) -> None:
        """Send scores.

        Raises:
            Unreachable: it may work later.
            Refused: the server does not take them, or not all of them.
        """
        content = json.dumps(list(scores), ensure_ascii=False).encode("utf-8", "replace")
        _check_size(content, len(scores))
        answer = self._post("/api/public/scores", content, {"Content-Type": "application/json"})
        if answer.status_code == 207:  # noqa: PLR2004
            raise _rejected(answer, len(scores))

    def _post(self, path: str, body: bytes, headers: dict[str, str]) -> httpx.Response:
        connection = self._connection
        if self._client is None:
            self._client = httpx.Client(headers=connection.headers, timeout=connection.timeout)
        try:
            answer = self._client.post(connection.base_url + path, content=body, headers=headers)
        except httpx.HTTPError as error:
            msg = f"{connection.base_url} does not answer: {type(error).__name__}"
            raise Unreachable(msg) from None
        status = answer.status_code
        what = f"{connection.base_url} answered {status}"
        if status < 300:  # noqa: PLR2004
            if "html" in answer.headers.get("content-type", ""):
                msg = f"{what} with a web page: check LANGFUSE_BASE_URL"
                raise Refused(msg)
            return answer
        if status in LATER or status >= 500:  # noqa: PLR2004
            raise Unreachable(what, retry_after(answer.headers.get("retry-after")))
        hint = ": check LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY" if status in {401, 403} else ""
        raise Refused(what + hint, as_a_whole=status == 413)  # noqa: PLR2004


def _check_size(content: bytes, count: int) -> None:
    if len(content) > _LARGEST and count > 1:
        msg = f"{len(content)} bytes are too many for one request"
        raise Refused(msg, as_a_whole=True)


def _rejected(answer: httpx.Response, count: int) -> Refused:
    """What a 207 says: how many of *count* scores were not taken."""
    try:
        rejected = int(answer.json()["rejected"])
    except (KeyError, TypeError, ValueError):
        rejected = count
    rejected = min(max(rejected, 0), count)
    return Refused(f"the server did not take {rejected} of {count} scores", count=rejected)
