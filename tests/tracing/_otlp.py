"""OTLP protobuf bodies as plain Python spans."""

from __future__ import annotations

import gzip
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, cast

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

__all__ = ["Event", "Span", "decode", "tree"]


@dataclass(frozen=True)
class Event:
    """One event of a span."""

    name: str
    attributes: dict[str, Any]


@dataclass(frozen=True)
class Span:
    """One received span."""

    name: str
    trace_id: str
    span_id: str
    parent_id: str | None
    """None when the span was sent without a parent."""
    start: int
    end: int
    status: tuple[int, str]
    """Code (0 unset, 1 ok, 2 error) and message."""
    scope: str
    attributes: dict[str, Any]
    events: list[Event]
    resource: dict[str, Any]
    scope_attributes: dict[str, Any] = field(default_factory=dict[str, Any])
    scope_version: str = ""
    sdk_version: str = ""
    """The `x-langfuse-sdk-version` header it came with."""

    @property
    def type(self) -> str:
        """What the span says of itself, like `agent`; empty for spans of other libraries."""
        return str(self.attributes.get("langfuse.observation.type", ""))


def _value(value: Any) -> Any:
    kind = value.WhichOneof("value")
    if kind is None:
        return None
    if kind == "array_value":
        return [_value(item) for item in value.array_value.values]
    if kind == "kvlist_value":
        return _attributes(value.kvlist_value.values)
    return getattr(value, kind)


def _attributes(pairs: Iterable[Any]) -> dict[str, Any]:
    return {pair.key: _value(pair.value) for pair in pairs}


def decode(body: bytes, encoding: str = "", sdk_version: str = "") -> list[Span]:
    """The spans of one request body; raises when the body is not OTLP."""
    request = ExportTraceServiceRequest()
    request.ParseFromString(gzip.decompress(body) if encoding == "gzip" else body)
    spans: list[Span] = []
    for group in cast("Iterable[Any]", request.resource_spans):
        resource = _attributes(group.resource.attributes)
        for scoped in group.scope_spans:
            scope = _attributes(scoped.scope.attributes)
            spans += [
                Span(
                    name=span.name,
                    trace_id=span.trace_id.hex(),
                    span_id=span.span_id.hex(),
                    parent_id=span.parent_span_id.hex() or None,
                    start=span.start_time_unix_nano,
                    end=span.end_time_unix_nano,
                    status=(int(span.status.code), span.status.message),
                    scope=scoped.scope.name,
                    attributes=_attributes(span.attributes),
                    events=[Event(event.name, _attributes(event.attributes)) for event in span.events],
                    resource=resource,
                    scope_attributes=scope,
                    scope_version=scoped.scope.version,
                    sdk_version=sdk_version,
                )
                for span in scoped.spans
            ]
    return spans


def tree(spans: Iterable[Span]) -> list[Any]:
    """Names by parentage, siblings by start: a leaf is its name, an inner span is `(name, [children])`.

    A span whose parent never arrived is a root here.
    """
    known = sorted({span.span_id: span for span in spans}.values(), key=lambda span: (span.start, span.span_id))
    ids = {span.span_id for span in known}

    def below(parent: str | None) -> list[Any]:
        found = [span for span in known if (span.parent_id if span.parent_id in ids else None) == parent]
        return [(span.name, children) if (children := below(span.span_id)) else span.name for span in found]

    return below(None)
