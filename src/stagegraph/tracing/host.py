"""The host's own Langfuse client: what it propagates to its spans, its open span, and its instrumentation.

Read from the OpenTelemetry context, so `langfuse` is not imported. The names are those of `propagate_attributes`.
"""

from __future__ import annotations

import json
from copy import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from opentelemetry.baggage import get_all
from opentelemetry.context import get_value
from opentelemetry.sdk.trace import SynchronousMultiSpanProcessor
from opentelemetry.trace import SpanContext, get_current_span, get_tracer_provider
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.capabilities import Instrumentation

from stagegraph.schema.types import is_list, is_mapping

from .connection import is_environment

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor
    from pydantic_ai.agent import AbstractAgent
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.models.instrumented import InstrumentationSettings

    from stagegraph.runner.observer import TraceStart

_IN_CONTEXT, _IN_BAGGAGE = "langfuse.propagated.", "langfuse_"
_SCOPES = ("langfuse-sdk", "pydantic-ai")
"""Scopes of the spans that the host's client exports; that of a web framework, for example, never arrives."""


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
