"""One execution of a node, as it is kept after it happened."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Generic, Literal

from pydantic import JsonValue
from typing_extensions import TypeVar

from .score import Note

if TYPE_CHECKING:
    from collections.abc import Iterator
    from datetime import datetime
    from decimal import Decimal

    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.usage import RunUsage

__all__ = ["Call", "CallError", "CallInfo", "Kind", "Pending", "Status", "key_order"]

In = TypeVar("In", default=Any)
Out = TypeVar("Out", default=Any)

Kind = Literal["stage", "step", "graph"]
Status = Literal["running", "succeeded", "failed", "cancelled", "suspended"]


@dataclass(frozen=True, slots=True)
class CallInfo:
    """Who is running right now; what `current_call()` gives to a step, a tool or a flow."""

    path: str
    """Where the node is declared: `build.code`."""
    key: str
    """Where it runs: `build[2].code`; stable when the run is resumed: with the run's id, it is an idempotency key."""
    run_id: str
    deps: object = None
    """What the caller passed as `deps=` to the run."""


@dataclass(frozen=True, slots=True)
class CallError:
    """Why a call ended without an output, as data that survives the process."""

    type: str
    """The exception's class name."""
    message: str
    passing: bool = field(default=False, compare=False)
    """Whether a provider or the network failed for the moment (429, 5xx, no connection), so that trying again may help;
    a journal does not keep it."""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """What a suspended agent asks: whether it may call a tool, or what a tool outside the process gave."""

    key: str
    """The call that waits."""
    path: str
    kind: Literal["approval", "external"]
    tool: str
    args: JsonValue
    tool_call_id: str

    @property
    def id(self) -> str:
        """What to answer to: unique within the run."""
        return f"{self.key}:{self.tool_call_id}"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Call(Generic[In, Out]):
    """One execution of a node inside a run."""

    path: str
    """Where the node is declared: `build.code`; empty for the graph that was run."""
    key: str
    """Where it ran: `build[2].code#1`; unique within the run."""
    kind: Kind
    status: Status
    input: In
    output: Out
    """What it returned; `None` when it did not succeed (see `error`)."""
    error: CallError | None
    usage: RunUsage
    """Requests, tool calls and tokens of this call; for a graph, of everything in it."""
    cost: Decimal | None
    """US dollars; `None` when a request's price is not known."""
    started: datetime
    """Time zone aware, UTC."""
    duration: float
    """Seconds."""
    attempts: int = 1
    """How often it was tried; more than 1 only with `Stage(retries=)`."""
    messages: tuple[ModelMessage, ...] = ()
    """What the agent and its model said to each other in the last attempt."""
    children: tuple[Call, ...] = ()
    """The calls made inside, in the order they began."""
    replayed: bool = False
    """Whether the output came from a record instead of being computed."""

    @property
    def ok(self) -> bool:
        """Whether the call has an output."""
        return self.status == "succeeded"

    def note(self, text: str, weight: float = 1.0) -> Note:
        """Hang feedback on this very call."""
        return Note(self.key, text, weight)

    def walk(self) -> Iterator[Call]:
        """This call and everything inside it, parents first."""
        pending: list[Call] = [self]
        while pending:
            call = pending.pop()
            yield call
            pending.extend(reversed(call.children))


_DIGITS = re.compile(r"(\d+)")


def key_order(key: str) -> list[tuple[int, int, str]]:
    """Sort keys as a person would: `build[2]` before `build[10]`, `code` before `code#1`."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _DIGITS.split(key) if part]
