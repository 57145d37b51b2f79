"""The policy for data that leaves the process: redacted by the user's function, without secrets, limited in size."""

from __future__ import annotations

import json
from collections.abc import Callable, Sized
from contextlib import suppress
from dataclasses import dataclass, fields, is_dataclass
from datetime import UTC, datetime
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from opentelemetry.sdk.trace import Event, ReadableSpan
from pydantic import BaseModel

from stagegraph.schema.types import is_sequence

from .attributes import USAGE_PARTS, Attributes, Names
from .secrets import HIDDEN, Scrubber, sounds_secret

if TYPE_CHECKING:
    from opentelemetry.util.types import AttributeValue

Capture = Literal["all", "shape", "none"]
"""Complete inputs, outputs and messages; only their types and sizes; nothing of them."""

Redact = Callable[[Any], Any]
"""Takes a JSON value (an input, an output, messages, a text) and returns what may be sent."""

_CONTENT = {
    Names.INPUT, Names.OUTPUT, Names.STATUS, f"{Names.METADATA}.input_whole", f"{Names.METADATA}.output_whole",
    "gen_ai.input.messages", "gen_ai.output.messages", "gen_ai.system_instructions",
    "gen_ai.tool.call.arguments", "gen_ai.tool.call.result", "gen_ai.tool.definitions", "gen_ai.agent.description",
    "pydantic_ai.all_messages", "final_result", "model_request_parameters", "tool_arguments", "tool_response",
    "gen_ai.tool.description", "metadata", "pydantic_ai.tool.deferral.metadata",
}  # fmt: skip
"""Attributes with content of a user, a developer or a model."""
_SHOWN = ("langfuse.", "user.id", "session.id", "gen_ai.", "operation.cost", "model_name", "agent_name", "logfire.")
"""Prefixes of the attributes that Pydantic AI's spans keep when content is not captured."""
_USAGE = {
    "gen_ai.usage.input_tokens": "input",
    "gen_ai.usage.output_tokens": "output",
    **{f"gen_ai.usage.details.{name}": part for name, part in USAGE_PARTS.items()},
    "gen_ai.usage.details.thoughts_tokens": USAGE_PARTS["reasoning_tokens"],
}
"""The parts of the input and the output are not counted in `input` and `output`: the server adds everything up."""
_FIRST_CHUNK = "gen_ai.client.operation.time_to_first_chunk"
"""Seconds from the request to the first piece of a streamed answer."""
_CONVERSATION = "gen_ai.conversation.id"
"""Differs in each agent run; Langfuse would take it for the session."""
_OWN_WORDS = (f"{Names.METADATA}.", f"{Names.TRACE_METADATA}.")
_DEEP = 5


def redacted(text: str, redact: Redact, *, as_json: bool) -> str:
    """A text, or the JSON in it, after the user's function; if that raises, the value is not sent."""
    value: object = text
    write: Callable[[object], str] = str
    if as_json:
        with suppress(ValueError):
            value, write = json.loads(text), partial(json.dumps, ensure_ascii=False)
    try:
        return write(redact(value))
    except Exception as error:  # noqa: BLE001 - a user's function; its message may quote private data
        return write(f"[not sent: `redact` raised {type(error).__name__}]")


def cut(text: str, limit: int) -> tuple[str, int | None]:
    """At most *limit* bytes of UTF-8, and the full size if the text was cut."""
    if len(text) * 4 <= limit:
        return text, None
    raw = text.encode("utf-8", "replace")
    if len(raw) <= limit:
        return text, None
    return raw[:limit].decode("utf-8", "ignore"), len(raw)


def shape(value: object, depth: int = 0) -> Any:
    """The types and sizes in a value, without content of a user or a model."""
    kind = type(value).__name__
    if value is None or isinstance(value, bool):
        return kind
    if isinstance(value, (str, bytes)):
        return f"{kind} of {len(value)}"
    if depth < _DEEP:
        if isinstance(value, BaseModel):
            return {name: shape(getattr(value, name), depth + 1) for name in type(value).model_fields}
        if is_dataclass(value) and not isinstance(value, type):
            return {field.name: shape(getattr(value, field.name, None), depth + 1) for field in fields(value)}
        if is_sequence(value) and value:
            return [f"{kind} of {len(value)}", shape(value[0], depth + 1)]
    return f"{kind} of {len(value)}" if isinstance(value, Sized) else kind  # a mapping's keys are data, too


@dataclass(frozen=True, slots=True)
class Policy:
    """The rules for one span; applied to every span, ours and Pydantic AI's, before it is sent."""

    capture: Capture
    redact: Redact | None
    limit: int
    """Bytes of one input, output or list of messages."""
    scrubber: Scrubber

    def apply(self, span: ReadableSpan) -> ReadableSpan:
        """The span as it may leave the process."""
        before = span.attributes or {}
        own = before.get(Names.TYPE) is not None
        after: Attributes = {}
        for name, value in before.items():
            if own or (name != _CONVERSATION and (self.capture == "all" or _is_technical(name))):
                after[name] = self._allowed(name, value, after)
        if not own:
            _bridge(after)
            first = before.get(_FIRST_CHUNK)
            if isinstance(first, float) and span.start_time is not None and span.end_time is not None:
                moment = datetime.fromtimestamp(min(span.start_time / 1e9 + first, span.end_time / 1e9), UTC)
                after[Names.FIRST_TEXT] = json.dumps(moment.isoformat())
        return ReadableSpan(
            name=self.scrubber.scrubbed(span.name),
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

    def cleaned(self, text: str, *, as_json: bool) -> str:
        """A text of a user or a model, or the JSON in it, as it may leave the process."""
        return self.scrubber.scrubbed(text if self.redact is None else redacted(text, self.redact, as_json=as_json))

    def _reason(self, span: ReadableSpan) -> str | None:
        text = span.status.description
        return None if text is None or self.capture != "all" else self.cleaned(text, as_json=False)

    def _allowed(self, name: str, value: AttributeValue, others: Attributes) -> AttributeValue:
        if isinstance(value, (tuple, list)):
            return tuple(self.scrubber.scrubbed(item) if isinstance(item, str) else item for item in value)  # pyright: ignore[reportReturnType]
        if not isinstance(value, str):
            return value
        if name.startswith(_OWN_WORDS) and sounds_secret(name):
            return json.dumps(HIDDEN)
        value, size = cut(
            self.cleaned(value, as_json=True) if _is_content(name) else self.scrubber.scrubbed(value), self.limit
        )
        if size is not None:
            others[f"{Names.METADATA}.{name.rpartition('.')[2]}_truncated"] = str(size)
        return value

    def _event(self, event: Event) -> Event:
        attributes = {
            name: cut(self.cleaned(value, as_json=False), self.limit)[0] if isinstance(value, str) else value
            for name, value in (event.attributes or {}).items()
        }
        return Event(event.name, attributes, event.timestamp)


def _is_content(name: str) -> bool:
    return name in _CONTENT or name.startswith("pydantic_ai.decision.")


def _is_technical(name: str) -> bool:
    return not _is_content(name) and name.startswith(_SHOWN) and name != "logfire.json_schema"


def _bridge(attributes: Attributes) -> None:
    """Set usage and cost under Langfuse's names and remove the details, which it would count as further tokens."""
    usage = {short: attributes[name] for name, short in _USAGE.items() if name in attributes}
    for name in [name for name in attributes if name.startswith("gen_ai.usage.details.")]:
        del attributes[name]
    cost = attributes.get("operation.cost")
    if attributes.get("gen_ai.operation.name") != "chat":
        return
    if usage:
        for whole in usage.keys() & {"input", "output"}:
            parts = sum(count for name, count in usage.items() if name.startswith(f"{whole}_"))
            usage[whole] = max(0, usage[whole] - parts)
        attributes[Names.USAGE] = json.dumps(usage)
    if cost is not None:
        attributes[Names.COST] = json.dumps({"total": cost})
        attributes["gen_ai.usage.cost"] = cost
