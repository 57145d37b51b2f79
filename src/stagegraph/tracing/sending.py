"""The sender of spans and scores: a bounded queue, its own threads, counted losses.

OpenTelemetry's `BatchSpanProcessor` keeps the queue. This file adds what it lacks: a bound in bytes, counted losses,
a flush and a shutdown of bounded time, splitting of batches that are too large, and Retry-After. OpenTelemetry's OTLP
exporter is not used: it applies the host's settings for its own collector (`OTEL_EXPORTER_OTLP_HEADERS`, certificates),
logs each failure, and exposes neither status nor Retry-After.
"""

from __future__ import annotations

import atexit
import gzip
import json
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakMethod, WeakSet

import httpx
from opentelemetry.exporter.otlp.proto.common.trace_encoder import encode_spans
from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanProcessor
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter, SpanExportResult

from .api import RefusedError, Retry, UnreachableError, failure
from .attributes import sampled

if TYPE_CHECKING:
    from .connection import Connection
    from .media import File

log = logging.getLogger("stagegraph.tracing")

_ATTEMPTS = 4
_LARGEST = 5_000_000
"""Bytes of one request before compression; servers and proxies accept slightly more."""
_OVERHEAD = 1_000
"""Bytes of a span besides its texts."""
_SCORE = "score"


def score_span(body: str, observation: str = "") -> ReadableSpan:
    """A score, as JSON, inside a span, which is what the processor can queue.

    The server is asked for the trace of the *observation*, if one is named.
    """
    return ReadableSpan(observation, sampled(1, 1), resource=Resource.get_empty(), attributes={_SCORE: body})


def body_of(score: ReadableSpan) -> dict[str, Any]:
    """The score in a span."""
    return json.loads(str((score.attributes or {})[_SCORE]))


def _size(span: ReadableSpan) -> int:
    return _OVERHEAD + sum([len(value) for value in (span.attributes or {}).values() if isinstance(value, str)])


@dataclass(eq=False)
class Sender(SpanProcessor, SpanExporter):
    """A queue of spans, and the threads that send them. Adding one (`on_end`) never waits and never fails.

    A batch is tried four times, and once while the server seems to be down.
    """

    send: Callable[[list[ReadableSpan]], None]
    """Sends one batch in a thread of the sender; raises `UnreachableError` or `RefusedError`."""
    what: str
    """Name of the spans in the warning about losses."""
    on_close: Callable[[], None] = lambda: None
    """Called in a thread when nothing is left to send."""
    exit_seconds: float = 2.0
    """Seconds that the end of the process may be delayed."""
    max_items: int = 20_000
    """Capacity of the queue, with *max_bytes*; spans that arrive when it is full are lost."""
    max_bytes: int = 64_000_000
    batch_items: int = 512
    batch_bytes: int = 2_000_000
    delay: float = 1.0
    """Seconds that a span waits for others."""
    _warned: bool = False
    _until: float | None = None
    """When closed: the deadline for sending what is queued."""
    _processor: BatchSpanProcessor | None = None

    def __post_init__(self) -> None:
        self._begin()
        _senders.add(self)
        after_fork(self._begin)

    def _begin(self) -> None:
        """Start empty, also in a forked child: the parent sends its own spans. The processor resets itself likewise."""
        self.lost = 0
        """Number of spans of this process that could not be sent."""
        self._changed = threading.Condition()
        self._waiting = self._bytes = 0
        self._entered = self._settled = 0
        """Number of accepted spans, and of those that were sent or lost; the others are queued or being sent."""
        self._hurry = self._down = False
        self._flusher: threading.Thread | None = None
        """Sends immediately on request and at the end; the processor's own thread sends on its schedule."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue a span."""
        size = _size(span)
        with self._changed:
            obstacle = self._obstacle(size)
            if obstacle is None and self._processor is not None:
                self._entered += 1
                self._waiting += 1
                self._bytes += size
                self._processor.on_end(span)
                if self._bytes >= self.batch_bytes:
                    self._hurry = True
                    self._changed.notify_all()
        if obstacle is not None:
            self.lose(1, obstacle)

    def _obstacle(self, size: int) -> str | None:
        """Why a span cannot be queued; `None` when it can. Starts the threads if necessary."""
        if self._until is not None:
            return "tracing is closed"
        if self._waiting >= self.max_items or self._bytes + size > self.max_bytes:
            return "the queue is full"
        try:
            self._start()
        except RuntimeError as error:  # too many threads, or the interpreter is shutting down
            return str(error)
        return None

    def _start(self) -> None:
        if self._flusher is not None:
            return
        self._processor = self._processor or BatchSpanProcessor(
            self,
            max_queue_size=self.max_items,
            schedule_delay_millis=max(1.0, self.delay * 1000),
            max_export_batch_size=min(self.batch_items, self.max_items),
            meter_provider=NoOpMeterProvider(),
        )
        name, args = f"stagegraph-{self.what}", (self._processor,)
        flusher = threading.Thread(target=self._flush, args=args, name=name, daemon=True)
        flusher.start()
        self._flusher = flusher
        _close_at_exit()

    def _flush(self, processor: BatchSpanProcessor) -> None:
        closed = False
        while not closed:
            with self._changed:
                self._changed.wait_for(lambda: self._hurry or self._until is not None)
                self._hurry, closed = False, self._until is not None
            processor.force_flush()
        processor.shutdown()
        with suppress(Exception):
            self.on_close()

    def lose(self, count: int, reason: str) -> None:
        """Count lost spans, and log the first loss."""
        with self._changed:
            self.lost += count
        self._warn(reason)

    def _warn(self, reason: str) -> None:
        """Log once, without holding the lock: the host's log handlers may wait for other threads."""
        with self._changed:
            first, self._warned = not self._warned, True
        if first:
            with suppress(Exception):
                log.warning("%s are not reaching Langfuse (%s); runs continue (logged once)", self.what, reason)

    def flush(self, seconds: float) -> bool:
        """Send what is queued, for at most *seconds*; returns whether all was sent and nothing was lost meanwhile."""
        with self._changed:
            goal, lost = self._entered, self.lost
            if self._settled < goal:
                self._hurry = True
                self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._settled >= goal, min(seconds, threading.TIMEOUT_MAX))
            return done and self.lost == lost

    def end(self, seconds: float | None) -> float:
        """Accept nothing more; returns the deadline for sending what is queued."""
        with self._changed:
            self._until = monotonic() + (self.exit_seconds if seconds is None else seconds)
            self._changed.notify_all()
            return self._until

    def settle(self, until: float) -> None:
        """Wait until everything is sent or the deadline has passed; what is left then is lost."""
        flusher = self._flusher
        if flusher is None or flusher is threading.current_thread():
            return
        with self._changed:
            self._changed.wait_for(lambda: self._settled == self._entered, _left(until))
            left = self._entered - self._settled
            self.lost += left
            self._settled = self._entered
            self._changed.notify_all()
            if left:
                self._flusher = None  # a hanging thread is not waited for
        if left:
            self._warn("the program ended before they could be sent")
        else:
            flusher.join(_left(until))

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send spans from the processor's queue; each is counted once, as sent or as lost."""
        part: list[ReadableSpan] = []
        size = 0
        for span in spans:
            part.append(span)
            size += _size(span)
            if size >= self.batch_bytes or len(part) == self.batch_items:
                self._take(part, size)
                part, size = [], 0
        self._take(part, size)
        return SpanExportResult.SUCCESS

    def _take(self, part: list[ReadableSpan], size: int) -> None:
        with self._changed:
            self._waiting -= len(part)
            self._bytes -= size
            if self._settled == self._entered:
                return  # nothing is queued, or `settle` has counted it as lost
        self._deliver(part)

    def _deliver(self, batch: list[ReadableSpan]) -> None:
        count, lost, reason = len(batch), len(batch), ""
        try:
            self._send_patiently(batch)
            lost, self._down = 0, False
        except RefusedError as error:
            self._down = False
            if error.divisible and count > 1:
                self._deliver(batch[: count // 2])
                self._deliver(batch[count // 2 :])
                return
            lost, reason = count if error.count is None else error.count, str(error)
        except UnreachableError as error:
            self._down, reason = True, str(error)
        except Exception as error:  # noqa: BLE001 - other batches are still sent; the text may quote the batch
            reason = type(error).__name__
        if lost:
            self._warn(reason)
        with self._changed:
            if self._settled + count <= self._entered:  # otherwise `settle` has counted them as lost
                self._settled += count
                self.lost += lost
                self._changed.notify_all()

    def _send_patiently(self, batch: list[ReadableSpan]) -> None:
        retry = Retry(attempts=1 if self._down else _ATTEMPTS)
        while True:
            try:
                return self.send(batch)
            except UnreachableError as error:
                wait = retry.wait(error)
                if wait is None or not self._rest(wait):
                    raise

    def _rest(self, seconds: float) -> bool:
        """Wait before the next attempt, at most until the sender is closed; `False` if no time is left."""
        with self._changed:
            if self._until is None:
                self._changed.wait_for(lambda: self._until is not None, seconds)
                return self._until is None or monotonic() < self._until
            if monotonic() + seconds > self._until:
                return False
            self._changed.wait_for(lambda: self._settled == self._entered, seconds)
            return self._settled < self._entered


def _left(until: float) -> float:
    return min(max(0.0, until - monotonic()), threading.TIMEOUT_MAX)


class Http:
    """The connection pool of one sender to one Langfuse project.

    Its methods raise `UnreachableError` when a retry may succeed, and `RefusedError` when it cannot, or only in parts.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client: httpx.Client | None = None
        self._process = 0

    def close(self) -> None:
        """Close the connections; the next request opens new ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def send_spans(self, spans: Sequence[ReadableSpan]) -> None:
        """Send spans as OTLP protobuf."""
        try:
            content = encode_spans(spans).SerializeToString()
        except (TypeError, ValueError) as error:
            msg = f"a span could not be encoded: {type(error).__name__}"
            raise RefusedError(msg, divisible=True) from None
        headers = {"Content-Type": "application/x-protobuf", "Content-Encoding": "gzip"}
        _check_size(content, len(spans))
        self._ask("POST", "otel/v1/traces", content=gzip.compress(content, 3), headers=headers)

    def send_scores(self, scores: Sequence[ReadableSpan]) -> None:
        """Send scores as JSON; the server may refuse some of them."""
        count = len(scores)
        bodies = ",".join(str((score.attributes or {})[_SCORE]) for score in scores)
        content = f"[{bodies}]".encode("utf-8", "replace")
        _check_size(content, count)
        answer = self._ask("POST", "scores", content=content, headers={"Content-Type": "application/json"})
        if answer.status_code == 207:  # noqa: PLR2004
            try:
                rejected = min(max(int(answer.json()["rejected"]), 0), count)
            except (KeyError, TypeError, ValueError):
                rejected = count
            msg = f"the server rejected {rejected} of {count} scores"
            raise RefusedError(msg, count=rejected)

    def trace_of(self, observation_id: str) -> str | None:
        """The trace of an observation; `None` when the server does not show it."""
        wanted = [{"type": "string", "column": "id", "operator": "=", "value": observation_id}]
        query = {"fields": "core", "filter": json.dumps(wanted)}
        found = self._ask("GET", "v2/observations", params=query).json()["data"]
        return found[0]["traceId"] if found else None

    def send_file(self, file: File, trace_id: str, observation_id: str, field: str) -> None:
        """Name a file of an observation to the server, and upload it if the server does not have it."""
        about = {"traceId": trace_id, "observationId": observation_id, "field": field, "sha256Hash": file.digest}
        about |= {"contentType": file.type, "contentLength": file.size}
        told = self._ask("POST", "media", json=about).json()
        url, base = told.get("uploadUrl"), self._connection.base_url
        if not url or not file.content:
            return
        headers = {"Content-Type": file.type}
        if "storage.googleapis.com" not in url:  # it refuses headers that it does not know
            headers |= {"x-ms-blob-type": "BlockBlob", "x-amz-checksum-sha256": file.digest}
        begun = monotonic()
        try:  # without the keys: the storage is not the server
            answer = httpx.put(url, content=file.content, headers=headers, timeout=max(self._connection.timeout, 30.0))
        except httpx.HTTPError as error:
            raise failure(base, error) from None
        done = {"uploadedAt": datetime.now(UTC).isoformat(), "uploadHttpStatus": answer.status_code}
        done |= {"uploadHttpError": answer.text[:500], "uploadTimeMs": int((monotonic() - begun) * 1000)}
        self._ask("PATCH", f"media/{told['mediaId']}", json=done)
        if answer.is_error:
            msg = f"the storage of {base} answered {answer.status_code}"
            raise RefusedError(msg)

    def _ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        base = self._connection.base_url
        if self._client is None or self._process != os.getpid():  # after a fork, its connections are the parent's
            self._process = os.getpid()
            self._client = httpx.Client(headers=self._connection.headers, timeout=self._connection.timeout)
        try:
            answer = self._client.request(method, f"{base}/api/public/{path}", **options).raise_for_status()
        except httpx.HTTPError as error:
            raise failure(base, error) from None
        if "html" in answer.headers.get("content-type", ""):
            msg = f"{base} answered with a web page: check LANGFUSE_BASE_URL"
            raise RefusedError(msg)
        return answer


def _check_size(content: bytes, count: int) -> None:
    if len(content) > _LARGEST and count > 1:
        msg = f"{len(content)} bytes are too many for one request"
        raise RefusedError(msg, divisible=True)


_senders: WeakSet[Sender] = WeakSet()
"""All senders of this process, closed together at its end."""


def close_all(senders: Iterable[Sender], seconds: float | None = None) -> None:
    """Close several senders in the time of one: send what is queued, for at most *seconds*, and accept nothing more."""
    for sender, until in [(sender, sender.end(seconds)) for sender in senders]:
        sender.settle(until)


def after_fork(method: Callable[[], None]) -> None:
    """Call a method in every child that this process forks, as long as the method's object exists."""
    weak = WeakMethod(method)

    def call() -> None:
        living = weak()
        if living is not None:
            living()

    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=call)


def _close_at_exit() -> None:
    """Close every sender at the end of this process; called in each process that has something to send."""
    atexit.unregister(_close_everyone)
    atexit.register(_close_everyone)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        # Before Python 3.14, a forked worker of `multiprocessing` does not call the functions of `atexit`.
        from multiprocessing.util import Finalize  # noqa: PLC0415 - imported only where it is needed

        Finalize(None, _close_everyone, exitpriority=0)


def _close_everyone() -> None:
    close_all(list(_senders))
