"""A graph as a tool of a Pydantic AI agent."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_ai import CallDeferred, ModelRetry, RunContext, Tool, ToolReturn

from stagegraph.nodes.graph import BaseGraph
from stagegraph.record.run import RunError
from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import problems_of

from .shape import INPUT, described, object_schema, snake_case
from .terms import model_of, options

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.record.run import Run

__all__ = ["graph_tool"]


def graph_tool(
    graph: BaseGraph[Any, Any], *, name: str | None = None, description: str | None = None, runner: Runner | None = None
) -> Tool[Any]:
    """See `Graph.as_tool`."""
    fields = object_schema(graph.__node__.input_type)

    async def call(ctx: RunContext[Any], /, **arguments: Any) -> ToolReturn:
        try:
            value = graph.__node__.input_type.load(arguments if fields is not None else arguments.get(INPUT))
        except ValidationError as error:
            msg = f"the arguments do not fit: {problems_of(error)}"
            raise ModelRetry(msg) from error
        run = await _run(graph, value, ctx, runner or Runner())
        return ToolReturn(return_value=run.output, metadata={"run_id": run.id})

    return Tool[Any].from_schema(
        call,
        name or snake_case(graph.__node__.name),
        description if description is not None else described(graph),
        fields if fields is not None else _one_argument(graph.__node__.input_type.adapter.json_schema()),
        takes_ctx=True,
    )


async def _run(graph: BaseGraph[Any, Any], value: Any, ctx: RunContext[Any], runner: Runner) -> Run[Any, Any]:
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
