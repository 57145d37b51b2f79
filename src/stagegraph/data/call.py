"""The record of one execution of a node."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Generic, Literal

from pydantic import JsonValue
from pydantic_core import to_json
from typing_extensions import TypeVar

from stagegraph.schema.errors import shortened
from stagegraph.schema.types import is_dict

from .score import Note

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from datetime import datetime

    from pydantic_ai.messages import ModelMessage
    from pydantic_ai.usage import RunUsage

In = TypeVar("In", default=Any)
Out = TypeVar("Out", default=Any)

Kind = Literal["stage", "step", "graph"]
Status = Literal["running", "succeeded", "failed", "cancelled", "suspended"]
ShownStatus = Literal["running", "succeeded", "failed", "cancelled", "suspended", "interrupted"]
"""The status of a run, or `interrupted`: its process has ended, and another one may resume it."""
GIVEN_UP = "GivenUp"
"""The error type of a run that is not resumed any more."""
Cause = Literal["input", "limit", "seconds", "timeout", "model"]
"""Why a run failed, where that is known: its input does not fit; it reached a limit of what it may spend, or of its
seconds; a call took too long; a model gave no usable answer."""


@dataclass(frozen=True, slots=True)
class CallInfo:
    """The running call, as returned by `current_call()` in a step, a tool or a flow."""

    path: str
    """Where the node is declared: `build.code`."""
    key: str
    """Where it runs: `build[2].code`. Unchanged in a resumed run: with the run's id it is an idempotency key."""
    run_id: str
    deps: object = None
    """What the caller passed as `deps=` to the run."""


@dataclass(frozen=True, slots=True)
class CallError:
    """Why a call ended without an output, as data that survives the process."""

    type: str
    """The exception's class name."""
    message: str
    transient: bool = field(default=False, compare=False)
    """Whether a provider or the network caused it (429, 5xx, no connection), so that a retry may help."""
    origin: str | None = field(default=None, compare=False)
    """The key of the call that first raised the exception: the failed call itself, or one below it. `None` if the
    record does not have it."""
    cause: Cause | None = field(default=None, compare=False)
    """What kind of failure it was; for the error of a run only."""

    def __str__(self) -> str:
        return f"{self.type}: {self.message}" if self.message else self.type


@dataclass(frozen=True, slots=True, kw_only=True)
class Pending:
    """A deferred tool call of a suspended agent: it waits for an approval, or for the result of an external tool."""

    key: str
    """The suspended call."""
    path: str
    kind: Literal["approval", "external"]
    tool: str
    args: JsonValue
    tool_call_id: str
    masked: bool = False
    """Whether `redact=` has changed the recorded arguments: approve such a call with arguments of your own."""

    @property
    def id(self) -> str:
        """The key of the answer in `Runner.resume(answers=)`, unique within the run."""
        return f"{self.key}:{self.tool_call_id}"


def dump_pending(pending: Iterable[Pending]) -> str:
    """Deferred calls as JSON."""
    return to_json([{name: getattr(one, name) for name in Pending.__slots__} for one in pending]).decode()


def load_pending(text: str) -> tuple[Pending, ...]:
    """Read what `dump_pending` wrote."""
    return tuple(Pending(**one) for one in json.loads(text))


def is_usage(text: str) -> bool:
    """Whether a text is the usage of a call as JSON; it does not load Pydantic AI, which takes most of a second."""
    data = json.loads(text)
    if not is_dict(data) or not is_dict(details := data.get("details") or {}):
        return False
    counts = [value for name, value in data.items() if str(name).endswith(("_tokens", "requests", "calls"))]
    return all(isinstance(count, int) for count in (*counts, *details.values())) and _is_cost(data.get("cost"))


def _is_cost(value: object) -> bool:
    return value is None or Decimal(str(value)).is_finite()


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
    """The return value; `None` if the call did not succeed (see `error`)."""
    error: CallError | None
    usage: RunUsage
    """Requests, tool calls and tokens of this call; for a graph, of everything in it."""
    cost: Decimal | None
    """US dollars; `None` if the price of a request is unknown."""
    started: datetime
    """Time zone aware, UTC."""
    duration: float
    """Seconds."""
    attempts: int = 1
    """The number of attempts; more than 1 only with `Stage(retries=)`."""
    messages: tuple[ModelMessage, ...] = ()
    """The messages between the agent and its model in the last attempt."""
    children: tuple[Call, ...] = ()
    """The calls inside this one, in the order they began."""
    replayed: bool = False
    """Whether the output came from a record instead of being computed."""

    @property
    def ok(self) -> bool:
        """Whether the call has an output."""
        return self.status == "succeeded"

    def __repr__(self) -> str:
        error = "" if self.error is None else f", {shortened(str(self.error), 300)}"
        return f"<Call {self.key!r} of {self.kind} {self.path!r}: {self.status}{error}>"

    def note(self, text: str, weight: float = 1.0) -> Note:
        """Feedback on this call."""
        return Note(self.key, text, weight)

    def walk(self) -> Iterator[Call]:
        """This call and everything inside it, parents first."""
        pending: list[Call] = [self]
        while pending:
            call = pending.pop()
            yield call
            pending.extend(reversed(call.children))


_DIGITS = re.compile(r"(\d+)")
_BRANCH_OR_REPEAT = re.compile(r"\[[^\]]*\]|#\d+")
"""The parts of a call's key that its path does not have."""


def path_of(key: str) -> str:
    """Where the node is declared whose call has this key."""
    return _BRANCH_OR_REPEAT.sub("", key)


def key_order(key: str) -> list[tuple[int, int, str]]:
    """A sort key for natural order: `build[2]` before `build[10]`, `code` before `code#1`."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in _DIGITS.split(key) if part]
