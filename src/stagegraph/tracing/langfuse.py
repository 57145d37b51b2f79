"""Runs as Langfuse traces: the tracing that a runner takes, and how it sends."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from math import nan
from typing import TYPE_CHECKING, Any

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan, SpanLimits, TracerProvider
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from pydantic_ai.models.instrumented import InstrumentationSettings

from stagegraph.schema.errors import DeclarationError

from ._connection import Connection
from ._content import Capture, Redact, redacted, redacted_text
from ._ids import observation_id, score_id, trace_id, trace_number
from ._outbox import Outbox
from ._process import close_all
from ._scrubbing import scrubbed
from ._secrets import known_secrets
from ._spans import Attributes, Policy
from ._trace import LangfuseTrace
from ._wire import Wire
from .source import CORRECTION

if TYPE_CHECKING:
    from datetime import datetime

    from stagegraph.data.score import Feedback
    from stagegraph.runner.observer import TraceStart

__all__ = ["LangfuseTracing", "shared"]

Observed = tuple[ReadableSpan, Attributes]
"""A span, and the attributes that it shares with all of its run."""
MAX_CONTENT = 256_000
"""Bytes of one input or output; what is longer is cut and flagged."""


_NO_LIMITS = SpanLimits(
    **dict.fromkeys(
        ("max_attributes", "max_span_attributes", "max_event_attributes", "max_events", "max_attribute_length"),
        SpanLimits.UNSET,
    )
)
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
        self._policy = Policy(capture, redact, max_content)
        self._wires = Wire(self.connection), Wire(self.connection)
        self._spans: Outbox[Observed] = Outbox(
            self._send_spans,
            what="observations",
            exit_seconds=exit_seconds,
            on_fork=self._wires[0].reset,
            on_end=self._wires[0].close,
        )
        self._scores: Outbox[dict[str, Any]] = Outbox(
            self._wires[1].send_scores,
            what="scores",
            exit_seconds=exit_seconds,
            on_fork=self._wires[1].reset,
            on_end=self._wires[1].close,
        )
        labels = {"langfuse.environment": self.connection.environment, "service.name": "stagegraph"}
        if self.connection.release:
            labels["langfuse.release"] = self.connection.release
        self.resource = Resource(labels)  # `create` would add what the host's variables say
        provider = TracerProvider(ALWAYS_ON, self.resource, shutdown_on_exit=False, span_limits=_NO_LIMITS)
        provider._disabled = False  # noqa: SLF001  # pyright: ignore[reportPrivateUsage] - OTEL_SDK_DISABLED is the host's
        self.tracer = provider.get_tracer("pydantic-ai")
        self.settings = InstrumentationSettings(
            tracer_provider=provider,
            meter_provider=NoOpMeterProvider(),
            include_content=capture == "all",
            include_binary_content=False,
        )

    @property
    def lost(self) -> int:
        """Observations and scores of this process that the server did not take."""
        return self._spans.lost + self._scores.lost

    def open(self, start: TraceStart) -> LangfuseTrace | None:
        """Begin the trace of a run, unless it is not in the sample."""
        if not self._shows(start.run_id):
            return None
        try:
            return LangfuseTrace(self, start, trace_number(start.run_id))
        except Exception as problem:  # noqa: BLE001 - no run fails for being watched
            self.miss(problem)
            return None

    def _shows(self, run_id: str) -> bool:
        """Whether the run is in the sample: its id decides, in every process and whenever it is resumed."""
        return (trace_number(run_id) >> 64) < self._sample_rate * 2**64

    def put(self, span: ReadableSpan, common: Attributes, size: int) -> None:
        """Let one span wait to be sent; it gets what all of its run have in *common* then."""
        self._spans.put((span, common), size)

    def miss(self, problem: Exception) -> None:
        """Count an observation that could not be made."""
        self._spans.lose(1, f"one could not be made: {type(problem).__name__}")

    def _send_spans(self, spans: list[Observed]) -> None:
        policy = replace(self._policy, secrets=known_secrets(self.connection.secret_key))
        self._wires[0].send_spans([policy.apply(span, common) for span, common in spans])

    def score(self, run_id: str, feedback: Feedback, segment: int, begun: datetime) -> None:
        """Send a score to the run's trace, or to the observation of one call.

        The server replaces a score only by one with the same id and time, so all of a run's carry the time it began.
        """
        if not self._shows(run_id) or (feedback.name == CORRECTION and self.capture != "all"):
            return  # a correction is an output, and nothing but that
        value, kind = feedback.value, "TEXT"
        if feedback.name == CORRECTION and isinstance(value, str):
            kind = "CORRECTION"
        elif isinstance(value, bool):
            value, kind = int(value), "BOOLEAN"
        elif isinstance(value, (int, float)):
            kind = "NUMERIC"
        elif len(value) <= 100 and "\n" not in value:  # noqa: PLR2004
            kind = "CATEGORICAL"
        body: dict[str, Any] = {
            "id": score_id(run_id, feedback.key, feedback.name),
            "traceId": trace_id(run_id),
            "name": feedback.name,
            "value": self._said(value, kind) if isinstance(value, str) else value,
            "dataType": kind,
            "environment": self.connection.environment,
        }
        if feedback.key is not None:
            body["observationId"] = observation_id(run_id, feedback.key, segment)
        if feedback.comment is not None and self.capture == "all":
            body["comment"] = self._text(feedback.comment)
        body["timestamp"] = begun.isoformat(timespec="milliseconds")
        body["metadata"] = {"given": feedback.time.isoformat(timespec="milliseconds")}
        self._scores.put(body, 300 + len(str(body["value"])) + len(body.get("comment", "")))

    def _said(self, value: str, kind: str) -> str:
        """What a score says; a correction is an output as JSON, and is redacted as one."""
        if kind == "CORRECTION" and self.redact is not None:
            return scrubbed(redacted(value, self.redact), known_secrets(self.connection.secret_key))
        return self._text(value)

    def _text(self, text: str) -> str:
        said = text if self.redact is None else redacted_text(text, self.redact)
        return scrubbed(said, known_secrets(self.connection.secret_key))

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
