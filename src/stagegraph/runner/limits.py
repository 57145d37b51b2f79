"""What a run may spend, and the ledger that reserves it before a request is made."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio

if TYPE_CHECKING:
    from pydantic_ai.usage import RequestUsage

__all__ = ["Ledger", "LimitReached", "Limits", "Reservation"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one run may spend; reaching one ends the run with `LimitError`, and what was recorded remains.

    A request is counted before it is made, so a wide fan-out cannot overshoot. Tokens and dollars of a request are
    not known before: as much as the dearest request of the same stage so far is set aside, the first goes alone, and no
    more are on their way at once than were answered before. Requests that are on their way when a limit is reached are
    answered first, so nothing that is paid for is lost. What an agent's tools spend through agents of their own counts
    when it is seen in the agent's usage (`usage=ctx.usage`), at its next request and at its end.
    """

    requests: int | None = None
    """Model requests."""
    tokens: int | None = None
    """Input and output tokens together."""
    usd: float | Decimal | None = None
    """US dollars. A model without a known price ends the run, since nobody could keep the limit."""
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


class LimitReached(Exception):  # noqa: N818 - never leaves the runner, which turns it into a LimitError
    """A request would go over a limit."""


@dataclass(slots=True)
class Reservation:
    """What one request may spend until its real usage is known."""

    path: str
    tokens: int
    usd: Decimal


_ZERO = Decimal(0)


class Ledger:
    """Counts what a run has spent and what its requests in flight may still spend."""

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
        """A stage call is at work from now on."""
        self._calls += 1

    def call_ended(self) -> None:
        self._calls -= 1
        self._wake()

    @contextmanager
    def idle(self) -> Generator[None]:
        """A stage call waits and nothing that was paid for is on its way to it."""
        self._idle += 1
        self._wake()
        try:
            yield
        finally:
            self._idle -= 1

    async def reserve(self, path: str) -> Reservation:
        """Set aside what the next request of a stage may spend.

        One that does not fit waits for the calls that are at work: their answers are paid for, and may show that there
        is room. When all of them have ended or come to this point as well, the limit is reached.

        Raises:
            LimitReached: it does not fit.
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
        """Replace a reservation by what was really spent; `None` when the request brought no answer.

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
        """Count what was spent by agents that no reservation was made for."""
        self._requests += requests
        self._tokens += tokens
        self._usd += usd

    def overspent(self) -> str | None:
        """What went over its limit, if anything did: nobody could know before what the last answers took."""
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
        """Why a request may not be made now."""
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
