"""Beside a host that traces, too: what its Langfuse client propagates, its instrumentation, and a tracer for agents.

What belongs to the host is read from the OpenTelemetry context, so `langfuse` is not imported. The names are those of
`propagate_attributes`.

Pydantic AI's instrumentation makes each span the current one. The host's spans (of its HTTP client, for example) would
become children of spans that the host's tracing backend never receives. So the spans here are transparent: the host
sees the context of the span that was current when the agent was called; only `CallTracer` uses the real one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from opentelemetry.baggage import get_all
from opentelemetry.context import get_value
from opentelemetry.sdk.trace import Span, SynchronousMultiSpanProcessor
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import SpanContext, SpanKind, Tracer, get_current_span, get_tracer_provider, use_span
from pydantic_ai import ModelRetry
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.capabilities import Instrumentation
from typing_extensions import override

from stagegraph.schema.types import is_list, is_mapping

from .attributes import Names, sampled
from .connection import is_environment

if TYPE_CHECKING:
    from opentelemetry.context import Context
    from opentelemetry.sdk.resources import Resource
    from opentelemetry.sdk.trace import SpanProcessor
    from opentelemetry.util.types import Attributes
    from pydantic_ai.agent import AbstractAgent
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.models.instrumented import InstrumentationSettings

    from stagegraph.runner.observer import TraceStart

_IN_CONTEXT, _IN_BAGGAGE = "langfuse.propagated.", "langfuse_"
_SCOPES = ("langfuse-sdk", "pydantic-ai")
"""Scopes of the spans that the host's client exports; that of a web framework, for example, never arrives."""
_SCOPE = InstrumentationScope("pydantic-ai")
_RAISED = {"ToolRetryError": "ModelRetry", "ToolFailedError": "ToolFailed"}
"""Pydantic AI's inner exceptions, and those that a tool raised."""
_UNNAMED = "agent"
"""Pydantic AI's name for an agent that has none."""
_AGENT_NAMES = ("agent_name", "gen_ai.agent.name")
_new_id = RandomIdGenerator().generate_span_id


def taken_over(start: TraceStart) -> TraceStart:
    """The run with the user, session, tags and metadata that the host propagates; the run's own go first."""
    user, session, tags, metadata = map(_propagated, ("user_id", "session_id", "tags", "metadata"))
    prefix = f"{_IN_BAGGAGE}metadata_"
    sent = {name.removeprefix(prefix): value for name, value in get_all().items() if name.startswith(prefix)}
    held = {**sent, **(metadata if is_mapping(metadata) else {})}
    return replace(
        start,
        user_id=start.user_id or (None if user is None else str(user)),
        session_id=start.session_id or (None if session is None else str(session)),
        tags=tuple(dict.fromkeys(map(str, [*start.tags, *(tags if is_list(tags) else ())]))),
        metadata={**{str(name): _decoded(value) for name, value in held.items()}, **start.metadata},
    )


def environment(default: str) -> str:
    """The environment that the host propagates, or else the *default*."""
    found = _propagated("environment")
    return found if isinstance(found, str) and is_environment(found) else default


def _propagated(name: str) -> object:
    found = get_value(_IN_CONTEXT + name)
    return get_all().get(_IN_BAGGAGE + name) if found is None else found


def _decoded(value: object) -> object:
    """A value of the propagated metadata, which is JSON."""
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def open_span(public_key: str) -> tuple[SpanContext, bool] | None:
    """The open span of a host that reports to the same project, and whether the span itself arrives there."""
    span = get_current_span()
    if not any(_reports(one, public_key) for one in _processors(getattr(span, "_span_processor", None))):
        return None
    scope = getattr(span, "instrumentation_scope", None)
    return span.get_span_context(), getattr(scope, "name", "") in _SCOPES


def owns_all_spans(public_key: str) -> bool:
    """Whether the host's spans go to the same project and nowhere else, so that ours may be their parents."""
    found = _processors(getattr(get_tracer_provider(), "_active_span_processor", None))
    return bool(found) and all(_reports(one, public_key) for one in found)


def instrumentation(
    agent: AbstractAgent[Any, Any], public_key: str
) -> tuple[InstrumentationSettings | None, InstrumentationSettings | None]:
    """The host's instrumentation of an agent, and what it is without its reports to the same project.

    We send the agent's spans there, and each request would be there twice.
    Any `Instrumentation` on a run replaces the one that `Agent.instrument_all` would add. The host's has to stay, and
    Pydantic AI has no public way to read it. One of the agent's own goes first.
    """
    while isinstance(agent, WrapperAgent):
        agent = agent.wrapped
    found: list[InstrumentationSettings] = []

    def visit(capability: AbstractCapability[Any]) -> None:
        if isinstance(capability, Instrumentation):
            found.append(capability.settings)

    own: AbstractCapability[Any] | None = getattr(agent, "_root_capability", None)
    if own is not None:
        own.apply(visit)
    resolve = getattr(agent, "_resolve_instrumentation_settings", lambda: None)
    settings: InstrumentationSettings | None = found[-1] if found else resolve()
    return settings, settings and _without_project(settings, public_key)


def _without_project(settings: InstrumentationSettings, public_key: str) -> InstrumentationSettings | None:
    """`None` if nothing is left."""
    tracer = getattr(settings.tracer, "_tracer", settings.tracer)  # that of the global provider is a proxy
    found = _processors(getattr(tracer, "span_processor", None))
    others = [one for one in found if not _reports(one, public_key)]
    if len(others) == len(found):
        return settings
    if not others:
        return None
    settings, tracer, rest = copy(settings), copy(tracer), SynchronousMultiSpanProcessor()
    for one in others:
        rest.add_span_processor(one)
    vars(tracer)["span_processor"] = rest
    settings.tracer = tracer
    return settings


def _processors(of_provider: object) -> tuple[SpanProcessor, ...]:
    """The processors of a provider, or of one of its tracers or spans; OpenTelemetry has no public list of them."""
    return getattr(of_provider, "_span_processors", ())


def _reports(processor: object, public_key: str) -> bool:
    """Whether a processor is that of Langfuse's client for the project."""
    return type(processor).__name__ == "LangfuseSpanProcessor" and getattr(processor, "public_key", "") == public_key


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
