"""The usage of calls: tokens, requests and dollars, of one stage call and of many together."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING

from pydantic import TypeAdapter
from pydantic_ai.usage import RunUsage

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage

    from .call import Call, Pending

USAGE: TypeAdapter[RunUsage] = TypeAdapter(RunUsage)
"""Writes usage as JSON and reads it back."""


@dataclass(slots=True, eq=False)
class ModelUse:
    """The usage and the messages of a stage call; other calls have none."""

    usage: RunUsage = field(default_factory=RunUsage)
    unpriced: bool = False
    """Whether the price of a request is unknown."""
    attempts: int = 1
    messages: tuple[ModelMessage, ...] = ()
    pending: tuple[Pending, ...] = ()
    """The deferred tool calls of a suspended agent."""

    @property
    def cost(self) -> Decimal | None:
        return None if self.unpriced else self.usage.cost or Decimal(0)


NO_MODEL = ModelUse()
"""That of all calls without a model."""


def summed(uses: Iterable[Call | ModelUse]) -> tuple[RunUsage, Decimal | None]:
    """The total usage and cost of calls; the cost is `None` if that of one call is unknown."""
    usage, cost = RunUsage(), Decimal(0)
    known = True
    for use in uses:
        if use.usage is not NO_MODEL.usage:
            usage.incr(use.usage)
        known = known and use.cost is not None
        cost += use.cost or 0
    usage.cost = cost if known else None
    return usage, usage.cost
