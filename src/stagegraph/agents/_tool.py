"""A graph as a tool of a Pydantic AI agent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_ai import CallDeferred, ModelRetry, RunContext, Tool, ToolReturn

from stagegraph.errors import RunError
from stagegraph.failure import problems_of
from stagegraph.runner import Runner

from ._shape import INPUT, described, object_schema, snake_case
from ._terms import model_of, options

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.graph import Graph
    from stagegraph.run import Run

__all__ = ["graph_tool"]


def graph_tool(
    graph: Graph[Any, Any], *, name: str | None = None, description: str | None = None, runner: Runner | None = None
) -> Tool[Any]:
    """See `Graph.as_tool`."""
    fields = object_schema(graph.takes)

    async def call(ctx: RunContext[Any], /, **arguments: Any) -> ToolReturn:
        try:
            value = graph.takes.load(arguments if fields is not None else arguments.get(INPUT))
        except ValidationError as error:
            msg = f"the arguments do not fit: {problems_of(error)}"
            raise ModelRetry(msg) from error
        run = await _run(graph, value, ctx, runner or Runner())
        return ToolReturn(return_value=run.output, metadata={"run_id": run.id})

    return Tool[Any].from_schema(
        call,
        name or snake_case(graph.label),
        description if description is not None else described(graph),
        fields if fields is not None else _one_argument(graph.takes.adapter.json_schema()),
        takes_ctx=True,
    )


async def _run(graph: Graph[Any, Any], value: Any, ctx: RunContext[Any], runner: Runner) -> Run[Any, Any]:
    model: Model | None = model_of(ctx) if runner.model is None else None
    try:
        run = await runner.run(graph, value, model=model, deps=ctx.deps, **options(ctx, runner.limits))
    except RunError as error:
        if error.attached:
            ctx.usage.incr(error.run.usage)
        raise
    ctx.usage.incr(run.usage)
    if run.status == "suspended":
        raise CallDeferred({"run_id": run.id, "pending": [pending.id for pending in run.pending]})
    return run


def _one_argument(schema: dict[str, Any]) -> dict[str, Any]:
    """A type without fields as the one argument `input`; its definitions move to where references look for them."""
    inner = json.loads(json.dumps(schema))
    definitions = inner.pop("$defs", None)
    found: dict[str, Any] = {
        "type": "object",
        "properties": {INPUT: inner},
        "required": [INPUT],
        "additionalProperties": False,
    }
    return found if definitions is None else {**found, "$defs": definitions}
