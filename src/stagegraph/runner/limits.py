"""What a run may spend: its limits, the ledger that reserves it, and the limiter that each model request passes."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from copy import copy
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio
from pydantic_ai.usage import RunUsage

from stagegraph.agent.call import LimitReached

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.usage import RequestUsage

    from .state import CallState


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may spend; reaching a limit ends the run with `LimitError`, and recorded calls stay recorded.

    A request is counted before it is made, so a wide fan-out cannot overshoot. Tokens and dollars of a request are
    not known before: the ledger reserves as much as the most expensive request of the same stage so far. The first
    request of a stage runs alone, and no more run at once than were answered before. Requests in flight when a limit is
    reached are answered first, so nothing that is paid for is lost. Usage of agents that an agent's tools run counts
    when the agent's own usage contains it (`usage=ctx.usage`), at its next request and at its end.
    """

    requests: int | None = None
    """Model requests."""
    tokens: int | None = None
    """Input and output tokens together."""
    usd: float | Decimal | None = None
    """US dollars. A model without a known price ends the run, since the limit could not be kept."""
    seconds: float | None = None
    """Wall time of the whole run."""

    def __post_init__(self) -> None:
        for name in ("requests", "tokens", "usd", "seconds"):
            value = getattr(self, name)
            if value is not None and not isinstance(value, (int, float, Decimal)):
                msg = f"Limits({name}={value!r}): a limit is a number, without quotes"
                raise TypeError(msg)
            if value is not None and not value >= 0:
                msg = f"Limits({name}={value!r}): a limit is 0 or more"
                raise ValueError(msg)


@dataclass(slots=True)
class Reservation:
    """What one request may spend until its real usage is known."""

    path: str
    tokens: int
    usd: Decimal


_ZERO = Decimal(0)


class Ledger:
    """Counts what a run has spent and what its requests in flight may still spend."""

    @classmethod
    def of(cls, limits: Limits) -> Ledger | None:
        """The ledger of a run; `None` when nothing needs to be counted."""
        counted = (limits.requests, limits.tokens, limits.usd) != (None, None, None)
        return cls(limits) if counted else None

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self._usd_limit = None if limits.usd is None else Decimal(str(limits.usd))
        self._requests = 0
        self._tokens = 0
        self._usd = _ZERO
        self._held: list[Reservation] = []
        self._dearest: dict[str, tuple[int, Decimal]] = {}
        self._answered: Counter[str] = Counter()
        self._unpriced: str | None = None
        self._calls = 0
        self._idle = 0
        self._changed = anyio.Event()

    def call_began(self) -> None:
        """A stage call has begun."""
        self._calls += 1

    def call_ended(self) -> None:
        self._calls -= 1
        self._wake()

    @contextmanager
    def idle(self) -> Generator[None]:
        """Around the time that a stage call waits and has no request in flight."""
        self._idle += 1
        self._wake()
        try:
            yield
        finally:
            self._idle -= 1

    async def reserve(self, path: str) -> Reservation:
        """Reserve what the next request of a stage may spend.

        A request that does not fit waits for other calls: their usage may turn out lower than reserved. When all of
        them have ended or wait as well, the limit is reached.

        Raises:
            LimitReached: the request does not fit.
        """
        refusal = self._refusal(path)
        if refusal is not None:
            with self.idle():
                while (refusal := self._refusal(path)) is not None:
                    if self._idle >= self._calls:
                        raise LimitReached(refusal)
                    await self._changed.wait()
        tokens, usd = self._estimate(path)
        reservation = Reservation(path, tokens, usd)
        self._requests += 1
        self._held.append(reservation)
        return reservation

    def settle(self, reservation: Reservation, usage: RequestUsage | None) -> None:
        """Replace a reservation by what was spent; `None` when the request was not answered.

        Raises:
            LimitReached: a dollar limit is set and this request has no known price.
        """
        self._held.remove(reservation)
        self._wake()
        if usage is None:
            return
        tokens, usd = usage.input_tokens + usage.output_tokens, usage.cost or _ZERO
        self._tokens += tokens
        self._usd += usd
        before = self._dearest.get(reservation.path, (0, _ZERO))
        self._dearest[reservation.path] = (max(before[0], tokens), max(before[1], usd))
        self._answered[reservation.path] += 1
        if self._usd_limit is not None and usage.cost is None:
            self._unpriced = (
                f"the limit of ${self._usd_limit} cannot be kept: no price is known for the model of "
                f"`{reservation.path}`; limit requests or tokens instead, or use a model with a known price"
            )
            raise LimitReached(self._unpriced)

    def charge(self, requests: int, tokens: int, usd: Decimal) -> None:
        """Count usage that nothing was reserved for: that of agents inside tools."""
        self._requests += requests
        self._tokens += tokens
        self._usd += usd

    def overspent(self) -> str | None:
        """Which limit was exceeded, if any: the usage of the last answers was not known before."""
        counts = (
            ("model requests", self.limits.requests, self._requests),
            ("tokens", self.limits.tokens, self._tokens),
            ("US dollars", self._usd_limit, self._usd),
        )
        for unit, limit, spent in counts:
            if limit is not None and spent > limit:
                return f"{spent} {unit} were spent, and the limit is {limit}"
        return None

    def _wake(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()

    def _estimate(self, path: str) -> tuple[int, Decimal]:
        return self._dearest.get(path, (0, _ZERO))

    def _refusal(self, path: str) -> str | None:
        """Why a request must not be made now; `None` when it may."""
        limit = self.limits.requests
        if limit is not None and self._requests >= limit:
            return f"{self._requests} model requests were made, and the limit is {limit}"
        return self._unpriced or self._refusal_of_amounts(path)

    def _refusal_of_amounts(self, path: str) -> str | None:
        tokens, usd = self._estimate(path)
        amounts = (
            ("tokens", self.limits.tokens, self._tokens, sum(r.tokens for r in self._held), tokens),
            ("US dollars", self._usd_limit, self._usd, sum((r.usd for r in self._held), _ZERO), usd),
        )
        for unit, limit, spent, held, wanted in amounts:
            if limit is None:
                continue
            if spent >= limit or spent + wanted > limit:
                return (
                    f"{spent} of {limit} {unit} are spent, and the next request is expected to need {wanted or 'some'}"
                )
            first = path not in self._dearest
            if self._held and (first or any(r.path not in self._dearest for r in self._held)):
                return "the first request of a stage goes alone"
            if sum(r.path == path for r in self._held) >= max(1, self._answered[path]):
                return "as many are on their way as were answered before"
            if spent + held + wanted > limit:
                return "requests in flight may need the rest"
        return None


class RequestLimiter:
    """Limits and counts the model requests of one stage call."""

    __slots__ = ("_counted", "_ledger", "_slots", "_usage", "call")

    def __init__(self, call: CallState, ledger: Ledger | None, slots: anyio.Semaphore | None) -> None:
        self.call = call
        self._ledger = ledger
        self._slots = slots
        self._usage = RunUsage()
        """Of the current attempt, with the usage of agents inside its tools."""
        self._counted = RunUsage()
        """The part of it that the ledger has counted, or that was recalled."""

    def attempt_began(self, usage: RunUsage) -> None:
        self._usage, self._counted = usage, RunUsage()

    def attempt_ended(self) -> None:
        if self._ledger is not None:
            self._charge(self._ledger)

    async def request(
        self, ask: Callable[[], Awaitable[ModelResponse]], waiting: Callable[[], AbstractContextManager[None]]
    ) -> ModelResponse:
        ledger = self._ledger
        if ledger is None:
            return await self._in_slot(ask, waiting)
        self._charge(ledger)
        with waiting():  # before the slot: a run that waits for its own limit must not hold back other runs
            reservation = await ledger.reserve(self.call.path)
        spent: RequestUsage | None = None
        try:
            response = await self._in_slot(ask, waiting)
            spent = response.usage
            self._count(spent)
        finally:
            ledger.settle(reservation, spent)
        return response

    async def _in_slot(
        self, ask: Callable[[], Awaitable[ModelResponse]], waiting: Callable[[], AbstractContextManager[None]]
    ) -> ModelResponse:
        slots = self._slots
        if slots is None:
            response = await ask()
        else:
            with waiting():
                await slots.acquire()
            try:
                response = await ask()
            finally:
                slots.release()
        self.call.use.unpriced |= response.usage.cost is None
        return response

    def request_recalled(self, usage: RequestUsage) -> None:
        self.call.use.unpriced |= usage.cost is None
        self._count(usage)

    async def sleep(self, seconds: float) -> None:
        if self._ledger is None:
            await anyio.sleep(seconds)
            return
        with self._ledger.idle():
            await anyio.sleep(seconds)

    def _count(self, usage: RequestUsage) -> None:
        self._counted.incr(usage)
        self._counted.requests += 1

    def _charge(self, ledger: Ledger) -> None:
        """Count what agents inside the tools have spent since the last time."""
        usage, counted = self._usage, self._counted
        ledger.charge(
            max(0, usage.requests - counted.requests),
            max(0, usage.total_tokens - counted.total_tokens),
            max(Decimal(0), (usage.cost or Decimal(0)) - (counted.cost or Decimal(0))),
        )
        self._counted = copy(usage)


class RequestSlots:
    """The model requests of all runs of a runner that may be in flight at once."""

    def __init__(self, count: int | None) -> None:
        self._count = count
        self._made: tuple[asyncio.AbstractEventLoop, anyio.Semaphore] | None = None

    def here(self) -> anyio.Semaphore | None:
        """The slots of the running event loop, since a semaphore belongs to one loop."""
        if self._count is None:
            return None
        loop = asyncio.get_running_loop()
        if self._made is None or self._made[0] is not loop:
            self._made = (loop, anyio.Semaphore(self._count))
        return self._made[1]
