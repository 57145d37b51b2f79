"""The events of a running run: one discriminated union with JSON."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import cache
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Discriminator, JsonValue, TypeAdapter

from stagegraph.schema.serialize import escaped

from .call import Kind, Status

Text = Annotated[str, AfterValidator(escaped)]
"""A text that can be written as JSON: half a surrogate pair, which errors and models may contain, is escaped."""

MICROSECOND = timedelta(microseconds=1)
_EPOCH = datetime.fromtimestamp(0, UTC)


class _Event(BaseModel):
    model_config = ConfigDict(frozen=True, defer_build=True)

    run_id: str
    seq: int
    """Number within the run, from 0; a reader that lost its connection continues after its last one."""
    time: datetime

    @property
    def number(self) -> int:
        """Its place among all events of the run, which is the same on every worker and after a restart."""
        return (self.time - _EPOCH) // MICROSECOND


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


def number_at(seconds: float) -> int:
    """The number of an event of this time: no two events of a run have the same microsecond (`runner.state.Clock`)."""
    return (datetime.fromtimestamp(seconds, UTC) - _EPOCH) // MICROSECOND


@cache
def _adapter() -> TypeAdapter[Event]:
    return TypeAdapter(Event)


def parse_event(data: str | bytes) -> Event:
    """Read one event from its JSON (`event.model_dump_json()`)."""
    return _adapter().validate_json(data)
