"""The state of one run, as plain data: its clock, its calls so far, and how it ended."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from copy import copy
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from time import perf_counter, time
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, NamedTuple

from stagegraph.data.call import Call, CallError, Status
from stagegraph.data.usage import NO_MODEL, ModelUse, summed
from stagegraph.schema.schema import Record

if TYPE_CHECKING:
    from decimal import Decimal

    from pydantic_ai.models import Model
    from pydantic_ai.usage import RunUsage

    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node, Tree
    from stagegraph.schema.errors import StageError


_APART = 1.5e-6
"""Seconds between two events of a run: enough for another microsecond, whatever a sum of floats is rounded to."""


@dataclass(slots=True)
class Clock:
    """The monotonic clock, and its offset from the calendar, read once a run."""

    offset: float
    _next: float = 0.0

    @classmethod
    def now(cls) -> Clock:
        return cls(time() - perf_counter())

    def tick(self) -> float:
        """This moment; no other has the same microsecond, so that the time of an event is its number."""
        moment = max(perf_counter(), self._next)
        self._next = moment + _APART
        return moment

    def stamp(self) -> float:
        """The same in seconds since 1970."""
        return self.offset + self.tick()

    def seconds(self, moment: float) -> float:
        """Seconds since 1970."""
        return self.offset + moment

    def calendar(self, moment: float) -> datetime:
        return datetime.fromtimestamp(self.offset, UTC) + timedelta(seconds=moment)


class Caller(NamedTuple):
    """What an agent lends to a graph that it calls as a tool."""

    model: Model[Any] | None
    """For stages without a model of their own, if the run has none."""
    deps: object


class CacheKey(NamedTuple):
    """What identifies one call in the replay cache; computed once a call."""

    record: Record
    """Of the input."""
    identity: str = ""
    """Empty for a graph, and where part of the input has no record."""
    parts: Mapping[str, str] = MappingProxyType({})
    """Name -> hash of each part of the identity besides the input; the same for all calls of one node."""
    parts_json: str = "{}"


@dataclass(slots=True, eq=False)
class CallState:
    """One call while it runs. A handful of slots keeps a run of 100,000 calls small."""

    node: Node[Any, Any]
    path: str
    key: str
    parent: CallState | None
    input: object
    position: int
    began: float
    fan: tuple[int, int | None] | None = None
    """Index and size of the fan-out that it was made for; set only for a trace."""
    output: Any = None
    error: CallError | None = None
    status: Status = "running"
    use: ModelUse = NO_MODEL
    replayed: bool = False
    cache_key: CacheKey | None = None
    source: str | None = None
    """`CallRow.source`."""
    ran: tuple[float, float | None] | None = None
    """When the call began before its run was resumed, and how long it took; `None` for until it ends now."""
    caller: Caller | None = None
    """The agent that called the graph, if an agent did."""
    ended: float = 0.0

    @property
    def identity(self) -> str:
        return "" if self.cache_key is None else self.cache_key.identity

    @property
    def duration(self) -> float:
        return (self.ended or perf_counter()) - self.began

    def times(self, clock: Clock) -> tuple[float, float]:
        """When it began, in seconds since 1970, and how long it took: what was recalled has run when it did."""
        if self.ran is None:
            return clock.offset + self.began, (self.ended or perf_counter()) - self.began
        began, seconds = self.ran
        return began, max(0.0, clock.seconds(self.ended or perf_counter()) - began) if seconds is None else seconds

    @property
    def lender(self) -> Caller | None:
        """The agent that called the graph around the call, if an agent did."""
        call: CallState | None = self
        while call is not None and call.caller is None:
            call = call.parent
        return None if call is None else call.caller

    def deps(self, of_run: object) -> object:
        """The deps of the call: those of the run, or of the agent that called the graph around it."""
        return of_run if (lender := self.lender) is None else lender.deps


@dataclass(slots=True, eq=False)
class RunState:
    """The state of one run: the calls so far, and how it ended."""

    tree: Tree
    root: CallState
    """The call of what is run."""
    segment: int
    """0 for a run from its beginning, 1 when it was resumed, 2 the second time."""
    prompts: Prompts
    """What is deployed for this run; empty until the run begins, when they come from a server."""
    clock: Clock
    resumed_at: float = 0.0
    """When it was resumed, in seconds since 1970; what ended before keeps its time."""
    calls: dict[str, CallState] = field(default_factory=dict)
    """Key -> call, in the order in which they began."""
    repeats: dict[str, int] = field(default_factory=dict)
    """Key -> how often it was called again, of all calls that were made, whether or not they began."""
    rerun: dict[str, str] = field(default_factory=dict)
    """Key -> what changed, of the calls that were recorded and had to run again."""
    limit: str | None = None
    """Which limit ended the run, if one did."""
    stopped: StageError | None = None
    """The error of the call that reached the limit first."""
    broken: Exception | None = None
    """Why nothing can be recorded any more, or must not run again."""
    over: bool = False
    """Whether the flow has ended; a task that outlives it can call nothing."""
    cancel_requested: bool = False
    """Whether the caller cancelled the run; otherwise a cancellation during a shutdown leaves it to be resumed."""
    end: tuple[Status, CallError | None] | None = None
    """How the run ended."""
    ended: float = 0.0
    guests: list[Node[Any, Any]] = field(default_factory=list)
    """Graphs that agents called and no graph declares; kept, since the tree knows them by their `id`."""

    @classmethod
    def of(cls, tree: Tree, value: object, prompts: Prompts, segment: int) -> RunState:
        """The state of a run before its first call."""
        declared = tree.root.__node__
        name = "" if declared.kind == "graph" else declared.name
        clock = Clock.now()
        return cls(tree, CallState(tree.root, name, name, None, value, 0, clock.tick()), segment, prompts, clock)

    def place(self, above: str, name: str, graph: Node[Any, Any]) -> tuple[str, str]:
        """The name and path of a graph that an agent calls in the call at *above*; its nodes join the run's tree."""
        while True:
            path = f"{above}.{name}" if above else name
            known = self.tree.nodes.get(path)
            if known is graph:
                return name, path
            if known is None or type(known) is type(graph):
                self.tree = self.tree.with_graph(path, graph)
                self.guests.append(graph)
                return name, path
            name += "_"

    def never_awaited(self) -> bool:
        """Whether a call was made that never began: its number is taken when it is made."""
        return sum(self.repeats.values()) + len(self.repeats) > len(self.calls)

    @property
    def name(self) -> str:
        """The name of what is run."""
        return self.tree.root.__node__.name


def call_tree(calls: Iterable[CallState], clock: Clock) -> Call:
    """The tree of calls as it stands now; *calls* are in the order in which they began, so parents come first."""
    ordered = list(calls)
    children: dict[CallState, list[Call]] = {}
    for state in reversed(ordered):
        inside = children.pop(state, [])
        inside.reverse()
        call = _frozen(state, tuple(inside), clock)
        if state.parent is None:
            return call
        children.setdefault(state.parent, []).append(call)
    msg = "a record has a root"
    raise AssertionError(msg)


def total(calls: Iterable[CallState]) -> tuple[RunUsage, Decimal | None]:
    """Usage and cost of all calls together; the cost is `None` when that of one call is not known."""
    return summed(call.use for call in calls if call.use is not NO_MODEL)


def _frozen(state: CallState, children: tuple[Call, ...], clock: Clock) -> Call:
    usage, cost = state.use.usage, state.use.cost
    if state.status == "running":
        usage = copy(usage)  # the agent still adds to it
    if children:
        usage, cost = summed(children if state.use is NO_MODEL else (state.use, *children))
    began, duration = state.times(clock)
    return Call(
        path=state.path,
        key=state.key,
        kind=state.node.__node__.kind,
        status=state.status,
        input=state.input,
        output=state.output,
        error=state.error,
        usage=usage,
        cost=cost,
        started=datetime.fromtimestamp(began, UTC),
        duration=duration,
        attempts=state.use.attempts,
        messages=state.use.messages,
        children=children,
        replayed=state.replayed,
    )
