"""One call of a stage as its agent sees it: its slots, its part of the run's limits, and its events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager, suppress
from copy import copy
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import anyio
from pydantic_ai.usage import RunUsage

if TYPE_CHECKING:
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.messages import ModelResponse, UserContent
    from pydantic_ai.models import Model
    from pydantic_ai.usage import RequestUsage

    from stagegraph.data.events import CallRetried, TextDelta, ToolCalled
    from stagegraph.data.prompt import Prompt

    from .event_log import EventLog
    from .limits import Ledger, Slots
    from .options import RunSpec
    from .recorder import Recorder
    from .state import CallState

_PATIENCE = 0.25
"""Seconds after which an agent that wants no slot no longer counts as starting: its functions may wait for another run,
whose agents must be able to start."""


class StageCall:
    """One call of a stage (`agent.call.AgentCall`); it limits and counts the model requests of its agent."""

    def __init__(
        self,
        call: CallState,
        spec: RunSpec,
        *,
        model: Model[Any] | None,
        prompt: Prompt | None,
        observing: Sequence[AbstractCapability[Any]],
        log: EventLog | None,
        recorder: Recorder | None,
        ledger: Ledger | None,
        slots: Slots | None,
    ) -> None:
        self.key = call.key
        self.path = call.path
        self.input = call.input
        self.use = call.use
        self.deps = call.deps(spec.deps)
        self.model = model
        self.prompt = prompt
        self.content: str | list[UserContent] | None = None
        self.answers: Mapping[str, object] = spec.answers.get(call.key, {})
        self.observing = observing
        self.streams = spec.deltas and log is not None
        self.restore: Callable[[str], object] = lambda _: None
        """Brings back the calls that a tool call had made, by its label, when the tool's result is recalled."""
        self._log = log
        self._recorder = recorder
        self._ledger = ledger
        self._slots = slots
        self._starting: asyncio.TimerHandle | None = None
        """Set while the agent counts as starting."""
        self._usage = RunUsage()
        """Of the current attempt, with the usage of agents inside its tools."""
        self._counted = RunUsage()
        """The part of it that the ledger has counted, or that was recalled."""

    def emit(self, event_type: type[CallRetried | TextDelta | ToolCalled], /, **fields: object) -> None:
        if (log := self._log) is not None:
            log.put(event_type, at=None, before=-1, key=self.key, path=self.path, **fields)

    def tool_recalled(self, label: str) -> None:
        self.restore(label)

    @asynccontextmanager
    async def attempt(self, usage: RunUsage, *, asks: bool) -> AsyncGenerator[None]:
        self._usage, self._counted = usage, RunUsage()
        if self._slots is not None and asks:
            await self._slots.starting.acquire()
            self._starting = asyncio.get_running_loop().call_later(_PATIENCE, self._started)
        try:
            yield
        finally:
            self._started()
            if self._ledger is not None:
                self._charge(self._ledger)

    def _started(self) -> None:
        starting, self._starting = self._starting, None
        if starting is not None and self._slots is not None:
            starting.cancel()
            self._slots.starting.release()

    async def request(
        self, ask: Callable[[], Awaitable[ModelResponse]], waiting: Callable[[], AbstractContextManager[None]]
    ) -> ModelResponse:
        ledger = self._ledger
        if ledger is None:
            return await self._in_slot(ask, waiting)
        self._charge(ledger)

        @contextmanager
        def held_back() -> Generator[None]:
            self._started()  # a run that waits for its own limit must not hold back other runs
            with waiting(), ledger.waits(self.key):
                yield

        await ledger.reserve(self.path, held_back)
        spent: RequestUsage | None = None
        try:
            if self._recorder is not None:
                with waiting():
                    await self._recorder.note_spent()
            response = await self._in_slot(ask, waiting)
            spent = _priced(response)
            self._count(spent)
        finally:
            ledger.settle(self.path, spent)
        return response

    async def _in_slot(
        self, ask: Callable[[], Awaitable[ModelResponse]], waiting: Callable[[], AbstractContextManager[None]]
    ) -> ModelResponse:
        slots = self._slots
        if slots is None:
            return await ask()
        if self._starting is not None:
            self._starting.cancel()
        with waiting():
            await slots.in_flight.acquire()
        try:
            self._started()
            return await ask()
        finally:
            slots.in_flight.release()

    def request_recalled(self, usage: RequestUsage) -> None:
        self._count(usage)

    async def sleep(self, seconds: float) -> None:
        if self._ledger is None:
            await anyio.sleep(seconds)
            return
        with self._ledger.waits(self.key):
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
