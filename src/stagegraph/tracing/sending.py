"""Spans and scores on their way to the server: bounded, sent by threads of their own, counted when they are lost.

OpenTelemetry's `BatchSpanProcessor` keeps the queue. Around it stands what it lacks: a bound in bytes, counted losses,
a flush and an end of bounded time, halves of batches that are too large, and Retry-After. OpenTelemetry's OTLP exporter
is not used: it sends along what the host set for its own collector (`OTEL_EXPORTER_OTLP_HEADERS`, certificates), logs
each failure, and gives neither status nor Retry-After.
"""

from __future__ import annotations

import atexit
import gzip
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from time import monotonic
from typing import TYPE_CHECKING
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

log = logging.getLogger("stagegraph.tracing")

_ATTEMPTS = 4
_LARGEST = 5_000_000
"""Bytes of one request before compression; servers and proxies take a little more."""
_OVERHEAD = 1_000
"""Bytes of a span beside its texts."""
_SCORE = "score"


def score_span(body: str) -> ReadableSpan:
    """A score, as JSON, in the form in which the processor keeps what waits."""
    return ReadableSpan(_SCORE, sampled(1, 1), resource=Resource.get_empty(), attributes={_SCORE: body})


def _size(span: ReadableSpan) -> int:
    return _OVERHEAD + sum([len(value) for value in (span.attributes or {}).values() if isinstance(value, str)])


class Sender(SpanProcessor, SpanExporter):
    """Spans on their way to a server. Putting one in (`on_end`) never waits and never fails.

    A batch is tried four times, and once while the server seems to be down.

    Args:
        send: Sends one batch in a thread of the sender; raises `UnreachableError` or `RefusedError`.
        what: What the spans are called when some are lost.
        max_items: How many may wait, and *max_bytes* of what size; what comes when it is full is lost.
        batch_items: How many are sent at once, and *batch_bytes* of what size.
        delay: Seconds that a span waits for others.
        exit_seconds: How long the end of the process may be held up.
        on_close: Called by a thread when there is nothing more to send.
    """

    def __init__(
        self,
        send: Callable[[list[ReadableSpan]], None],
        *,
        what: str,
        max_items: int = 20_000,
        max_bytes: int = 64_000_000,
        batch_items: int = 512,
        batch_bytes: int = 2_000_000,
        delay: float = 1.0,
        exit_seconds: float = 2.0,
        on_close: Callable[[], None] = lambda: None,
    ) -> None:
        self._send, self._what = send, what
        self._max_items, self._max_bytes = max_items, max_bytes
        self._batch_items, self._batch_bytes = batch_items, batch_bytes
        self._delay, self._exit_seconds = delay, exit_seconds
        self._on_close = on_close
        self._warned = False
        self._until: float | None = None
        """When closed: until when what waits may still be sent."""
        self._processor: BatchSpanProcessor | None = None
        self._begin()
        _senders.add(self)
        after_fork(self._begin)

    def _begin(self) -> None:
        """Begin empty, also in a forked child: the parent sends what it had. The processor does the same by itself."""
        self.lost = 0
        """Spans that could not be sent, in this process."""
        self._changed = threading.Condition()
        self._waiting = self._bytes = 0
        self._entered = self._settled = 0
        """How many came in, and how many of these were sent or lost; the others wait or are being sent."""
        self._hurry = self._down = False
        self._flusher: threading.Thread | None = None
        """Sends at once when it is asked to, and at the end; the processor's own thread sends in its time."""

    def on_end(self, span: ReadableSpan) -> None:
        """Let a span wait for its turn."""
        size = _size(span)
        with self._changed:
            obstacle = self._obstacle(size)
            if obstacle is None and self._processor is not None:
                self._entered += 1
                self._waiting += 1
                self._bytes += size
                self._processor.on_end(span)
                if self._bytes >= self._batch_bytes:
                    self._hurry = True
                    self._changed.notify_all()
        if obstacle is not None:
            self.lose(1, obstacle)

    def _obstacle(self, size: int) -> str | None:
        """Why a span cannot wait; `None` when it can, and there are threads to send it."""
        if self._until is not None:
            return "tracing is closed"
        if self._waiting >= self._max_items or self._bytes + size > self._max_bytes:
            return "too many wait already"
        try:
            self._start()
        except RuntimeError as error:  # too many threads, or the interpreter is about to end
            return str(error)
        return None

    def _start(self) -> None:
        if self._flusher is not None:
            return
        self._processor = self._processor or BatchSpanProcessor(
            self,
            max_queue_size=self._max_items,
            schedule_delay_millis=max(1.0, self._delay * 1000),
            max_export_batch_size=min(self._batch_items, self._max_items),
            meter_provider=NoOpMeterProvider(),
        )
        name, args = f"stagegraph-{self._what}", (self._processor,)
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
            self._on_close()

    def lose(self, count: int, reason: str) -> None:
        """Count what will not arrive; the first time, log it."""
        with self._changed:
            self.lost += count
        self._warn(reason)

    def _warn(self, reason: str) -> None:
        """Log once, without the lock held: handlers of the log are not ours, and may wait for other threads."""
        with self._changed:
            first, self._warned = not self._warned, True
        if first:
            with suppress(Exception):
                log.warning("%s are not reaching Langfuse (%s); runs go on, and this is said once", self._what, reason)

    def flush(self, seconds: float) -> bool:
        """Send what waits now, for so long at most; whether all of it went and nothing was lost meanwhile."""
        with self._changed:
            goal, lost = self._entered, self.lost
            if self._settled < goal:
                self._hurry = True
                self._changed.notify_all()
            done = self._changed.wait_for(lambda: self._settled >= goal, min(seconds, threading.TIMEOUT_MAX))
            return done and self.lost == lost

    def end(self, seconds: float | None) -> float:
        """Take nothing more; gives the moment until which what waits may still be sent."""
        with self._changed:
            self._until = monotonic() + (self._exit_seconds if seconds is None else seconds)
            self._changed.notify_all()
            return self._until

    def settle(self, until: float) -> None:
        """Wait until all is sent or *until* has come; what is left then is lost."""
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
                self._flusher = None  # it may hang for as long as it likes
        if left:
            self._warn("the program ended before they could be sent")
        else:
            flusher.join(_left(until))

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Send what the processor took out of its queue; each span is counted as sent or lost, once."""
        part: list[ReadableSpan] = []
        size = 0
        for span in spans:
            part.append(span)
            size += _size(span)
            if size >= self._batch_bytes or len(part) == self._batch_items:
                self._take(part, size)
                part, size = [], 0
        self._take(part, size)
        return SpanExportResult.SUCCESS

    def shutdown(self) -> None:
        """Called by the processor at its end, when all was sent."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:
        return True

    def _take(self, part: list[ReadableSpan], size: int) -> None:
        with self._changed:
            self._waiting -= len(part)
            self._bytes -= size
            if self._settled == self._entered:
                return  # there are none, or `settle` has given them up
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
        except Exception as error:  # noqa: BLE001 - others go on; the text may quote what is in the batch
            reason = type(error).__name__
        if lost:
            self._warn(reason)
        with self._changed:
            if self._settled + count <= self._entered:  # otherwise `settle` has given them up, and counted them
                self._settled += count
                self.lost += lost
                self._changed.notify_all()

    def _send_patiently(self, batch: list[ReadableSpan]) -> None:
        retry = Retry(attempts=1 if self._down else _ATTEMPTS)
        while True:
            try:
                return self._send(batch)
            except UnreachableError as error:
                wait = retry.wait(error)
                if wait is None or not self._rest(wait):
                    raise

    def _rest(self, seconds: float) -> bool:
        """Wait before the next attempt, at most until the sender is closed; `False` when it would come too late."""
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
    """One connection pool to one Langfuse project, for one sender.

    Its methods raise `UnreachableError` when it may work later, `RefusedError` when it will not, or not in one request.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._client: httpx.Client | None = None
        self._process = 0

    def close(self) -> None:
        """Close the connections; the next request makes new ones."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    def send_spans(self, spans: Sequence[ReadableSpan]) -> None:
        """Send spans as OTLP protobuf."""
        try:
            content = encode_spans(spans).SerializeToString()
        except (TypeError, ValueError) as error:
            msg = f"one could not be encoded: {type(error).__name__}"
            raise RefusedError(msg, divisible=True) from None
        self._post("otel/v1/traces", content, len(spans), "application/x-protobuf", compressed=True)

    def send_scores(self, scores: Sequence[ReadableSpan]) -> None:
        """Send scores as JSON; the server may refuse some of them."""
        bodies = ",".join(str((score.attributes or {})[_SCORE]) for score in scores)
        content = f"[{bodies}]".encode("utf-8", "replace")
        answer = self._post("scores", content, len(scores), "application/json")
        if answer.status_code == 207:  # noqa: PLR2004
            try:
                rejected = int(answer.json()["rejected"])
            except (KeyError, TypeError, ValueError):
                rejected = len(scores)
            rejected = min(max(rejected, 0), len(scores))
            msg = f"the server did not take {rejected} of {len(scores)} scores"
            raise RefusedError(msg, count=rejected)

    def _post(self, path: str, content: bytes, count: int, type_: str, *, compressed: bool = False) -> httpx.Response:
        base = self._connection.base_url
        if len(content) > _LARGEST and count > 1:
            msg = f"{len(content)} bytes are too many for one request"
            raise RefusedError(msg, divisible=True)
        if self._client is None or self._process != os.getpid():  # after a fork, its connections are the parent's
            self._process = os.getpid()
            self._client = httpx.Client(headers=self._connection.headers, timeout=self._connection.timeout)
        headers = {"Content-Type": type_, **({"Content-Encoding": "gzip"} if compressed else {})}
        body = gzip.compress(content, 3) if compressed else content
        try:
            answer = self._client.post(f"{base}/api/public/{path}", content=body, headers=headers).raise_for_status()
        except httpx.HTTPError as error:
            raise failure(base, error) from None
        if "html" in answer.headers.get("content-type", ""):
            msg = f"{base} answered with a web page: check LANGFUSE_BASE_URL"
            raise RefusedError(msg)
        return answer


_senders: WeakSet[Sender] = WeakSet()
"""All of this process, which are closed together at its end."""


def close_all(senders: Iterable[Sender], seconds: float | None = None) -> None:
    """Close several senders in the time of one: send what waits, for so long at most, and take nothing more."""
    for sender, until in [(sender, sender.end(seconds)) for sender in senders]:
        sender.settle(until)


def after_fork(method: Callable[[], None]) -> None:
    """Call a method in every child that this process forks, as long as its object lives."""
    weak = WeakMethod(method)

    def call() -> None:
        living = weak()
        if living is not None:
            living()

    if hasattr(os, "register_at_fork"):  # not on Windows
        os.register_at_fork(after_in_child=call)


def _close_at_exit() -> None:
    """Close every sender of this process at its end; called in each process that has something to send."""
    atexit.unregister(_close_everyone)
    atexit.register(_close_everyone)
    process = sys.modules.get("multiprocessing.process")
    if process is not None and process.parent_process() is not None:
        # Not before Python 3.14 does a forked worker of `multiprocessing` call what is registered with `atexit`.
        from multiprocessing.util import Finalize  # noqa: PLC0415 - it is loaded where it is needed

        Finalize(None, _close_everyone, exitpriority=0)


def _close_everyone() -> None:
    close_all(list(_senders))
