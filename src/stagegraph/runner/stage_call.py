"""One call of a stage as its agent sees it: its slots, its part of the run's limits, and its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable, Generator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from copy import copy
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio
from pydantic_ai.usage import RunUsage

from stagegraph.agent.call import AgentCall

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.usage import RequestUsage

    from stagegraph.data.events import CallRetried, TextDelta, ToolCalled

    from .limits import Ledger, Slots
    from .recorder import Recorder

_PATIENCE = 0.1
"""Seconds after which an agent that wants no slot no longer counts as starting: its functions may wait for another run,
whose agents must be able to start."""


@dataclass(kw_only=True, eq=False)
class StageCall(AgentCall):
    """One call of a stage; it limits and counts the model requests of its agent."""

    announce: Callable[..., None]
    """Appends an event, if anything follows the run."""
    recorder: Recorder | None
    ledger: Ledger | None
    slots: Slots | None
    _starting: asyncio.TimerHandle | None = None
    """Set while the agent counts as starting."""
    _usage: RunUsage = field(default_factory=RunUsage)
    """Of the current attempt, with the usage of agents inside its tools."""
    _counted: RunUsage = field(default_factory=RunUsage)
    """The part of it that the ledger has counted, or that was recalled."""

    def emit(self, event_type: type[CallRetried | TextDelta | ToolCalled], /, **fields: object) -> None:
        self.announce(event_type, key=self.key, path=self.path, **fields)

    @asynccontextmanager
    async def attempt(self, usage: RunUsage) -> AsyncGenerator[None]:
        self._usage, self._counted = usage, RunUsage()
        if self.slots is not None:
            await self.slots.starting.acquire()
            self._starting = asyncio.get_running_loop().call_later(_PATIENCE, self._started)
        try:
            yield
        finally:
            self._started()
            if self.ledger is not None:
                self._charge(self.ledger)

    def _started(self) -> None:
        starting, self._starting = self._starting, None
        if starting is not None and self.slots is not None:
            starting.cancel()
            self.slots.starting.release()

    @asynccontextmanager
    async def request(
        self, waiting: Callable[[], AbstractContextManager[None]], answers: list[ModelResponse]
    ) -> AsyncGenerator[None]:
        ledger = self.ledger
        if ledger is None:
            async with self._slot(waiting):
                yield
            return
        self._charge(ledger)

        @contextmanager
        def held_back() -> Generator[None]:
            self._started()  # a run that waits for its own limit must not hold back other runs
            with waiting(), ledger.waits(self.key):
                yield

        await ledger.reserve(self.path, held_back)
        spent: RequestUsage | None = None
        try:
            if self.recorder is not None:
                with waiting():
                    await self.recorder.note_spent()
            async with self._slot(waiting):
                yield
            for response in answers:
                spent = _priced(response)
                self._count(spent)
        finally:
            ledger.settle(self.path, spent)

    @asynccontextmanager
    async def _slot(self, waiting: Callable[[], AbstractContextManager[None]]) -> AsyncGenerator[None]:
        slots = self.slots
        if slots is None:
            yield
            return
        if self._starting is not None:
            self._starting.cancel()
        with waiting():
            await slots.in_flight.acquire()
        try:
            self._started()
            yield
        finally:
            slots.in_flight.release()

    def request_recalled(self, usage: RequestUsage) -> None:
        self._count(usage)

    async def sleep(self, seconds: float) -> None:
        if self.ledger is None:
            await anyio.sleep(seconds)
            return
        with self.ledger.waits(self.key):
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


def _priced(response: ModelResponse) -> RequestUsage:
    """The usage of an answer, with the price that Pydantic AI would give it later."""
    usage = response.usage
    if usage.cost is None and response.model_name:
        with suppress(LookupError, ValueError):  # of an unknown model, or of usage that the provider left out
            usage.cost = response.cost().total_price
    return usage
