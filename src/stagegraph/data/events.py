"""The events of a running run: one discriminated union with JSON."""

from __future__ import annotations

from datetime import datetime
from decimal import Decimal
from functools import cache
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, JsonValue, TypeAdapter

from stagegraph.schema.serialize import escaped

from .call import Kind, Status

Text = Annotated[str, AfterValidator(escaped)]
"""A text that can be written as JSON: half a surrogate pair, which errors and models may contain, is escaped."""


EVENTS_PER_SEGMENT = 2**32
"""The number of an event over all segments of a run is its `seq`, and this much more for each time it was resumed."""


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)

    run_id: str
    seq: int
    """Number within the run, from 0; a reader that lost its connection continues after its last one."""
    time: datetime


class _CallEvent(_Event):
    """What events of one call have in common."""

    key: Text
    path: str


class RunStarted(_Event):
    """A run began."""

    type: Literal["run_started"] = "run_started"
    graph: str


class CallStarted(_CallEvent):
    """A node was called."""

    type: Literal["call_started"] = "call_started"
    kind: Kind


class FanOutStarted(_Event):
    """A fan-out over a known number of items began."""

    type: Literal["fan_out_started"] = "fan_out_started"
    key: Text
    """The key of its branches without their index: `build` for `build[0]`, `build[1]`, ..."""
    size: int


class TextDelta(_CallEvent):
    """A model wrote a piece of text; only when the run was started with `deltas=True`."""

    type: Literal["text_delta"] = "text_delta"
    text: Text


class ToolCalled(_CallEvent):
    """An agent called one of its tools."""

    type: Literal["tool_called"] = "tool_called"
    tool: Text


class CallRetried(_CallEvent):
    """A stage failed and will be tried again."""

    type: Literal["call_retried"] = "call_retried"
    attempt: int
    """The attempt that failed, from 1."""
    error: Text
    wait: float
    """Seconds until the next attempt."""


class CallFinished(_CallEvent):
    """A call ended, with or without an output."""

    type: Literal["call_finished"] = "call_finished"
    kind: Kind
    status: Status
    error: Text | None = None
    duration: float
    """Seconds."""
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Decimal | None = None


class RunFinished(_Event):
    """A run ended; always the last event."""

    type: Literal["run_finished"] = "run_finished"
    status: Status
    error: Text | None = None
    output: JsonValue = None
    duration: float


class EventsDropped(_Event):
    """This reader was too slow, so that events were dropped before it read them."""

    type: Literal["events_dropped"] = "events_dropped"
    count: int


Event = Annotated[
    RunStarted
    | CallStarted
    | FanOutStarted
    | TextDelta
    | ToolCalled
    | CallRetried
    | CallFinished
    | RunFinished
    | EventsDropped,
    Discriminator("type"),
]
"""Any of the events above, by `type`."""


@cache
def _adapter() -> TypeAdapter[Event]:
    return TypeAdapter(Event)


def parse_event(data: str | bytes) -> Event:
    """Read one event from its JSON (`event.model_dump_json()`)."""
    return _adapter().validate_json(data)
