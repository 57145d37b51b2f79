"""One run as a trace: one observation per call, with Pydantic AI's spans inside those of the stages."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy
from dataclasses import dataclass
from time import time
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import Link, Status, StatusCode
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.durable_exec import replay_scope

from .agent_spans import CallTracer
from .attributes import Attributes, Names, common, metadata, sampled, span_number, trace_id, without_none
from .host import environment, instrumentation, link, open_span, owns_all_spans, taken_over
from .policy import shape

if TYPE_CHECKING:
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.util.instrumentation import InstrumentationScope
    from opentelemetry.trace import SpanContext, Tracer
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.models.instrumented import InstrumentationSettings

    from stagegraph.data.call import CallError
    from stagegraph.data.call import Status as CallStatus
    from stagegraph.nodes.stage import Stage
    from stagegraph.runner.observer import TraceStart
    from stagegraph.runner.state import CallState
    from stagegraph.schema.schema import Record

    from .connection import Connection
    from .media import Media
    from .policy import Capture
    from .sending import Sender

_KINDS = {"stage": ("stage", "agent"), "step": ("step", "tool"), "graph": ("graph", "chain")}
"""Kind of call -> the first word of the observation's name, and the observation's type."""

_NAME_OF_ITEM = re.compile(r"\[(?!\d+\])[^\]]*\]")
"""The part of a key that `fan_out(key=)` made from an item."""


@dataclass(frozen=True, slots=True)
class Output:
    """The destination of a tracing's observations, and the settings for creating them."""

    connection: Connection
    capture: Capture
    spans: Sender
    resource: Resource
    tracer: Tracer
    settings: InstrumentationSettings
    scope: InstrumentationScope
    media: Media

    def miss(self, problem: Exception) -> None:
        """Count an observation that could not be created."""
        self.spans.lose(1, f"an observation could not be created: {type(problem).__name__}")


class LangfuseTrace:
    """The trace of one run."""

    def __init__(self, start: TraceStart, output: Output, *, joins: bool = False) -> None:
        self._output = output
        self._start = start = taken_over(start)
        connection = output.connection
        self._host = open_span(connection.public_key)
        """The span of the host's own client around the run."""
        self._parent: SpanContext | None = None
        """Where a run that joins the host's trace stands."""
        self.number = int(trace_id(start.run_id), 16)
        """The id of the trace."""
        joined = joins and self._host is not None
        if joined and self._host is not None:
            context, arrives = self._host
            self.number, self._parent = context.trace_id, context if arrives else None
        self._owned = owns_all_spans(connection.public_key)
        where = environment(connection.environment)
        self._common = common(start, where, connection.release, joined=joined)

    def agent(self, entry: CallState, stage: Stage[Any, Any]) -> Sequence[AbstractCapability[Any]]:
        """The instrumentation of one stage call's agent, together with the host's own if there is one."""
        settings = copy(self._output.settings)
        call = sampled(self.number, self._span(entry))
        origin = self._start.prompts.origins.get(entry.path)
        prompt = {} if origin is None else {Names.PROMPT_NAME: origin.name, Names.PROMPT_VERSION: origin.version}
        name = entry.path if stage.agent.name is None else None
        before, hosts = instrumentation(stage.agent, self._output.connection.public_key)
        visible = self._owned or (before is not None and hosts is None)
        settings.tracer = CallTracer(
            self._output.tracer, call, self._common, prompt, self._output.media.taken_out, name=name, visible=visible
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
            self._show(root, status, error)
        except Exception as problem:  # noqa: BLE001 - a user's `__repr__` may raise, and tracing must not fail a run
            self._output.miss(problem)

    def _span(self, entry: CallState) -> int:
        return span_number(self._start.run_id, entry.key, self._start.segment)

    def _show(self, entry: CallState, status: CallStatus, error: CallError | None) -> None:
        start, parent = self._start, entry.parent
        word, type_ = _KINDS[entry.node.__node__.kind]
        level, message, outcome = None, None, StatusCode.UNSET
        if status == "failed":
            said = None if error is None else str(error) if self._output.capture == "all" else error.type
            level, message, outcome = "ERROR", said or "failed", StatusCode.ERROR
        elif status == "cancelled":
            level, message = "WARNING", "cancelled"
        own = {
            Names.TYPE: type_,
            Names.LEVEL: level,
            Names.STATUS: message,
            Names.IS_ROOT: True if parent is None else None,
        }
        if parent is None:
            own |= metadata(link(self._host))
        cause = entry.error or error  # the run's own error has no origin
        if cause is not None and status == "failed":
            own |= metadata({"origin": self._key(cause.origin), "transient": cause.transient or None})
        attributes = {
            **without_none(own),
            **self._contents(entry, status),
            **self._about(entry, status),
            **self._common,
        }
        span = ReadableSpan(
            name=start.graph if parent is None and not entry.path else f"{word}:{entry.path}",
            context=sampled(self.number, self._span(entry)),
            parent=self._parent if parent is None else sampled(self.number, self._span(parent)),
            links=[Link(self._host[0])] if parent is None and self._host is not None else [],
            resource=self._output.resource,
            attributes=attributes,
            status=Status(outcome),
            start_time=int(start.clock.seconds(entry.began) * 1e9),
            end_time=int(start.clock.seconds(entry.ended) * 1e9) if entry.ended else int(time() * 1e9),
            instrumentation_scope=self._output.scope,
        )
        self._output.spans.on_end(span)

    def _about(self, entry: CallState, status: CallStatus) -> Attributes:
        start, kind = self._start, entry.node.__node__.kind
        index, size = entry.fan or (None, None)
        deployed = "langfuse" if entry.path in start.prompts.origins else "prompts"
        return metadata(
            {
                "path": entry.path,
                "key": self._key(entry.key),
                "kind": kind,
                "run_id": start.run_id,
                "fan_out_index": index,
                "fan_out_size": size,
                "status": None if status in {"succeeded", "failed"} else status,
                "replayed": entry.replayed or None,
                "resumed": True if start.segment else None,
                "segment": start.segment or None,
                "attempts": entry.use.attempts if kind == "stage" else None,
                "prompt_source": None if kind != "stage" else deployed if entry.path in start.prompts else "code",
            }
        )

    def _key(self, key: str | None) -> str | None:
        return key if key is None or self._output.capture == "all" else _NAME_OF_ITEM.sub("[*]", key)

    def _contents(self, entry: CallState, status: CallStatus) -> Attributes:
        capture, node = self._output.capture, entry.node
        if capture == "none":
            return {}
        if capture == "shape":
            output = json.dumps(shape(entry.output)) if status == "succeeded" else None
            return without_none({Names.INPUT: json.dumps(shape(entry.input)), Names.OUTPUT: output})
        given = node.__node__.input_type.published(entry.input)
        output = node.__node__.output_type.published(entry.output) if status == "succeeded" else None
        return {**self._sent("input", given), **({} if output is None else self._sent("output", output))}

    def _sent(self, name: Literal["input", "output"], record: Record) -> Attributes:
        """The public form of a value, and in the metadata what it is, where that form does not determine it."""
        media = self._output.media
        shown = media.taken_out(record.plain)
        sent = {Names.INPUT if name == "input" else Names.OUTPUT: shown}
        if record.whole is None or (shown != record.plain and not media.enabled):
            return sent
        return {**sent, f"{Names.METADATA}.{name}_whole": media.taken_out(f"[{record.whole}]")}
