"""Runs as Langfuse traces: the object for `Runner(tracing=)`."""

from __future__ import annotations

import asyncio
import json
import os
from math import nan
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from pydantic_ai.models.instrumented import InstrumentationSettings

from stagegraph.record.rows import CORRECTION
from stagegraph.schema.errors import DeclarationError

from .attributes import Names, observation_id, score_id, trace_id
from .connection import Connection, sdk_version
from .media import Media
from .policy import Capture, Policy, Redact
from .secrets import known_secrets
from .sending import Http, Sender, after_fork, body_of, close_all, log, score_span
from .spans import LangfuseTrace, Output

if TYPE_CHECKING:
    from datetime import datetime

    from stagegraph.data.score import Feedback
    from stagegraph.runner.observer import TraceStart

MAX_CONTENT = 256_000
"""Bytes of one input or output; longer content is cut and flagged."""

_MOST_JOINED = 10_000
_LIMITS = ("max_attributes", "max_span_attributes", "max_event_attributes", "max_events", "max_attribute_length")
_NO_LIMITS = SpanLimits(**dict.fromkeys(_LIMITS, SpanLimits.UNSET))
"""The limits in OpenTelemetry's environment variables are meant for the host's own spans."""


class LangfuseTracing:
    """Tracing to Langfuse, for `Runner(tracing=)`. A runner uses it by default if the keys are in the environment.

    Runs never wait for the server and never fail because of it. Data that the server does not accept is counted
    (`lost`), and the first loss is logged. The spans come from a separate tracer provider, so that the host's
    OpenTelemetry is not changed.

    Args:
        public_key: Defaults to the environment variable `LANGFUSE_PUBLIC_KEY`.
        secret_key: Defaults to `LANGFUSE_SECRET_KEY`.
        base_url: Defaults to `LANGFUSE_BASE_URL`, then to Langfuse's cloud.
        environment: Such as `production` or `staging`. Defaults to `LANGFUSE_TRACING_ENVIRONMENT`.
        release: The version of the program. Defaults to `LANGFUSE_RELEASE`.
        sample_rate: The share of runs that is traced, from 0 to 1; each run completely or not at all. Defaults to
            `LANGFUSE_SAMPLE_RATE`, then to 1.
        redact: Takes every JSON value and text that a user or a model wrote, and returns what may be sent.
        capture: `all`; `shape` sends types and sizes instead of contents; `none` sends neither.
        max_content: Bytes of one input or output, or of the messages of one request.
        exit_seconds: Seconds that the end of the process may be delayed by unsent data.
        join: Whether a run inside an open span of the host's own Langfuse client becomes a child of that span, in the
            host's trace. By default it has a trace of its own, whose metadata names the host's span. In both cases it
            has the user, session, tags, metadata and environment of the host's `propagate_attributes`. A process that
            only sends feedback for such runs needs `join=True`, too.

    Raises:
        DeclarationError: the keys are missing, or a value is out of range.
    """

    def __init__(
        self,
        *,
        public_key: str | None = None,
        secret_key: str | None = None,
        base_url: str | None = None,
        environment: str | None = None,
        release: str | None = None,
        sample_rate: float | None = None,
        redact: Redact | None = None,
        capture: Capture = "all",
        max_content: int = MAX_CONTENT,
        exit_seconds: float = 2.0,
        join: bool = False,
    ) -> None:
        self._join, self._exit_seconds = join, exit_seconds
        self._joined: dict[tuple[str, int], dict[str, str]] = {}
        """Run id and segment -> where its scores go, of the newest runs that may be in a trace of the host."""
        self._sample_rate = _share(sample_rate)
        if capture not in {"all", "shape", "none"}:
            msg = f"LangfuseTracing(capture={capture!r}): it is 'all', 'shape' or 'none'"
            raise DeclarationError(msg)
        self.connection = Connection.of(public_key, secret_key, base_url, environment, release)
        self.capture: Capture = capture
        self.redact = redact
        self._max_content = max_content
        self._http, self._score_http = Http(self.connection), Http(self.connection)
        self._spans = Sender(
            self._send_spans, what="observations", on_close=self._http.close, exit_seconds=exit_seconds
        )
        self._media = Media(self._http.send_file, self._spans.lose)
        after_fork(self._media.begin)
        self._scores = Sender(
            self._send_scores, what="scores", on_close=self._score_http.close, exit_seconds=exit_seconds
        )
        labels = {Names.ENVIRONMENT: self.connection.environment, "service.name": "stagegraph"}
        if self.connection.release:
            labels[Names.RELEASE] = self.connection.release
        resource = Resource(labels)  # `create` would add the values of the host's variables
        provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, span_limits=_NO_LIMITS)
        provider.add_span_processor(self._spans)
        provider._disabled = False  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - OTEL_SDK_DISABLED is the host's
        settings = InstrumentationSettings(
            tracer_provider=provider,
            meter_provider=NoOpMeterProvider(),
            include_content=capture == "all",
            include_binary_content=capture == "all" and self._media.enabled,
        )
        tracer = provider.get_tracer("pydantic-ai")
        scope = InstrumentationScope(
            "langfuse-sdk", sdk_version(), attributes={"public_key": self.connection.public_key}
        )
        self._output = Output(
            self.connection, self.capture, self._spans, resource, tracer, settings, scope, self._media
        )

    @property
    def lost(self) -> int:
        """Number of observations and scores of this process that the server did not accept."""
        return self._spans.lost + self._scores.lost

    def open(self, start: TraceStart) -> LangfuseTrace | None:
        """Start the trace of a run; returns `None` if the run is not in the sample."""
        if not self._shows(start.run_id):
            return None
        try:
            trace = LangfuseTrace(start, self._output, joins=self._join)
            if self._join:
                root = observation_id(start.run_id, start.root_key, start.segment)
                place = {"traceId": f"{trace.number:032x}", "observationId": root}
                self._joined[start.run_id, start.segment] = place
                if len(self._joined) > _MOST_JOINED:
                    del self._joined[next(iter(self._joined))]
            return trace
        except Exception as problem:  # noqa: BLE001 - tracing must not fail a run
            self._output.miss(problem)
            return None

    def _shows(self, run_id: str) -> bool:
        """Whether the run is in the sample. The id decides, so a resumed run gets the same answer in every process."""
        return int(trace_id(run_id)[:16], 16) < self._sample_rate * 2**64

    def _send_spans(self, spans: list[ReadableSpan]) -> None:
        policy = self._policy()
        sent = [policy.apply(span) for span in spans]
        self._http.send_spans(sent)
        for span in sent:
            if span.context is not None:
                self._media.send(span.attributes or {}, f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}")

    def _policy(self) -> Policy:
        return Policy(self.capture, self.redact, self._max_content, known_secrets(self.connection.secret_key))

    def score(self, run_id: str, feedback: Feedback, segment: int, begun: datetime) -> None:
        """Send a score to the run's trace, or to the observation of one call.

        The server replaces a score only if id and time are equal, so all scores of a run carry the run's start time.
        """
        if not self._shows(run_id) or (feedback.name == CORRECTION and self.capture != "all"):
            return  # a correction contains an output
        value, kind, known = feedback.value, _kind(feedback), self._joined.get((run_id, segment))
        policy = self._policy()
        body: dict[str, Any] = {
            "id": score_id(run_id, feedback.key, feedback.name),
            "traceId": trace_id(run_id),
            **(known or {}),
            "name": feedback.name,
            "value": (policy.json if kind == "CORRECTION" else policy.text)(value)
            if isinstance(value, str)
            else +value,
            "dataType": kind,
            "environment": self.connection.environment,
            "timestamp": begun.isoformat(timespec="milliseconds"),
            "metadata": {"given": feedback.time.isoformat(timespec="milliseconds")},
        }
        if feedback.key is not None:
            body["observationId"] = observation_id(run_id, feedback.key, segment)
        if feedback.comment is not None and self.capture == "all":
            body["comment"] = policy.text(feedback.comment)
        asked = observation_id(run_id, feedback.key or "", segment) if self._join and known is None else ""
        self._scores.on_end(score_span(json.dumps(body, ensure_ascii=False), asked))

    def _send_scores(self, scores: list[ReadableSpan]) -> None:
        self._score_http.send_scores([self._placed(score) if score.name else score for score in scores])

    def _placed(self, score: ReadableSpan) -> ReadableSpan:
        """The score of a run that another process ran, maybe in a trace of the host: the server knows in which."""
        trace, body = self._score_http.trace_of(score.name), body_of(score)
        if trace is None:
            log.warning("score `%s` goes to the run's own trace: Langfuse does not show another one yet", body["name"])
            return score
        return score_span(json.dumps({"observationId": score.name, **body, "traceId": trace}, ensure_ascii=False))

    async def flush(self, seconds: float | None = None) -> bool:
        """Send what is queued, for at most *seconds* (or `exit_seconds`); returns whether the server accepted it."""
        seconds = self._exit_seconds if seconds is None else seconds
        done = await asyncio.gather(
            asyncio.to_thread(self._spans.flush, seconds), asyncio.to_thread(self._scores.flush, seconds)
        )
        return all(done)

    def close(self, seconds: float | None = None) -> None:
        """Send what is queued and accept nothing more; called at the end of the process, too."""
        close_all((self._spans, self._scores), seconds)

    def __repr__(self) -> str:
        return f"<LangfuseTracing {self.connection.base_url} {self.connection.environment}>"


def _kind(feedback: Feedback) -> str:
    """Langfuse's data type for a score of this value."""
    value = feedback.value
    if isinstance(value, bool):
        return "BOOLEAN"
    if isinstance(value, (int, float)):
        return "NUMERIC"
    if feedback.name == CORRECTION:  # an output as JSON
        return "CORRECTION"
    return "CATEGORICAL" if len(value) <= 100 and "\n" not in value else "TEXT"  # noqa: PLR2004


def _share(given: float | None) -> float:
    said = os.environ.get("LANGFUSE_SAMPLE_RATE") or 1.0 if given is None else given
    try:
        share = float(said)
    except ValueError:
        share = nan
    if not 0 <= share <= 1:
        where = "LANGFUSE_SAMPLE_RATE" if given is None else "LangfuseTracing(sample_rate=)"
        msg = f"{where} is {said!r}: a share of runs is a number between 0 and 1"
        raise DeclarationError(msg)
    return share


_of_process: dict[None, LangfuseTracing] = {}


def shared() -> LangfuseTracing:
    """The tracing of runners without one of their own: one per process, also when several threads call at once."""
    return _of_process.get(None) or _of_process.setdefault(None, LangfuseTracing())
