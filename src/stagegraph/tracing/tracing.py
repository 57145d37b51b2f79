"""Runs as Langfuse traces: what a runner takes as its tracing."""

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
from pydantic_ai.models.instrumented import InstrumentationSettings

from stagegraph.record.source import CORRECTION
from stagegraph.schema.errors import DeclarationError

from .attributes import Names, observation_id, score_id, trace_id
from .connection import Connection
from .policy import Capture, Policy, Redact
from .secrets import known_secrets
from .sending import Http, Sender, close_all, score_span
from .spans import LangfuseTrace, Output

if TYPE_CHECKING:
    from datetime import datetime

    from stagegraph.data.score import Feedback
    from stagegraph.runner.observer import TraceStart

MAX_CONTENT = 256_000
"""Bytes of one input or output; what is longer is cut and flagged."""


_LIMITS = ("max_attributes", "max_span_attributes", "max_event_attributes", "max_events", "max_attribute_length")
_NO_LIMITS = SpanLimits(**dict.fromkeys(_LIMITS, SpanLimits.UNSET))
"""What the host wrote in OpenTelemetry's variables is meant for its own spans."""


class LangfuseTracing:
    """Shows runs in Langfuse: what `Runner(tracing=)` takes, and has by itself when the keys are in the environment.

    Runs never wait for the server, and never fail because of it. What it does not take is counted (`lost`) and logged
    once. The host's OpenTelemetry is left alone: the spans are made by a tracer provider of their own.

    Args:
        public_key: Like everything that is `None`, from Langfuse's own variable: `LANGFUSE_PUBLIC_KEY`.
        secret_key: `LANGFUSE_SECRET_KEY`.
        base_url: `LANGFUSE_BASE_URL`; Langfuse's cloud without it.
        environment: `LANGFUSE_TRACING_ENVIRONMENT`: `production`, `staging`.
        release: `LANGFUSE_RELEASE`: the version of the program.
        sample_rate: `LANGFUSE_SAMPLE_RATE`: the share of runs that is shown, from 0 to 1, all without it; a run is
            shown whole or not at all.
        redact: Gets every JSON value and text that was written by a user or a model, and gives what may be sent.
        capture: `all`; `shape` shows types and sizes in place of contents; `none` shows neither.
        max_content: Bytes of one input or output, or of the messages of one request.
        exit_seconds: How long the end of the process may be held up for what was not sent yet.

    Raises:
        DeclarationError: there are no keys, or a value is out of its range.
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
    ) -> None:
        self._sample_rate = _share(sample_rate)
        if capture not in {"all", "shape", "none"}:
            msg = f"LangfuseTracing(capture={capture!r}): it is 'all', 'shape' or 'none'"
            raise DeclarationError(msg)
        self.connection = Connection.of(public_key, secret_key, base_url, environment, release)
        self.capture: Capture = capture
        self.redact = redact
        self._max_content = max_content
        self._http, http = Http(self.connection), Http(self.connection)
        self._spans = Sender(
            self._send_spans, what="observations", on_close=self._http.close, exit_seconds=exit_seconds
        )
        self._scores = Sender(http.send_scores, what="scores", on_close=http.close, exit_seconds=exit_seconds)
        labels = {Names.ENVIRONMENT: self.connection.environment, "service.name": "stagegraph"}
        if self.connection.release:
            labels[Names.RELEASE] = self.connection.release
        resource = Resource(labels)  # `create` would add what the host's variables say
        provider = TracerProvider(ALWAYS_ON, resource, shutdown_on_exit=False, span_limits=_NO_LIMITS)
        provider.add_span_processor(self._spans)
        provider._disabled = False  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - OTEL_SDK_DISABLED is the host's
        settings = InstrumentationSettings(
            tracer_provider=provider,
            meter_provider=NoOpMeterProvider(),
            include_content=capture == "all",
            include_binary_content=False,
        )
        tracer = provider.get_tracer("pydantic-ai")
        self._output = Output(self.connection, self.capture, self._spans, resource, tracer, settings)

    @property
    def lost(self) -> int:
        """Observations and scores of this process that the server did not take."""
        return self._spans.lost + self._scores.lost

    def open(self, start: TraceStart) -> LangfuseTrace | None:
        """Begin the trace of a run, unless it is not in the sample."""
        if not self._shows(start.run_id):
            return None
        try:
            return LangfuseTrace(start, self._output)
        except Exception as problem:  # noqa: BLE001 - no run fails for being watched
            self._output.miss(problem)
            return None

    def _shows(self, run_id: str) -> bool:
        """Whether the run is in the sample: its id decides, in every process and whenever it is resumed."""
        return int(trace_id(run_id)[:16], 16) < self._sample_rate * 2**64

    def _send_spans(self, spans: list[ReadableSpan]) -> None:
        policy = self._policy()
        self._http.send_spans([policy.apply(span) for span in spans])

    def _policy(self) -> Policy:
        return Policy(self.capture, self.redact, self._max_content, known_secrets(self.connection.secret_key))

    def score(self, run_id: str, feedback: Feedback, segment: int, begun: datetime) -> None:
        """Send a score to the run's trace, or to the observation of one call.

        The server replaces a score only by one with the same id and time, so all of a run's carry the time it began.
        """
        if not self._shows(run_id) or (feedback.name == CORRECTION and self.capture != "all"):
            return  # a correction is an output, and nothing but that
        value, kind = feedback.value, _kind(feedback)
        policy = self._policy()
        body: dict[str, Any] = {
            "id": score_id(run_id, feedback.key, feedback.name),
            "traceId": trace_id(run_id),
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
        self._scores.on_end(score_span(json.dumps(body, ensure_ascii=False)))

    async def flush(self, seconds: float = 2.0) -> bool:
        """Send what waits, for so long at most; whether the server took everything."""
        done = await asyncio.gather(
            asyncio.to_thread(self._spans.flush, seconds), asyncio.to_thread(self._scores.flush, seconds)
        )
        return all(done)

    def close(self, seconds: float | None = None) -> None:
        """Send what waits and take nothing more; the end of the process does it, too."""
        close_all((self._spans, self._scores), seconds)

    def __repr__(self) -> str:
        return f"<LangfuseTracing {self.connection.base_url} {self.connection.environment}>"


def _kind(feedback: Feedback) -> str:
    """What Langfuse calls a score of this value."""
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
    """The tracing of runners that were given none: one for the process, also when threads ask for it at once."""
    return _of_process.get(None) or _of_process.setdefault(None, LangfuseTracing())
