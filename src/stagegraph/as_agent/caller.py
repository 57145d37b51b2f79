"""What a run of a graph gets from the agent run that calls it, and what it adds to that run's usage."""

from __future__ import annotations

from decimal import Decimal
from typing import TYPE_CHECKING, Any, TypeVar, cast

from pydantic_ai.models import Model
from pydantic_ai.usage import UsageLimits

from stagegraph.nodes.current import current, key_part
from stagegraph.record.run import RunError
from stagegraph.runner.calls import Open, run_called_by_agent
from stagegraph.runner.limits import Limits
from stagegraph.runner.state import Caller
from stagegraph.schema.errors import JournalError

if TYPE_CHECKING:
    from pydantic_ai import RunContext

    from stagegraph.nodes.graph import BaseGraph
    from stagegraph.runner.options import RunOptions
    from stagegraph.runner.runner import Runner

PROVIDER = "stagegraph"
"""The name of the models that stand for graphs."""
Amount = TypeVar("Amount", int, Decimal)
_DEFAULT_REQUESTS = UsageLimits().request_limit
"""Pydantic AI's limit for agents that never end; it does not apply to a graph, which may need more requests."""


def calling_run(runner: Runner | None) -> Open | None:
    """The open call of a run in which an agent calls a graph; `None` outside a run, and for another *runner*."""
    call = current.get(None)
    if not isinstance(call, Open):
        return None
    return call if runner is None or call.executor.resources.runner is runner else None


async def call_in_run(around: Open, graph: BaseGraph[Any, Any], value: Any, ctx: RunContext[Any], name: str) -> Any:
    """The output of a graph that an agent calls inside a run, as a part of that run.

    Raises:
        RunError: the graph failed.
    """
    tool_call = None if ctx.tool_call_id is None else key_part(ctx.tool_call_id)
    if tool_call is not None and not around.scope.endswith(f"[{tool_call}]"):  # the agent is not that of a stage
        around = around.branch(tool_call, 0, None)
    try:
        return await run_called_by_agent(around, graph, value, name, Caller(model_of(ctx), ctx.deps))
    except (RunError, JournalError):
        raise
    except Exception as error:
        msg = f"{graph.__node__.name} failed: {error}"
        raise RunError(msg) from error


def options(ctx: RunContext[Any], own: Limits, user: str | None = None) -> RunOptions:
    """The user, the conversation as the run's session, and what the caller may still spend."""
    found: RunOptions = {"limits": limits_left(ctx, own), "user_id": user}
    if ctx.conversation_id is not None:
        found["session_id"] = ctx.conversation_id
    if ctx.metadata:
        found["metadata"] = ctx.metadata
    around = current.get(None)
    if isinstance(around, Open):  # in a run of another runner, whose caller is this one's, too
        spec = around.executor.spec
        found["session_id"] = spec.session_id or ctx.conversation_id
        found["user_id"] = user or spec.user_id
        found["tags"] = spec.tags
        found["metadata"] = {**spec.metadata, "called_by": spec.run_id, **(ctx.metadata or {})}
    return found


def limits_left(ctx: RunContext[Any], own: Limits) -> Limits:
    """The lower ones of the runner's limits and of what is left of the caller's `UsageLimits`."""
    allowed, spent = ctx.usage_limits, ctx.usage
    if allowed is None:
        return own
    requests = allowed.request_limit if allowed.request_limit != _DEFAULT_REQUESTS else None
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
    """The model of the calling agent; `None` for a graph, and for a realtime model, which answers no requests."""
    model = cast("Model", ctx.model) if isinstance(ctx.model, Model) else None
    return None if model is None or model.system == PROVIDER else model
