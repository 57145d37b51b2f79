"""Runs as Langfuse traces: the object for `Runner(tracing=)`, with one observation per call of a run.

The spans of Pydantic AI are inside the observations of the stages.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from copy import copy
from time import time
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry.metrics import NoOpMeterProvider
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, NoOpTracerProvider, Status, StatusCode
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.durable_exec import replay_scope
from pydantic_ai.models.instrumented import InstrumentationSettings

from stagegraph.record.rows import CORRECTION
from stagegraph.schema.errors import DeclarationError

from .attributes import Attributes, Names, common, metadata, observation_id, sampled, score_id, span_number, trace_id
from .connection import Connection, sdk_version
from .host import CallTracer, environment, instrumentation, open_span, owns_all_spans, taken_over
from .media import Media
from .policy import Capture, Policy, Redact, shape
from .secrets import scrubber
from .sending import Http, Sender, after_fork, body_of, close_all, log, score_span

if TYPE_CHECKING:
    from datetime import datetime

    from opentelemetry.trace import SpanContext
    from pydantic_ai.capabilities import AbstractCapability

    from stagegraph.data.call import CallError
    from stagegraph.data.call import Status as CallStatus
    from stagegraph.data.score import Feedback
    from stagegraph.nodes.stage import Stage
    from stagegraph.runner.observer import TraceStart
    from stagegraph.runner.state import CallState
    from stagegraph.schema.schema import Record

MAX_CONTENT = 256_000
"""Bytes of one input or output; longer content is cut and flagged."""

_MOST_JOINED = 10_000
_KINDS = {"stage": ("stage", "agent"), "step": ("step", "tool"), "graph": ("graph", "chain")}
"""Kind of call -> the first word of the observation's name, and the observation's type."""
_NAME_OF_ITEM = re.compile(r"\[(?!\d+\])[^\]]*\]")
"""The part of a key that `fan_out(key=)` made from an item."""


class LangfuseTracing:
    """Tracing to Langfuse, for `Runner(tracing=)`. A runner uses it by default if the keys are in the environment.

    Runs never wait for the server and never fail because of it. Data that the server does not accept is counted
    (`lost`), and the first loss is logged. The host's OpenTelemetry is neither used nor changed.

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
        self.spans = Sender(self._send_spans, what="observations", on_close=self._http.close, exit_seconds=exit_seconds)
        self.media = Media(self._http.send_file, self.spans.lose)
        after_fork(self.media.begin)
        self._scores = Sender(
            self._send_scores, what="scores", on_close=self._score_http.close, exit_seconds=exit_seconds
        )
        labels = {Names.ENVIRONMENT: self.connection.environment, "service.name": "stagegraph"}
        if self.connection.release:
            labels[Names.RELEASE] = self.connection.release
        self.resource = Resource(labels)  # `create` would add the values of the host's variables
        self.scope = InstrumentationScope(
            "langfuse-sdk", sdk_version(), attributes={"public_key": self.connection.public_key}
        )
        self.settings = InstrumentationSettings(
            tracer_provider=NoOpTracerProvider(),  # each call has a tracer of its own
            meter_provider=NoOpMeterProvider(),
            include_content=capture == "all",
            include_binary_content=capture == "all" and self.media.enabled,
        )

    @property
    def lost(self) -> int:
        """Number of observations and scores of this process that the server did not accept."""
        return self.spans.lost + self._scores.lost

    def open(self, start: TraceStart) -> LangfuseTrace | None:
        """Start the trace of a run; returns `None` if the run is not in the sample."""
        if not self._shows(start.run_id):
            return None
        try:
            trace = LangfuseTrace(start, self, joins=self._join)
            if self._join:
                root = observation_id(start.run_id, start.root_key, start.segment)
                place = {"traceId": f"{trace.number:032x}", "observationId": root}
                self._joined[start.run_id, start.segment] = place
                if len(self._joined) > _MOST_JOINED:
                    del self._joined[next(iter(self._joined))]
            return trace
        except Exception as problem:  # noqa: BLE001 - tracing must not fail a run
            self.miss(problem)
            return None

    def miss(self, problem: Exception) -> None:
        """Count an observation that could not be created."""
        self.spans.lose(1, f"an observation could not be created: {type(problem).__name__}")

    def _shows(self, run_id: str) -> bool:
        """Whether the run is in the sample. The id decides, so a resumed run gets the same answer in every process."""
        return int(trace_id(run_id)[:16], 16) < self._sample_rate * 2**64

    def _send_spans(self, spans: list[ReadableSpan]) -> None:
        policy = self._policy()
        sent = [policy.apply(span) for span in spans]
        self._http.send_spans(sent)
        for span in sent:
            self.media.send(span)

    def _policy(self) -> Policy:
        return Policy(self.capture, self.redact, self._max_content, scrubber(self.connection.secret_key))

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
            "value": policy.cleaned(value, as_json=kind == "CORRECTION") if isinstance(value, str) else +value,
            "dataType": kind,
            "environment": self.connection.environment,
            "timestamp": begun.isoformat(timespec="milliseconds"),
            "metadata": {"given": feedback.time.isoformat(timespec="milliseconds")},
        }
        if feedback.key is not None:
            body["observationId"] = observation_id(run_id, feedback.key, segment)
        if feedback.comment is not None and self.capture == "all":
            body["comment"] = policy.cleaned(feedback.comment, as_json=False)
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
            asyncio.to_thread(self.spans.flush, seconds), asyncio.to_thread(self._scores.flush, seconds)
        )
        return all(done)

    def close(self, seconds: float | None = None) -> None:
        """Send what is queued and accept nothing more; called at the end of the process, too."""
        close_all((self.spans, self._scores), seconds)

    def __repr__(self) -> str:
        return f"<LangfuseTracing {self.connection.base_url} {self.connection.environment}>"


class LangfuseTrace:
    """The trace of one run."""

    def __init__(self, start: TraceStart, tracing: LangfuseTracing, *, joins: bool) -> None:
        connection = tracing.connection
        self._start, self._tracing = taken_over(start), tracing
        self._host = open_span(connection.public_key)
        """The span of the host's own client around the run."""
        self._parent: SpanContext | None = None
        """Where a run that joins the host's trace stands."""
        self.number = int(trace_id(start.run_id), 16)
        """The id of the trace."""
        joined = joins and self._host is not None
        if joins and self._host is not None:
            context, arrives = self._host
            self.number, self._parent = context.trace_id, context if arrives else None
        self._owned = owns_all_spans(connection.public_key)
        segment = start.segment or None
        self._of_run = metadata({"run_id": start.run_id, "segment": segment, "resumed": segment and True})
        self._common = common(self._start, environment(connection.environment), connection.release, joined=joined)

    def agent(self, entry: CallState, stage: Stage[Any, Any]) -> Sequence[AbstractCapability[Any]]:
        """The instrumentation of one stage call's agent, together with the host's own if there is one."""
        tracing, settings = self._tracing, copy(self._tracing.settings)
        origin = self._start.prompts.origins.get(entry.path)
        before, hosts = instrumentation(stage.agent, tracing.connection.public_key)
        settings.tracer = CallTracer(
            sender=tracing.spans,
            resource=tracing.resource,
            taken_out=tracing.media.taken_out,
            call=self._context(entry),
            common=self._common,
            generation={} if origin is None else {Names.PROMPT_NAME: origin.name, Names.PROMPT_VERSION: origin.version},
            name=entry.path if stage.agent.name is None else None,
            visible=self._owned or (before is not None and hosts is None),
        )
        if hosts is None:  # with the id that the host's has by default, which it replaces
            return [Instrumentation(settings=settings)]
        return [Instrumentation(settings=settings, id="stagegraph"), Instrumentation(settings=hosts)]

    def replaying(self) -> AbstractContextManager[None]:
        """The context for an agent that replays recorded requests."""
        return replay_scope()

    def ended(self, entry: CallState) -> None:
        """Send the observation of a call that ended."""
        self.finished(entry, entry.status, entry.error)

    def finished(self, root: CallState, status: CallStatus, error: CallError | None) -> None:
        """Send the observation of the run itself."""
        try:
            self._tracing.spans.on_end(self._observation(root, status, error))
        except Exception as problem:  # noqa: BLE001 - a user's `__repr__` may raise, and tracing must not fail a run
            self._tracing.miss(problem)

    def _context(self, entry: CallState) -> SpanContext:
        return sampled(self.number, span_number(self._start.run_id, entry.key, self._start.segment))

    def _observation(self, entry: CallState, status: CallStatus, error: CallError | None) -> ReadableSpan:
        start, parent, host = self._start, entry.parent, self._host if entry.parent is None else None
        word, type_ = _KINDS[entry.node.__node__.kind]
        attributes = {
            Names.TYPE: type_,
            **self._outcome(status, error),
            **self._of_run,
            **metadata(self._about(entry, status, error)),
            **self._contents(entry, status),
            **self._common,
        }
        if parent is None:
            attributes[Names.IS_ROOT] = True
        return ReadableSpan(
            name=start.graph if parent is None and not entry.path else f"{word}:{entry.path}",
            context=self._context(entry),
            parent=self._parent if parent is None else self._context(parent),
            links=[] if host is None else [Link(host[0])],
            resource=self._tracing.resource,
            attributes=attributes,
            status=Status(StatusCode.ERROR if status == "failed" else StatusCode.UNSET),
            start_time=int(start.clock.seconds(entry.began) * 1e9),
            end_time=int(start.clock.seconds(entry.ended) * 1e9) if entry.ended else int(time() * 1e9),
            instrumentation_scope=self._tracing.scope,
        )

    def _outcome(self, status: CallStatus, error: CallError | None) -> Attributes:
        if status == "cancelled":
            return {Names.LEVEL: "WARNING", Names.STATUS: "cancelled"}
        if status != "failed":
            return {}
        said = "" if error is None else str(error) if self._tracing.capture == "all" else error.type
        return {Names.LEVEL: "ERROR", Names.STATUS: said or "failed"}

    def _about(self, entry: CallState, status: CallStatus, error: CallError | None) -> dict[str, object]:
        """The metadata of an observation."""
        start, stage = self._start, entry.node.__node__.kind == "stage"
        host = self._host[0] if self._host is not None and entry.parent is None else None
        index, size = entry.fan or (None, None)
        cause = (entry.error or error) if status == "failed" else None  # the run's own error has no origin
        deployed = "langfuse" if entry.path in start.prompts.origins else "prompts"
        return {
            "host_trace": None if host is None else f"{host.trace_id:032x}",
            "host_observation": None if host is None else f"{host.span_id:016x}",
            "path": entry.path,
            "key": self._key(entry.key),
            "kind": entry.node.__node__.kind,
            "fan_out_index": index,
            "fan_out_size": size,
            "status": None if status in {"succeeded", "failed"} else status,
            "origin": None if cause is None else self._key(cause.origin),
            "transient": True if cause is not None and cause.transient else None,
            "replayed": entry.replayed or None,
            "attempts": entry.use.attempts if stage else None,
            "prompt_source": None if not stage else deployed if entry.path in start.prompts else "code",
        }

    def _key(self, key: str | None) -> str | None:
        return key if key is None or self._tracing.capture == "all" else _NAME_OF_ITEM.sub("[*]", key)

    def _contents(self, entry: CallState, status: CallStatus) -> Attributes:
        capture, node, succeeded = self._tracing.capture, entry.node.__node__, status == "succeeded"
        if capture == "none":
            return {}
        if capture == "shape":
            shown = {Names.INPUT: json.dumps(shape(entry.input))}
            return shown | {Names.OUTPUT: json.dumps(shape(entry.output))} if succeeded else shown
        given = self._sent("input", node.input_type.published(entry.input))
        return given | self._sent("output", node.output_type.published(entry.output)) if succeeded else given

    def _sent(self, name: Literal["input", "output"], record: Record) -> Attributes:
        """The public form of a value, and in the metadata what it is, where that form does not determine it."""
        media = self._tracing.media
        shown = media.taken_out(record.plain)
        sent = {Names.INPUT if name == "input" else Names.OUTPUT: shown}
        if record.whole is None or (shown != record.plain and not media.enabled):
            return sent
        return {**sent, f"{Names.METADATA}.{name}_whole": media.taken_out(f"[{record.whole}]")}


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
    with suppress(ValueError):
        if 0 <= float(said) <= 1:
            return float(said)
    where = "LANGFUSE_SAMPLE_RATE" if given is None else "LangfuseTracing(sample_rate=)"
    msg = f"{where} is {said!r}: a share of runs is a number between 0 and 1"
    raise DeclarationError(msg)


_of_process: dict[None, LangfuseTracing] = {}


def shared() -> LangfuseTracing:
    """The tracing of runners without one of their own: one per process, also when several threads call at once."""
    return _of_process.get(None) or _of_process.setdefault(None, LangfuseTracing())
