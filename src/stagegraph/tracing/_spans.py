"""Calls as observations: names, types, attributes; and what is changed in every span before it leaves."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags

from ._content import Capture, Redact, cut, redacted, redacted_text
from ._scrubbing import scrubbed
from ._secrets import HIDDEN, sounds_secret

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

__all__ = ["Attributes", "Policy", "metadata", "names", "sampled"]

Attributes = dict[str, Any]

INPUT, OUTPUT = "langfuse.observation.input", "langfuse.observation.output"
TYPE, LEVEL, STATUS = "langfuse.observation.type", "langfuse.observation.level", "langfuse.observation.status_message"
METADATA = "langfuse.observation.metadata"
_CONTENT = {
    INPUT, OUTPUT, STATUS, "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions",
    "gen_ai.tool.call.arguments", "gen_ai.tool.call.result", "gen_ai.tool.definitions", "gen_ai.agent.description",
    "pydantic_ai.all_messages", "final_result", "model_request_parameters", "tool_arguments", "tool_response",
    "gen_ai.tool.description", "metadata", "pydantic_ai.tool.deferral.metadata",
}  # fmt: skip
"""Attributes that hold what a user, a developer or a model wrote."""
_SHOWN = ("langfuse.", "user.id", "session.id", "gen_ai.", "operation.cost", "model_name", "agent_name", "logfire.")
"""What remains of Pydantic AI's spans when content is not captured."""
_USAGE = {
    "gen_ai.usage.input_tokens": "input",
    "gen_ai.usage.output_tokens": "output",
    "gen_ai.usage.details.cache_read_tokens": "input_cached_tokens",
    "gen_ai.usage.details.cache_write_tokens": "input_cache_creation",
}
_CONVERSATION = "gen_ai.conversation.id"
"""One for each agent run, which Langfuse would take for the session."""
_OWN_WORDS = (f"{METADATA}.", "langfuse.trace.metadata.")
EXPERIMENTS = "sdk-experiment"
"""The environment in which Langfuse keeps runs of experiments apart."""
EXPERIMENT = "experiment"
"""The name in a run's metadata that says for which evaluation it was made."""
OWN = frozenset(
    "run_id key path kind status segment resumed replayed attempts prompt_source fan_out_index fan_out_size".split()  # noqa: SIM905
)
"""Names in the metadata of an observation that are ours; a run's own of that name gets `user_` before it."""
_TEXT_LIMIT = 200
"""Langfuse drops a user, session or tag that is longer."""

names = {"stage": ("stage", "agent"), "step": ("step", "tool"), "graph": ("graph", "chain")}
"""Kind of call -> the first word of the observation's name, and its type."""


def _is_content(name: str) -> bool:
    return name in _CONTENT or name.startswith("pydantic_ai.decision.")


def beside_own(name: str) -> str:
    """The name that a run's own metadata gets in an observation."""
    return f"user_{name}" if re.sub(r"^(?:user_)+", "", name) in OWN else name


def as_told(name: str) -> str:
    """The same the other way round."""
    short = name.removeprefix("user_")
    return short if short != name and beside_own(short) == name else name


def sampled(trace: int, span: int) -> SpanContext:
    return SpanContext(trace, span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def metadata(values: Mapping[str, object], prefix: str = METADATA) -> Attributes:
    """Each value as JSON of its own, which is how the server reads it; `None` is left out."""
    return {f"{prefix}.{name}": _json(value) for name, value in values.items() if value is not None}


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except Exception:  # noqa: BLE001 - keys of any type, circles, a user's `__str__`
        return json.dumps(f"<{type(value).__name__}>")


def common(name: str, session: str | None, user: str | None, tags: Sequence[str], extra: Attributes) -> Attributes:
    """What every observation of a run carries, so that each can be found by it."""
    found: Attributes = {"langfuse.trace.name": name[:_TEXT_LIMIT], **extra}
    if session:
        found["session.id"] = str(session)[:_TEXT_LIMIT]
    if user:
        found["user.id"] = str(user)[:_TEXT_LIMIT]
    if tags:
        found["langfuse.trace.tags"] = tuple(str(tag)[:_TEXT_LIMIT] for tag in tags)
    return found


def experiment_attributes(about: Mapping[str, object], root: str) -> Attributes:
    """What makes a run an item of an experiment; Langfuse keeps these apart by an environment of their own."""
    found: Attributes = {"langfuse.environment": EXPERIMENTS}
    found |= {f"langfuse.experiment.{name}": str(value) for name, value in about.items() if value is not None}
    return {**found, "langfuse.experiment.item.root_observation_id": root}


@dataclass(frozen=True, slots=True)
class Policy:
    """What may be seen of a span from outside; applied to every span, ours and Pydantic AI's, before it is sent."""

    capture: Capture
    redact: Redact | None
    limit: int
    """Bytes of one input, output or list of messages."""
    secrets: tuple[re.Pattern[str], ...] = ()
    """Values that never leave, the longest first."""

    def apply(self, span: ReadableSpan, common: Attributes) -> ReadableSpan:
        """The span as it may leave the process, with what all spans of its run have in *common*."""
        before = {**(span.attributes or {}), **common}
        own = before.get(TYPE) is not None
        after: Attributes = {}
        for name, value in before.items():
            if own or (name != _CONVERSATION and (self.capture == "all" or self._technical(name))):
                after[name] = self._allowed(name, value, after)
        if not own:
            _bridge(after)
        return ReadableSpan(
            name=self._clean(span.name),
            context=span.context,
            parent=span.parent,
            resource=span.resource,
            attributes=after,
            events=[self._event(event) for event in span.events] if self.capture == "all" else (),
            links=span.links,
            kind=span.kind,
            status=span.status if own else type(span.status)(span.status.status_code, self._reason(span)),
            start_time=span.start_time,
            end_time=span.end_time,
            instrumentation_scope=span.instrumentation_scope,
        )

    @staticmethod
    def _technical(name: str) -> bool:
        return not _is_content(name) and name.startswith(_SHOWN) and name != "logfire.json_schema"

    def _reason(self, span: ReadableSpan) -> str | None:
        text = span.status.description
        if text is None or self.capture != "all":
            return None
        return self._text(text)

    def _text(self, text: str) -> str:
        return self._clean(redacted_text(text, self.redact) if self.redact is not None else text)

    def _clean(self, text: str) -> str:
        return scrubbed(text, self.secrets)

    def _allowed(self, name: str, value: AttributeValue, others: Attributes) -> AttributeValue:
        if isinstance(value, (tuple, list)):
            return tuple(self._clean(item) if isinstance(item, str) else item for item in value)  # pyright: ignore[reportReturnType]
        if not isinstance(value, str):
            return value
        if name.startswith(_OWN_WORDS) and sounds_secret(name):
            return json.dumps(HIDDEN)
        if _is_content(name) and self.redact is not None:
            value = redacted(value, self.redact)
        value, size = cut(self._clean(value), self.limit)
        if size is not None:
            others[f"{METADATA}.{name.rpartition('.')[2]}_truncated"] = str(size)
        return value

    def _event(self, event: Event) -> Event:
        said = event.attributes or {}
        attributes = {
            name: cut(self._text(value), self.limit)[0] if isinstance(value, str) else value
            for name, value in said.items()
        }
        return Event(event.name, attributes, event.timestamp)


def _bridge(attributes: Attributes) -> None:
    """Usage and cost under the names that Langfuse reads, once: it takes the details for further tokens."""
    usage = {short: attributes[name] for name, short in _USAGE.items() if name in attributes}
    details = sum(count for name, count in usage.items() if name.startswith("input_"))
    for name in [name for name in attributes if name.startswith("gen_ai.usage.details.")]:
        del attributes[name]
    cost = attributes.get("operation.cost")
    if attributes.get("gen_ai.operation.name") != "chat":
        return
    if usage:
        if "input" in usage:
            usage["input"] = max(0, usage["input"] - details)
        attributes["langfuse.observation.usage_details"] = json.dumps(usage)
    if cost is not None:
        attributes["langfuse.observation.cost_details"] = json.dumps({"total": cost})
        attributes["gen_ai.usage.cost"] = cost
