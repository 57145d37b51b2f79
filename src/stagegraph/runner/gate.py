"""What every model request of a stage call passes: the run's limits, and the runner's slots."""

from __future__ import annotations

from copy import copy
from decimal import Decimal
from typing import TYPE_CHECKING

import anyio
from pydantic_ai.usage import RunUsage

from stagegraph.agent.inject import RequestGate
from stagegraph.data.events import ToolCalled

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.usage import RequestUsage

    from .execution import Execution
    from .limits import Ledger
    from .state import Entry

__all__ = ["Gate"]


class Gate(RequestGate):
    """Counts and holds back the model requests of one stage call."""

    def __init__(self, execution: Execution, entry: Entry) -> None:
        self.execution = execution
        self.entry = entry
        self._usage = RunUsage()
        """Of the attempt that is going on; what its tools spend through other agents is in it."""
        self._counted = RunUsage()
        """The part of it that the ledger knows, or need not know."""

    def began(self, usage: RunUsage) -> None:
        self._usage, self._counted = usage, RunUsage()

    async def request(self, ask: Callable[[], Awaitable[ModelResponse]]) -> ModelResponse:
        ledger = self.execution.terms.ledger
        if ledger is None:
            return await self._in_slot(ask)
        self._charge(ledger)
        # Before the slot: a run that waits for its own limit may not hold back the others.
        with self.waiting():
            reservation = await ledger.reserve(self.entry.path)
        spent: RequestUsage | None = None
        try:
            response = await self._in_slot(ask)
            spent = response.usage
            self.recalled(spent)
        finally:
            ledger.settle(reservation, spent)
        return response

    def recalled(self, usage: RequestUsage) -> None:
        self._counted.incr(usage)
        self._counted.requests += 1

    def ended(self) -> None:
        if (ledger := self.execution.terms.ledger) is not None:
            self._charge(ledger)

    def _charge(self, ledger: Ledger) -> None:
        """Count what the tools have spent through other agents since the last time."""
        usage, known = self._usage, self._counted
        ledger.charge(
            max(0, usage.requests - known.requests),
            max(0, usage.total_tokens - known.total_tokens),
            max(Decimal(0), (usage.cost or Decimal(0)) - (known.cost or Decimal(0))),
        )
        self._counted = copy(usage)

    async def _in_slot(self, ask: Callable[[], Awaitable[ModelResponse]]) -> ModelResponse:
        slots = self.execution.terms.slots
        if slots is None:
            response = await ask()
        else:
            with self.waiting():
                await slots.acquire()
            try:
                response = await ask()
            finally:
                slots.release()
        self.entry.use.unpriced |= response.usage.cost is None
        return response

    async def rest(self, seconds: float) -> None:
        if (ledger := self.execution.terms.ledger) is None:
            await anyio.sleep(seconds)
            return
        with ledger.idle():
            await anyio.sleep(seconds)

    def tool_called(self, tool: str) -> None:
        if (log := self.execution.log) is not None:
            log.put(ToolCalled, key=self.entry.key, path=self.entry.path, tool=tool)
