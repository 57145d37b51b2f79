"""What holds runs and their requests back: what a run may spend, the requests in flight, and the queue of a runner."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter, defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anyio

from stagegraph.agent.call import LimitReached
from stagegraph.data.usage import USAGE
from stagegraph.record.calls import paid
from stagegraph.record.labels import Labels
from stagegraph.record.rows import CallRow, OpRow
from stagegraph.schema.errors import BusyError, DeclarationError

if TYPE_CHECKING:
    from pydantic_ai.usage import RequestUsage

_FIRST_GUESS = 1.0
"""Assumed seconds of a run before the first one has ended."""
_LONGEST_WAIT = 60.0
_WEIGHT = 0.2
"""Of the newest run in the moving average of durations."""
_LIMITS = ("requests", "tokens", "usd", "seconds")
_SPENT = "spent"
"""The name of the operation that says what a run has spent; it belongs to no call."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may spend; reaching a limit ends the run with `LimitError`, and recorded calls stay recorded.

    A request is counted before it is made, so a wide fan-out cannot overshoot. Tokens and dollars of a request are
    not known before: the ledger reserves as much as the most expensive request of the same stage so far. The first
    request of a stage runs alone, and no more run at once than were answered before. Requests in flight when a limit is
    reached are answered first, so nothing that is paid for is lost. Usage of agents that an agent's tools run counts
    when the agent's own usage contains it (`usage=ctx.usage`), at its next request and at its end.

    With a journal, what a run spent counts for ever: a resumed run has only the rest, however often it was interrupted,
    and whatever became of what it asked.
    """

    requests: int | None = None
    """Model requests."""
    tokens: int | None = None
    """Input and output tokens together."""
    usd: float | Decimal | None = None
    """US dollars. A model without a known price ends the run, since the limit could not be kept."""
    seconds: float | None = None
    """Time in which the run is going on; while it is interrupted or waits to be resumed, none passes."""

    @classmethod
    def recorded(cls, labels: Labels) -> Limits | None:
        """The limits that a recorded run was given."""
        known: dict[str, Any] = {name: labels.limits[name] for name in _LIMITS if name in labels.limits}
        if "usd" in known:
            known["usd"] = Decimal(str(known["usd"]))
        return cls(**known) if known else None

    def as_label(self) -> dict[str, object]:
        """The same for its labels."""
        return {name: value for name in _LIMITS if (value := getattr(self, name)) is not None}

    def __post_init__(self) -> None:
        for name in _LIMITS:
            value = getattr(self, name)
            if value is not None and not isinstance(value, (int, float, Decimal)):
                msg = f"Limits({name}={value!r}): a limit is a number, without quotes"
                raise TypeError(msg)
            if value is not None and not value >= 0:
                msg = f"Limits({name}={value!r}): a limit is 0 or more"
                raise ValueError(msg)


@dataclass(slots=True)
class _Amount:
    """What a run has spent of one kind."""

    unit: str
    limit: int | Decimal | None
    spent: int | Decimal = 0


@dataclass(slots=True)
class _Requests:
    """The requests of one stage."""

    in_flight: int = 0
    answered: int = 0
    dearest: tuple[int, Decimal] = (0, Decimal(0))
    """The most tokens of one, and the most dollars."""


class Ledger:
    """Counts what a run has spent and what its requests in flight may still spend."""

    @classmethod
    def of(cls, limits: Limits) -> Ledger | None:
        """The ledger of a run; `None` when nothing needs to be counted."""
        counted = (limits.requests, limits.tokens, limits.usd) != (None, None, None)
        return cls(limits) if counted else None

    def __init__(self, limits: Limits) -> None:
        self._requests = _Amount("model requests", limits.requests)
        self._tokens = _Amount("tokens", limits.tokens)
        self._usd = _Amount("US dollars", None if limits.usd is None else Decimal(str(limits.usd)))
        self._amounts = (self._requests, self._tokens, self._usd)
        self._stages: defaultdict[str, _Requests] = defaultdict(_Requests)
        """By path."""
        self._unpriced: str | None = None
        self._calls = 0
        self._waiting: Counter[str] = Counter()
        """Key -> for how many things a stage call waits, with no request in flight."""
        self._changed = anyio.Event()

    @contextmanager
    def call(self) -> Generator[None]:
        """Around a stage call."""
        self._calls += 1
        try:
            yield
        finally:
            self._calls -= 1
            self._wake()

    @contextmanager
    def waits(self, key: str) -> Generator[None]:
        """Around the time that the stage call at *key* waits: for others, to try again, or for a graph in its tools."""
        self._waiting[key] += 1
        self._wake()
        try:
            yield
        finally:
            self._waiting[key] -= 1
            self._waiting += Counter()  # drops what is 0

    async def reserve(self, path: str, waiting: Callable[[], AbstractContextManager[None]]) -> None:
        """Reserve what the next request of a stage may spend, as much as the most expensive one so far.

        A request that does not fit waits for other calls, inside *waiting*: their usage may turn out lower than
        reserved. When all of them have ended or wait as well, the limit is reached.

        Raises:
            LimitReached: the request does not fit.
        """
        if self._refusal(path) is not None:
            with waiting():
                while (refusal := self._refusal(path)) is not None:
                    if len(self._waiting) >= self._calls:
                        raise LimitReached(refusal)
                    await self._changed.wait()
        self._requests.spent += 1
        self._stages[path].in_flight += 1

    def settle(self, path: str, usage: RequestUsage | None) -> None:
        """Replace what was reserved for a request by what was spent; `None` when it was not answered.

        Raises:
            LimitReached: a dollar limit is set and this request has no known price.
        """
        stage = self._stages[path]
        stage.in_flight -= 1
        self._wake()
        if usage is None:
            return
        tokens, usd = usage.input_tokens + usage.output_tokens, usage.cost or Decimal(0)
        self.charge(0, tokens, usd)
        stage.answered += 1
        stage.dearest = max(stage.dearest[0], tokens), max(stage.dearest[1], usd)
        if self._usd.limit is not None and usage.cost is None:
            self._unpriced = (
                f"the limit of ${self._usd.limit} cannot be kept: no price is known for the model of "
                f"`{path}`; limit requests or tokens instead, or use a model with a known price"
            )
            raise LimitReached(self._unpriced)

    def charge(self, *more: int | Decimal) -> None:
        """Count requests, tokens and dollars that nothing was reserved for: those of agents inside tools."""
        for amount, one in zip(self._amounts, more, strict=True):
            amount.spent += one

    def as_row(self, run_id: str) -> OpRow:
        """What was spent so far, for the journal."""
        payload = json.dumps([self._requests.spent, self._tokens.spent, str(self._usd.spent)])
        return OpRow(run_id=run_id, key="", identity="", op=_SPENT, digest="", payload=payload)

    def go_on(self, calls: Iterable[CallRow], ops: Sequence[OpRow]) -> None:
        """Begin with what a recorded run has spent: what was counted, or, if that is more, what is on record."""
        spent = paid(ops)
        for row in calls:
            if row.kind == "stage" and json.loads(row.source or "null") in (None, [row.run_id, row.key]):
                usage = USAGE.validate_json(row.usage)  # with that of agents inside its tools
                spent[row.key] = max(usage, spent.get(row.key, usage), key=lambda one: (one.requests, one.total_tokens))
        counted: list[Any] = next((json.loads(op.payload) for op in ops if op.op == _SPENT), [0, 0, "0"])
        self._requests.spent = max(counted[0], sum(one.requests for one in spent.values()))
        self._tokens.spent = max(counted[1], sum(one.total_tokens for one in spent.values()))
        self._usd.spent = max(Decimal(counted[2]), sum((one.cost or 0 for one in spent.values()), Decimal(0)))

    def overspent(self) -> str | None:
        """Which limit was exceeded, if any: the usage of the last answers was not known before."""
        for one in self._amounts:
            if one.limit is not None and one.spent > one.limit:
                return f"{one.spent} {one.unit} were spent, and the limit is {one.limit}"
        return None

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _refusal(self, path: str) -> str | None:
        """Why a request must not be made now; `None` when it may."""
        requests, stage = self._requests, self._stages[path]
        if requests.limit is not None and requests.spent >= requests.limit:
            return f"{requests.spent} model requests were made, and the limit is {requests.limit}"
        if self._unpriced is not None:
            return self._unpriced
        busy = [one for one in self._stages.values() if one.in_flight]
        for index, amount in enumerate((self._tokens, self._usd)):
            limit, spent, wanted = amount.limit, amount.spent, stage.dearest[index]
            if limit is None:
                continue
            if spent >= limit or spent + wanted > limit:
                needs = f"the next request is expected to need {wanted or 'some'}"
                return f"{spent} of {limit} {amount.unit} are spent, and {needs}"
            if busy and not all(one.answered for one in (stage, *busy)):
                return "the first request of a stage goes alone"
            if stage.in_flight >= max(1, stage.answered):
                return "as many are on their way as were answered before"
            if spent + wanted + sum(one.in_flight * one.dearest[index] for one in busy) > limit:
                return "requests in flight may need the rest"
        return None


@dataclass(frozen=True, slots=True)
class Slots:
    """The model requests of all runs of a runner that may be in flight at once on one event loop."""

    in_flight: anyio.Semaphore
    starting: anyio.Semaphore
    """As many agents again may have started and not made their first request yet. More would not be answered sooner,
    and each takes some 40 kB and the time of the garbage collector."""


class RequestSlots:
    """The slots of a runner, for each event loop, since a semaphore belongs to one."""

    def __init__(self, count: int | None) -> None:
        self._count = count
        self._made: tuple[asyncio.AbstractEventLoop, Slots] | None = None

    def here(self) -> Slots | None:
        """The slots of the running event loop; `None` where the number of requests is not limited."""
        if self._count is None:
            return None
        loop = asyncio.get_running_loop()
        if self._made is None or self._made[0] is not loop:
            self._made = (loop, Slots(anyio.Semaphore(self._count), anyio.Semaphore(self._count)))
        return self._made[1]


# -- the runs of a runner


class Queue:
    """The seats of one runner, first come, first served; without *max_runs* their number is not limited."""

    def __init__(self, max_runs: int | None, max_queued: int | None) -> None:
        if max_queued is not None and (max_runs is None or max_queued < 0):
            wrong = "0 or more may wait" if max_runs is not None else "runs only wait where `max_runs` limits them"
            msg = f"Runner(max_runs={max_runs}, max_queued={max_queued}): {wrong}"
            raise DeclarationError(msg)
        self._max_runs = max_runs
        self._max_queued = max_queued or 0
        self._waiting: deque[Seat] = deque()
        self._mean_seconds = _FIRST_GUESS
        self.running = 0
        """How many runs hold a seat."""

    @property
    def queued(self) -> int:
        """How many runs wait for a seat."""
        return len(self._waiting)

    def admit(self, *, patient: bool = False) -> Seat:
        """A seat, free or still waited for; does not wait itself. A *patient* run waits however long the queue is.

        Raises:
            BusyError: all seats are taken, and the queue is full.
        """
        if self._max_runs is None or self.running < self._max_runs:
            self.running += 1
            return Seat(self, None)
        if not patient and len(self._waiting) >= self._max_queued:
            waiting = f" and {len(self._waiting)} wait" if self._waiting else ""
            msg = f"{self.running} runs are going on{waiting}, and no more may: try again later, or raise `max_runs`"
            raise BusyError(msg, retry_after=self._wait())
        seat = Seat(self, anyio.Event())
        self._waiting.append(seat)
        return seat

    def _wait(self) -> float:
        """Estimated seconds until one more run gets a seat."""
        likely = self._mean_seconds * (len(self._waiting) + 1) / (self._max_runs or 1)
        return min(max(likely, 1.0), _LONGEST_WAIT)

    def left(self, seat: Seat) -> None:
        """Give a seat to the next run in the queue."""
        if seat in self._waiting:
            self._waiting.remove(seat)
            return
        self._mean_seconds += _WEIGHT * (time.monotonic() - seat.since - self._mean_seconds)
        if self._waiting:
            self._waiting.popleft().take()
        else:
            self.running -= 1


class Seat:
    """One run's place among the running runs, or in the queue until it is taken."""

    __slots__ = ("_left", "_queue", "_turn", "since")

    def __init__(self, queue: Queue, turn: anyio.Event | None) -> None:
        self._queue = queue
        self._turn = turn
        self._left = False
        self.since = time.monotonic()

    def take(self) -> None:
        """The seat is this run's now."""
        self.since = time.monotonic()
        if self._turn is not None:
            self._turn.set()

    async def taken(self) -> None:
        """Wait until the seat is this run's."""
        if self._turn is not None:
            await self._turn.wait()

    def leave(self) -> None:
        """Give the seat to the next run; once."""
        if not self._left:
            self._left = True
            self._queue.left(self)
