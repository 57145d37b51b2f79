"""How Pydantic AI's own spans come to stand under the right call, and nobody else's do.

Its instrumentation makes every span the current one, which would turn the host's spans (of its HTTP client, say) into
children of spans that the host's tracing backend never gets. So our spans are transparent: to the host they look like
the span that was current when the agent was called, and only our own tracer sees through them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from opentelemetry.context import Context
from opentelemetry.trace import (
    Link,
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

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan
    from opentelemetry.util.types import Attributes, AttributeValue

__all__ = ["CallTracer"]


class Transparent(Span):
    """A span that others look through: its context is that of the host's own span."""

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
        if self.real.is_recording():
            self.real.end(end_time)
            self.owner.collect(cast("ReadableSpan", self.real))

    def set_attributes(self, attributes: Mapping[str, AttributeValue]) -> None:
        self.real.set_attributes(attributes)

    def set_attribute(self, key: str, value: AttributeValue) -> None:
        self.real.set_attribute(key, value)

    def add_event(self, name: str, attributes: Attributes = None, timestamp: int | None = None) -> None:
        self.real.add_event(name, attributes, timestamp)

    def update_name(self, name: str) -> None:
        self.real.update_name(name)

    def is_recording(self) -> bool:
        return self.real.is_recording()

    def set_status(self, status: Status | StatusCode, description: str | None = None) -> None:
        self.real.set_status(status, description)

    def record_exception(
        self,
        exception: BaseException,
        attributes: Attributes = None,
        timestamp: int | None = None,
        escaped: bool = False,
    ) -> None:
        self.real.record_exception(exception, attributes, timestamp, escaped)


class CallTracer(Tracer):
    """Makes the spans of one stage call's agent, below the call's own observation.

    Args:
        real: Makes and exports the spans.
        call: The call's observation.
        generation: Attributes of the model requests alone.
        collect: Takes each span when it has ended.
    """

    def __init__(
        self,
        real: Tracer,
        call: SpanContext,
        generation: Mapping[str, Any],
        collect: Callable[[ReadableSpan], None],
    ) -> None:
        self._real = real
        self._call = NonRecordingSpan(call)
        self.collect = collect
        self._generation = generation
        self._run: Span | None = None
        """The newest run of the call's agent, below which everything stands that it does."""

    def start_span(  # noqa: PLR0917 - the signatures are OpenTelemetry's
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> Span:
        around = get_current_span(context)
        own: Mapping[str, Any] = attributes or {}
        if own.get("gen_ai.operation.name") == "chat" and self._generation:
            own = {**own, **self._generation}
        real = self._real.start_span(
            name,
            set_span_in_context(self._parent(around), Context()),
            kind,
            own,
            links,
            start_time,
            record_exception,
            set_status_on_exception,
        )
        if own.get("gen_ai.operation.name") == "invoke_agent":
            self._run = real
        return Transparent(real, around.get_span_context(), self)

    def _parent(self, around: Span) -> Span:
        # A tool may run another graph, whose agents' spans belong below their own calls.
        if isinstance(around, Transparent) and around.owner is self:
            return around.real
        # The host may have put a span of its own around what the agent does.
        return self._run if self._run is not None and self._run.is_recording() else self._call

    @contextmanager
    def start_as_current_span(  # noqa: PLR0917  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Sequence[Link] | None = None,
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
    ) -> Generator[Span]:
        span = self.start_span(
            name, context, kind, attributes, links, start_time, record_exception, set_status_on_exception
        )
        with use_span(span, end_on_exit, record_exception, set_status_on_exception):
            yield span
