"""The tracer that puts Pydantic AI's spans below the right call and leaves the host's spans where they are.

Pydantic AI's instrumentation makes each span the current one. The host's spans (of its HTTP client, for example) would
become children of spans that the host's tracing backend never receives. So the spans here are transparent: the host
sees the context of the span that was current when the agent was called; only `CallTracer` uses the real one.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import Span
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Tracer, get_current_span, use_span
from pydantic_ai import ModelRetry
from typing_extensions import override

from .attributes import Names, sampled

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.util.types import Attributes

_SCOPE = InstrumentationScope("pydantic-ai")
_RAISED = {"ToolRetryError": "ModelRetry", "ToolFailedError": "ToolFailed"}
"""Pydantic AI's inner exceptions, and those that a tool raised."""
_UNNAMED = "agent"
"""Pydantic AI's name for an agent that has none."""
_AGENT_NAMES = ("agent_name", "gen_ai.agent.name")
_new_id = RandomIdGenerator().generate_span_id


class AgentSpan(Span):
    """A span of one call's agent that shows the host the context of the host's own span."""

    def __init__(self, owner: CallTracer, real: SpanContext, host: SpanContext, name: str, **options: Any) -> None:
        super().__init__(
            name, real, resource=owner.resource, span_processor=owner.sender, instrumentation_scope=_SCOPE, **options
        )
        self.owner, self.real, self._host = owner, real, host

    def get_span_context(self) -> SpanContext:
        return self._host

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        taken_out = self.owner.taken_out
        super().set_attributes(
            {name: taken_out(value) if isinstance(value, str) else value for name, value in attributes.items()}
        )

    def set_attribute(self, key: str, value: Any) -> None:
        self.set_attributes({key: value})

    def record_exception(self, exception: BaseException, *args: Any, **options: Any) -> None:
        super().record_exception(exception, *args, **options)
        # Pydantic AI gives a failed tool no message besides this event, which the server does not show as one.
        self.set_attribute(Names.STATUS, _message(exception))


def _message(error: BaseException) -> str:
    """What an exception says, with what a tool or a validator told the model before it became the last straw."""
    kind = type(error).__name__
    text = f"{_RAISED.get(kind, kind)}: {error}"
    cause = error.__cause__
    return f"{text} ({_message(cause)})" if isinstance(cause, ModelRetry) and str(cause) not in text else text


@dataclass(eq=False)
class CallTracer(Tracer):
    """The tracer of one stage call's agent: its spans are below the call's own observation."""

    sender: SpanProcessor
    resource: Resource
    taken_out: Callable[[str], str]
    """Puts references in the place of files in JSON."""
    call: SpanContext
    """The call's observation."""
    common: Mapping[str, Any]
    """Attributes of all spans."""
    generation: Mapping[str, Any]
    """Attributes of model requests only."""
    name: str | None = None
    """For the spans of an agent without a name."""
    visible: bool = False
    """Whether spans of the host are children of these, since they go to the same project and nowhere else."""
    _run: AgentSpan | None = None
    """The newest run of the call's agent: the parent of the agent's other spans."""

    @override
    def start_span(
        self,
        name: str,
        context: Context | None = None,
        kind: SpanKind = SpanKind.INTERNAL,
        attributes: Attributes = None,
        links: Any = (),
        start_time: int | None = None,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
    ) -> AgentSpan:
        own = {**(attributes or {}), **self.common}
        operation = own.get("gen_ai.operation.name")
        if operation == "chat":
            own |= self.generation
        if self.name is not None:
            if operation == "invoke_agent":
                name = name.removesuffix(_UNNAMED) + self.name
                own["logfire.msg"] = f"{self.name} run"
            own |= {key: self.name for key in _AGENT_NAMES if own.get(key) == _UNNAMED}
        around = get_current_span(context)
        if isinstance(around, AgentSpan) and around.owner is self:
            parent = around.real
        else:  # a span of the host inside the agent's run, or of a graph that a tool runs
            parent = self._run.real if self._run is not None and self._run.is_recording() else self.call
        real = sampled(parent.trace_id, _new_id())
        host = real if self.visible else around.get_span_context()
        options = {"record_exception": record_exception, "set_status_on_exception": set_status_on_exception}
        span = AgentSpan(self, real, host, name, parent=parent, attributes=own, links=links, kind=kind, **options)
        span.start(start_time)
        if operation == "invoke_agent":
            self._run = span
        return span

    @contextmanager
    def start_as_current_span(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        name: str,
        *args: Any,
        record_exception: bool = True,
        set_status_on_exception: bool = True,
        end_on_exit: bool = True,
        **options: Any,
    ) -> Generator[AgentSpan]:
        options |= {"record_exception": record_exception, "set_status_on_exception": set_status_on_exception}
        span = self.start_span(name, *args, **options)
        with use_span(span, end_on_exit, record_exception, set_status_on_exception):
            yield span
