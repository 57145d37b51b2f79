"""A graph as a tool of a Pydantic AI agent: its name, its description, its arguments, and a call of it."""

from __future__ import annotations

import inspect
import re
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_ai import CallDeferred, ModelRetry, RunContext, Tool, ToolReturn

from stagegraph.nodes.graph import BaseGraph
from stagegraph.record.run import RunError
from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import problems_of

from .caller import call_in_run, calling_run, model_of, options

if TYPE_CHECKING:
    from stagegraph.record.run import Run
    from stagegraph.schema.schema import Schema

_INPUT = "input"
"""The one argument of a graph whose input has no fields."""


def graph_tool(
    graph: BaseGraph[Any, Any], *, name: str | None = None, description: str | None = None, runner: Runner | None = None
) -> Tool[Any]:
    """See `Graph.as_tool`."""
    input_type = graph.__node__.input_type
    fields = object_schema(input_type)
    called = name or snake_case(graph.__node__.name)

    async def call(ctx: RunContext[Any], /, **arguments: Any) -> ToolReturn:
        try:
            value = input_type.load(arguments if fields is not None else arguments.get(_INPUT))
        except ValidationError as error:
            msg = f"the arguments do not fit: {problems_of(error)}"
            raise ModelRetry(msg) from error
        around = calling_run(runner)
        if around is not None:
            output = await call_in_run(around, graph, value, ctx, called)
            return ToolReturn(return_value=output, metadata={"run_id": around.info.run_id})
        run = await _run(graph, value, ctx, runner or Runner())
        return ToolReturn(return_value=run.output, metadata={"run_id": run.id})

    vars(call)["graph"] = graph  # the nodes of the graph belong to the stages whose agents have this tool
    return Tool[Any].from_schema(
        call,
        called,
        description if description is not None else described(graph),
        fields if fields is not None else _one_argument(input_type.adapter.json_schema()),
        takes_ctx=True,
    )


async def _run(graph: BaseGraph[Any, Any], value: Any, ctx: RunContext[Any], runner: Runner) -> Run[Any, Any]:
    model = model_of(ctx) if runner.model is None else None
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


def snake_case(name: str) -> str:
    """`SpecToReview` as the name of a tool or agent: `spec_to_review`."""
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])|[^A-Za-z0-9]+", "_", name)
    return words.strip("_").lower()[:64]


def described(graph: BaseGraph[Any, Any]) -> str:
    """The docstring of the graph's class; by default the types of its input and output."""
    own = graph.__node__
    doc = type(graph).__doc__
    return inspect.cleandoc(doc) if doc else f"{own.name}: gives {own.output_type.name} for {own.input_type.name}."


def object_schema(schema: Schema) -> dict[str, Any] | None:
    """The JSON schema of a type with named fields; `None` for any other type."""
    found: dict[str, Any] = schema.adapter.json_schema()
    reference = found.get("$ref")
    if isinstance(reference, str):  # a type that contains itself
        definitions = found["$defs"]
        found = {**definitions[reference.removeprefix("#/$defs/")], "$defs": definitions}
    return found if found.get("type") == "object" and "properties" in found else None


def _one_argument(schema: dict[str, Any]) -> dict[str, Any]:
    """A type without fields as the one argument `input`; its definitions move to the root, where references point."""
    inner = dict(schema)
    definitions = inner.pop("$defs", None)
    found: dict[str, Any] = {
        "type": "object",
        "properties": {_INPUT: inner},
        "required": [_INPUT],
        "additionalProperties": False,
    }
    return found if definitions is None else {**found, "$defs": definitions}
