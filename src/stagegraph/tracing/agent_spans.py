"""The tracer that puts Pydantic AI's spans below the right call and leaves the host's spans where they are.

Pydantic AI's instrumentation makes each span the current one. The host's spans (of its HTTP client, for example) would
become children of spans that the host's tracing backend never receives. So the spans here are transparent: the host
sees the context of the span that was current when the agent was called; only `CallTracer` uses the real span.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from opentelemetry.context import Context
from opentelemetry.trace import (
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    Status,
    StatusCode,
    Tracer,
    get_current_span,
    set_span_in_context,
    use_span,
)
from pydantic_ai import ModelRetry

from .attributes import Names

if TYPE_CHECKING:
    from opentelemetry.util.types import Attributes, AttributeValue


_RAISED = {"ToolRetryError": "ModelRetry", "ToolFailedError": "ToolFailed"}
"""Pydantic AI's inner exceptions, and those that a tool raised."""
_UNNAMED = "agent"
"""Pydantic AI's name for an agent that has none."""
_AGENT_NAMES = ("agent_name", "gen_ai.agent.name")


class Transparent(Span):
    """A span that shows the host the context of the host's own span."""

    def __init__(self, real: Span, host: SpanContext, owner: CallTracer) -> None:
        self.real = real
        self.owner = owner
        self._host = host

    def get_span_context(self) -> SpanContext:
        return self._host

    @property
    def attributes(self) -> Mapping[str, Any]:
        return getattr(self.real, "attributes", None) or {}

    def end(self, end_time: int | None = None) -> None:
        self.real.end(end_time)

    def is_recording(self) -> bool:
        return self.real.is_recording()

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        for name, value in attributes.items():
            self.set_attribute(name, value)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self.real.set_attribute(key, self.owner.taken_out(value) if isinstance(value, str) else value)

    def update_name(self, name: str) -> None:
        self.real.update_name(name)

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self.real.set_status(status, description)

    def add_event(self, name: str, *args: Any, **options: Any) -> None:
        self.real.add_event(name, *args, **options)

    def record_exception(self, exception: BaseException, *args: Any, **options: Any) -> None:
        self.real.record_exception(exception, *args, **options)
        # Pydantic AI gives a failed tool no message besides this event, which the server does not show as one.
        self.real.set_attribute(Names.STATUS, _message(exception))


def _message(error: BaseException) -> str:
    """What an exception says, with what a tool or a validator told the model before it became the last straw."""
    kind = type(error).__name__
    text = f"{_RAISED.get(kind, kind)}: {error}"
    cause = error.__cause__
    return f"{text} ({_message(cause)})" if isinstance(cause, ModelRetry) and str(cause) not in text else text


class CallTracer(Tracer):
    """The tracer of one stage call's agent: its spans are below the call's own observation.

    Args:
        real: Creates and exports the spans.
        call: The call's observation.
        common: Attributes of all spans.
        generation: Attributes of model requests only.
        taken_out: Puts references in the place of files in JSON.
        name: For the spans of an agent without a name.
        visible: Whether spans of the host are children of these, since they go to the same project and nowhere else.
    """

    def __init__(
        self,
        real: Tracer,
        call: SpanContext,
        common: Mapping[str, Any],
        generation: Mapping[str, Any],
        taken_out: Callable[[str], str],
        *,
        name: str | None = None,
        visible: bool = False,
    ) -> None:
        self._real = real
        self._call = NonRecordingSpan(call)
        self._name = name
        self.taken_out = taken_out
        self._common, self._generation, self._visible = common, generation, visible
        self._run: Span | None = None
        """The newest run of the call's agent: the parent of the agent's other spans."""

    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        *args: Any,
        **options: Any,
    ) -> Span:
        around = get_current_span(context)
        own = {**(attributes or {}), **self._common}
        operation = own.get("gen_ai.operation.name")
        if operation == "chat":
            own |= self._generation
        if self._name is not None and operation == "invoke_agent":
            name = name.removesuffix(_UNNAMED) + self._name
            own["logfire.msg"] = f"{self._name} run"
        if self._name is not None:
            own |= {key: self._name for key in _AGENT_NAMES if own.get(key) == _UNNAMED}
        within = set_span_in_context(self._parent(around), Context())
        real = self._real.start_span(name, within, kind, own, *args, **options)
        if operation == "invoke_agent":
            self._run = real
        return Transparent(real, real.get_span_context() if self._visible else around.get_span_context(), self)

    def _parent(self, around: Span) -> Span:
        # A tool may run another graph; the spans of that graph's agents belong below their own calls.
        if isinstance(around, Transparent) and around.owner is self:
            return around.real
        # The host may have opened a span of its own inside the agent run.
        return self._run if self._run is not None and self._run.is_recording() else self._call

    @contextmanager
    def start_as_current_span(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        name: str,
        *args: Any,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
        **options: Any,
    ) -> Generator[Span]:
        options |= {"record_exception": record_exception, "set_status_on_exception": set_status_on_exception}
        span = self.start_span(name, *args, **options)
        with use_span(span, end_on_exit, record_exception, set_status_on_exception):
            yield span
