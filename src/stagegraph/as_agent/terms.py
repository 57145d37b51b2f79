"""What a run of a graph gets from the agent run around it, and gives back to it."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic_ai.usage import UsageLimits

from stagegraph.runner.limits import Limits

if TYPE_CHECKING:
    from pydantic_ai import RunContext
    from pydantic_ai.models import Model

    from stagegraph.runner.options import RunOptions

__all__ = ["limits_left", "model_of", "options"]

Amount = TypeVar("Amount", int, Decimal)
_UNSAID = UsageLimits().request_limit
"""Pydantic AI's guard against agents that never end; a graph may well need more requests."""


def options(ctx: RunContext[Any], own: Limits, user: str | None = None) -> RunOptions:
    """Who asks, the conversation as the run's session, and what the caller may still spend."""
    found: RunOptions = {"limits": limits_left(ctx, own), "user_id": user}
    if ctx.conversation_id is not None:
        found["session_id"] = ctx.conversation_id
    if ctx.metadata:
        found["metadata"] = ctx.metadata
    return found


def limits_left(ctx: RunContext[Any], own: Limits) -> Limits:
    """The runner's limits, and what is left of the caller's `UsageLimits`; the lower ones hold."""
    allowed, spent = ctx.usage_limits, ctx.usage
    if allowed is None:
        return own
    requests = allowed.request_limit if allowed.request_limit != _UNSAID else None
    usd = None if own.usd is None else Decimal(str(own.usd))
    return Limits(
        requests=_lower(own.requests, requests, spent.requests),
        tokens=_lower(own.tokens, allowed.total_tokens_limit, spent.total_tokens),
        usd=_lower(usd, allowed.cost_limit, spent.cost or Decimal(0)),
        seconds=own.seconds,
    )


def _lower(own: Amount | None, allowed: Amount | None, spent: Amount) -> Amount | None:
    if allowed is None:
        return own
    left = max(allowed - spent, type(spent)(0))
    return left if own is None else min(own, left)


def model_of(ctx: RunContext[Any]) -> Model | None:
    """The model of the calling agent, if it is one that answers requests (a realtime model does not)."""
    from pydantic_ai.models import Model  # noqa: PLC0415 - a type to most of this module

    return cast("Model", ctx.model) if isinstance(ctx.model, Model) else None
