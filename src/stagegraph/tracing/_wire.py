"""Batches over HTTP: spans as OTLP protobuf, scores as JSON, and what an answer means."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import httpx
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans

from ._outbox import Refused, Unreachable

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from ._connection import Connection

__all__ = ["Wire"]

_SMALLEST_SPLIT = 1
_LATER = {408, 425, 429}


class Wire:
    """One connection pool to one Langfuse project, for one sending thread."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client: httpx.Client | None = None

    def reset(self) -> None:
        """Forget the connections: after a fork they belong to the parent."""
        self._client = None

    def send_spans(self, spans: Sequence[ReadableSpan]) -> None:
        """Send spans; a batch that the server finds too large goes in halves.

        Raises:
            Unreachable: it may work later.
            Refused: it will not.
        """
        body = gzip.compress(encode_spans(spans).SerializeToString(), 3)
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}
        try:
            self._post("/api/public/otel/v1/traces", body, headers)
        except _TooLargeError:
            if len(spans) <= _SMALLEST_SPLIT:
                raise
            half = len(spans) // 2
            self.send_spans(spans[:half])
            self.send_spans(spans[half:])

    def send_scores(self, scores: Sequence[dict[str, Any]]) -> None:
        """Send scores.

        Raises:
            Unreachable: it may work later.
            Refused: the server does not take them, or not all of them.
        """
        body = json.dumps(list(scores), ensure_ascii=False).encode("utf-8", "replace")
        answer = self._post("/api/public/scores", body, {"Content-Type": "application/json"})
        if answer.status_code == 207:  # noqa: PLR2004
            msg = f"the server took only a part of {len(scores)} scores"
            raise Refused(msg)

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
        if status < 300:  # noqa: PLR2004
            return answer
        what = f"{connection.base_url} answered {status}"
        if status in _LATER or status >= 500:  # noqa: PLR2004
            raise Unreachable(what, _seconds(answer.headers.get("retry-after")))
        if status == 413:  # noqa: PLR2004
            raise _TooLargeError(what)
        hint = ": check LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY" if status in {401, 403} else ""
        raise Refused(what + hint)


class _TooLargeError(Refused):
    """The server does not take so much at once."""


def _seconds(text: str | None) -> float | None:
    try:
        return max(0.0, float(text)) if text else None
    except ValueError:
        return None
