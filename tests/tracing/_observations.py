"""Spans as the observation rows that a Langfuse server answers with."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from _otlp import Span

__all__ = ["GROUPS", "PROJECT", "iso", "project", "row"]

PROJECT: Final = "project-test"
"""The id of the only project."""

GROUPS: Final[Mapping[str, tuple[str, ...]]] = {
    "core": ("id", "traceId", "startTime", "endTime", "projectId", "parentObservationId", "type"),
    "basic": (
        *("name", "level", "statusMessage", "version", "environment", "bookmarked", "public"),
        *("userId", "sessionId", "isRootObservation"),
    ),
    "time": ("completionStartTime", "createdAt", "updatedAt"),
    "io": ("input", "output"),
    "metadata": ("metadata",),
    "model": ("model", "internalModelId", "modelParameters"),
    "usage": ("usageDetails", "costDetails", "totalCost", "usagePricingTierName"),
    "prompt": ("promptId", "promptName", "promptVersion"),
    "metrics": ("latency", "timeToFirstToken"),
    "trace_context": ("tags", "release", "traceName"),
}
"""What each group of the `fields` parameter adds to a row."""

_OPERATIONS: Final = {
    "chat": "GENERATION",
    "completion": "GENERATION",
    "text_completion": "GENERATION",
    "generate_content": "GENERATION",
    "embeddings": "EMBEDDING",
    "invoke_agent": "AGENT",
    "create_agent": "AGENT",
    "execute_tool": "TOOL",
}
_TYPES: Final = frozenset(
    ("span", "generation", "event", "embedding", "agent", "tool", "chain", "retriever", "guardrail", "evaluator")
)
_IO_PAIRS: Final = (
    ("input", "output"),
    ("pydantic_ai.all_messages", "final_result"),
    ("tool_arguments", "tool_response"),
    ("gen_ai.input.messages", "gen_ai.output.messages"),
    ("gen_ai.tool.call.arguments", "gen_ai.tool.call.result"),
)
"""Where other libraries keep input and output: the first pair with a value wins."""
_CUT: Final = 200


def iso(nanoseconds: int) -> str:
    """A time as the server writes it: UTC, whole milliseconds."""
    moment = datetime.fromtimestamp(nanoseconds // 1_000_000 / 1000, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _text(value: Any) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) else value
    except ValueError:
        return value


def _first(attributes: Mapping[str, Any], *keys: str) -> Any:
    return next((attributes[key] for key in keys if attributes.get(key)), None)


def _type(attributes: Mapping[str, Any]) -> str:
    own = attributes.get("langfuse.observation.type")
    if own in _TYPES:
        return str(own).upper()
    if operation := _OPERATIONS.get(str(attributes.get("gen_ai.operation.name"))):
        return operation
    if _first(attributes, "gen_ai.tool.name", "gen_ai.tool.call.id"):
        return "TOOL"
    return "GENERATION" if _first(attributes, "gen_ai.request.model", "gen_ai.response.model") else "SPAN"


def _io(attributes: Mapping[str, Any]) -> tuple[str | None, str | None]:
    own = attributes.get("langfuse.observation.input"), attributes.get("langfuse.observation.output")
    if own != (None, None):
        return _text(own[0]), _text(own[1])
    for given, answered in _IO_PAIRS:
        if attributes.get(given) or attributes.get(answered):
            return _text(attributes.get(given)), _text(attributes.get(answered))
    return None, None


def _metadata(span: Span) -> dict[str, Any]:
    """Keys of the observation, then of the trace; values are decoded as they are for SDK 5 only.

    What is known of the resource and the scope is flattened: each value has a key of its own, with dots.
    """
    decoded = _json if _major(span.sdk_version) >= 5 else _same
    scope = {"name": span.scope, "version": span.scope_version}
    found: dict[str, Any] = {
        **{f"resourceAttributes.{key}": value for key, value in span.resource.items()},
        **{f"scope.{key}": value for key, value in scope.items() if value},
        **{f"scope.attributes.{key}": value for key, value in span.scope_attributes.items()},
    }
    for prefix in ("langfuse.observation.metadata", "langfuse.trace.metadata"):
        whole = _json(span.attributes.get(prefix))
        found |= whole if isinstance(whole, dict) else {} if whole is None else {"metadata": whole}
        found |= {
            key.removeprefix(f"{prefix}."): decoded(value)
            for key, value in span.attributes.items()
            if key.startswith(f"{prefix}.")
        }
    return found


def _major(version: str) -> int:
    number = version.partition(".")[0]
    return int(number) if number.isdecimal() else 0


def _same(value: Any) -> Any:
    return value


def _usage(attributes: Mapping[str, Any], kind: str) -> dict[str, int]:
    """Whole numbers of tokens; of a request to a model, never of an agent's aggregate."""
    if own := _json(attributes.get("langfuse.observation.usage_details")):
        usage = dict(own)
    elif kind in {"GENERATION", "EMBEDDING"}:
        prefix = "gen_ai.usage."
        names = {"input_tokens": "input", "output_tokens": "output"}
        found = {key.removeprefix(prefix): value for key, value in attributes.items() if key.startswith(prefix)}
        wanted = {key: value for key, value in found.items() if key != "cost" and not key.startswith("details.")}
        usage = {names.get(key, key): int(value) for key, value in wanted.items()}
    else:
        return {}
    return usage if not usage or "total" in usage else {**usage, "total": sum(usage.values())}


def _cost(attributes: Mapping[str, Any]) -> dict[str, float]:
    if own := _json(attributes.get("langfuse.observation.cost_details")):
        return {"total": sum(own.values()), **own}
    cost = attributes.get("gen_ai.usage.cost")
    return {} if cost is None else {"total": float(cost)}


def row(span: Span, prompt_id: Callable[[str, int], str | None]) -> dict[str, Any]:
    """Every field of every group, before a request chooses among them."""
    at, resource = span.attributes, span.resource
    kind = _type(at)
    given, answered = _io(at)
    cost = _cost(at)
    linked = kind == "GENERATION" and at.get("langfuse.observation.prompt.name")
    version = at.get("langfuse.observation.prompt.version") if linked else None
    begun = _json(at.get("langfuse.observation.completion_start_time"))
    first = datetime.fromisoformat(begun).timestamp() - span.start / 1e9 if begun else None
    parameters = _json(at.get("langfuse.observation.model.parameters")) or {
        key.removeprefix("gen_ai.request."): value
        for key, value in at.items()
        if key.startswith("gen_ai.request.") and key != "gen_ai.request.model"
    }
    return {
        "id": span.span_id,
        "traceId": span.trace_id,
        "startTime": iso(span.start),
        "endTime": iso(span.end),
        "projectId": PROJECT,
        "parentObservationId": span.parent_id,
        "type": kind,
        "name": _first(at, "gen_ai.tool.name", "logfire.msg") or span.name,
        "level": at.get("langfuse.observation.level") or ("ERROR" if span.status[0] == 2 else "DEFAULT"),
        "statusMessage": at.get("langfuse.observation.status_message") or span.status[1] or None,
        "version": _first(at, "langfuse.version") or resource.get("service.version"),
        "environment": _first(at, "langfuse.environment") or resource.get("langfuse.environment") or "default",
        "bookmarked": False,
        "public": at.get("langfuse.trace.public") is True,
        "userId": _first(at, "langfuse.user.id", "user.id"),
        "sessionId": _first(at, "langfuse.session.id", "session.id", "gen_ai.conversation.id"),
        "isRootObservation": span.parent_id is None
        or at.get("langfuse.internal.as_root") is True
        or at.get("langfuse.internal.is_app_root") is True,
        "completionStartTime": begun,
        "createdAt": iso(span.end),
        "updatedAt": iso(span.end),
        "input": given,
        "output": answered,
        "metadata": _metadata(span),
        "model": _first(at, "langfuse.observation.model.name", "gen_ai.response.model", "gen_ai.request.model"),
        "internalModelId": None,
        "modelParameters": parameters,
        "usageDetails": _usage(at, kind),
        "costDetails": cost,
        "totalCost": cost.get("total"),
        "usagePricingTierName": None,
        "promptId": prompt_id(str(linked), int(version)) if linked and version is not None else None,
        "promptName": linked or None,
        "promptVersion": version,
        "latency": (span.end - span.start) / 1e9,
        "timeToFirstToken": first,
        "tags": list(at.get("langfuse.trace.tags") or []),
        "release": _first(at, "langfuse.release") or resource.get("langfuse.release"),
        "traceName": at.get("langfuse.trace.name"),
    }


def project(
    whole: Mapping[str, Any], fields: Iterable[str], expanded: Iterable[str], omitted: Iterable[str]
) -> dict[str, Any]:
    """The row that one request sees: its groups, long metadata cut, fields left out that this server lacks."""
    names = {name for group in ("core", *fields) for name in GROUPS[group]} - set(omitted)
    answer = {name: value for name, value in whole.items() if name in names}
    if "metadata" in answer:
        kept = set(expanded)
        answer["metadata"] = {
            key: value if key in kept or len(_text(value) or "") <= _CUT else (_text(value) or "")[:_CUT]
            for key, value in answer["metadata"].items()
        }
    return answer
