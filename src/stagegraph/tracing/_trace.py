"""One run as a trace: one observation a call, with Pydantic AI's spans inside those of the stages."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from copy import copy
from time import time
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Status, StatusCode
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.durable_exec import replay_scope

from ._agents import CallTracer
from ._content import shape, without_files
from ._ids import span_number
from ._spans import (
    EXPERIMENT,
    EXPERIMENTS,
    INPUT,
    LEVEL,
    OUTPUT,
    STATUS,
    TYPE,
    Attributes,
    beside_own,
    common,
    experiment_attributes,
    metadata,
    names,
    sampled,
)

if TYPE_CHECKING:
    from pydantic_ai.capabilities import AbstractCapability

    from stagegraph.data.call import CallError
    from stagegraph.data.call import Status as CallStatus
    from stagegraph.nodes.stage import Stage
    from stagegraph.runner.observer import TraceStart
    from stagegraph.runner.state import CallState

    from .langfuse import LangfuseTracing

__all__ = ["LangfuseTrace"]

_NAME_OF_ITEM = re.compile(r"\[(?!\d+\])[^\]]*\]")
"""In a key, what `fan_out(key=)` made of an item."""
_SCOPE = InstrumentationScope("langfuse-sdk")


class LangfuseTrace:
    """One run on its way to Langfuse."""

    def __init__(self, tracing: LangfuseTracing, start: TraceStart, number: int) -> None:
        self._tracing = tracing
        self._start = start
        self._number = number
        connection = tracing.connection
        told = {beside_own(name): value for name, value in start.metadata.items()}
        experiment = told.get(EXPERIMENT)
        if isinstance(experiment, dict):
            del told[EXPERIMENT]
        extra: Attributes = {
            "langfuse.environment": connection.environment,
            "langfuse.version": start.prompts.digest,
            **metadata({**told, "run_id": start.run_id}, "langfuse.trace.metadata"),
        }
        if isinstance(experiment, dict):
            root = span_number(start.run_id, start.root_key, start.segment)
            extra |= experiment_attributes(cast("dict[str, object]", experiment), f"{root:016x}")
        elif experiment:
            extra["langfuse.environment"] = EXPERIMENTS
        if connection.release:
            extra["langfuse.release"] = connection.release
        self._common = common(start.graph, start.session_id, start.user_id, start.tags, extra)
        self._links: dict[str, Attributes] = {}

    def agent(self, entry: CallState, stage: Stage[Any, Any]) -> Sequence[AbstractCapability[Any]]:
        """The instrumentation of one stage call's agent, beside what the host may have put on it."""
        settings = copy(self._tracing.settings)
        call = sampled(self._number, self._span(entry))
        settings.tracer = CallTracer(self._tracing.tracer, call, self._link(entry.path), self._collect)
        own = Instrumentation(settings=settings, id="stagegraph")
        # Any `Instrumentation` on a run takes the place of the one that `Agent.instrument_all` would add; the host's
        # has to stay, and there is no public way to ask for it.
        resolve = getattr(stage.agent, "_resolve_instrumentation_settings", None)
        hosts = resolve() if resolve is not None else None
        return [own] if hosts is None else [own, Instrumentation(settings=hosts)]

    def _collect(self, span: ReadableSpan) -> None:
        """Take a finished span of Pydantic AI's."""
        texts = (value for value in (span.attributes or {}).values() if isinstance(value, str))
        self._tracing.put(span, self._common, 1_000 + sum(map(len, texts)))

    def replaying(self) -> AbstractContextManager[None]:
        """Around an agent that recalls recorded requests."""
        return replay_scope()

    def ended(self, entry: CallState) -> None:
        """Show a call that ended."""
        self._try_to_show(entry, entry.status, entry.error)

    def finished(self, root: CallState, status: CallStatus, error: CallError | None) -> None:
        """Show the run itself."""
        self._try_to_show(root, status, error)

    def _try_to_show(self, entry: CallState, status: CallStatus, error: CallError | None) -> None:
        try:
            self._show(entry, status, error)
        except Exception as problem:  # noqa: BLE001 - a user's `__repr__` may raise, and no run fails for being watched
            self._tracing.miss(problem)

    def _span(self, entry: CallState) -> int:
        return span_number(self._start.run_id, entry.key, self._start.segment)

    def _link(self, path: str) -> Attributes:
        """Which deployed prompt the requests of a stage used."""
        link = self._links.get(path)
        if link is None:
            origin = self._start.prompts.origins.get(path)
            link = self._links[path] = (
                {}
                if origin is None
                else {
                    "langfuse.observation.prompt.name": origin.name,
                    "langfuse.observation.prompt.version": origin.version,
                }
            )
        return link

    def _show(self, entry: CallState, status: CallStatus, error: CallError | None) -> None:
        start, parent = self._start, entry.parent
        word, type_ = names[entry.node.__node__.kind]
        given, output = self._contents(entry, status)
        attributes: Attributes = {TYPE: type_, **self._about(entry, status)}
        if given is not None:
            attributes[INPUT] = given
        if output is not None:
            attributes[OUTPUT] = output
        outcome = Status(StatusCode.UNSET)
        if status == "failed":
            said = None if error is None else str(error) if self._tracing.capture == "all" else error.type
            attributes[LEVEL] = "ERROR"
            attributes[STATUS] = said or "failed"
            outcome = Status(StatusCode.ERROR)
        elif status == "cancelled":
            attributes[LEVEL], attributes[STATUS] = "WARNING", "cancelled"
        if parent is None:
            attributes["langfuse.internal.is_app_root"] = True
        span = ReadableSpan(
            name=start.graph if parent is None and not entry.path else f"{word}:{entry.path}",
            context=sampled(self._number, self._span(entry)),
            parent=None if parent is None else sampled(self._number, self._span(parent)),
            resource=self._tracing.resource,
            attributes=attributes,
            status=outcome,
            start_time=int(start.clock.seconds(entry.began) * 1e9),
            end_time=int(start.clock.seconds(entry.ended) * 1e9) if entry.ended else int(time() * 1e9),
            instrumentation_scope=_SCOPE,
        )
        self._tracing.put(span, self._common, 1_000 + len(given or "") + len(output or ""))

    def _about(self, entry: CallState, status: CallStatus) -> Attributes:
        start, segment = self._start, self._start.segment
        told: dict[str, object] = {
            "path": entry.path,
            "key": entry.key if self._tracing.capture == "all" else _NAME_OF_ITEM.sub("[*]", entry.key),
            "kind": entry.node.__node__.kind,
            "run_id": start.run_id,
        }
        if entry.fan is not None:
            told["fan_out_index"], told["fan_out_size"] = entry.fan
        if status not in {"succeeded", "failed"}:
            told["status"] = status
        if entry.replayed:
            told["replayed"] = True
        if segment:
            told["resumed"] = True
            told["segment"] = segment
        if entry.node.__node__.kind == "stage":
            told["attempts"] = entry.use.attempts
            origin = start.prompts.origins.get(entry.path)
            told["prompt_source"] = (
                "langfuse" if origin is not None else "prompts" if entry.path in start.prompts else "code"
            )
        return metadata(told)

    def _contents(self, entry: CallState, status: CallStatus) -> tuple[str | None, str | None]:
        capture, node = self._tracing.capture, entry.node
        if capture == "none":
            return None, None
        if capture == "shape":
            output = json.dumps(shape(entry.output)) if status == "succeeded" else None
            return json.dumps(shape(entry.input)), output
        output = without_files(node.__node__.output_type.shown(entry.output)) if status == "succeeded" else None
        return without_files(node.__node__.input_type.shown(entry.input)), output
