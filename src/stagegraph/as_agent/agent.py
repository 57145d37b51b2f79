"""A graph as a Pydantic AI agent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic_ai import Agent, DeferredToolRequests, TextOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import UserError

from stagegraph.nodes.graph import BaseGraph
from stagegraph.record.run import RunError
from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import DeclarationError

from .model import GraphModel, UnboundModel
from .questions import TOOL_NAMES, approval_tool, external_tools
from .shape import described, snake_case

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic_ai import RunContext
    from pydantic_ai.capabilities import WrapOutputProcessHandler
    from pydantic_ai.models import ModelRequestContext
    from pydantic_ai.output import OutputContext

    from stagegraph.record.run import Run

__all__ = ["graph_agent"]


def graph_agent(
    graph: BaseGraph[Any, Any],
    *,
    runner: Runner | None = None,
    name: str | None = None,
    asks: bool = False,
    user: Callable[[RunContext[Any]], str | None] | None = None,
    errors: bool = False,
) -> Agent[Any, Any]:
    """See `Graph.as_agent`."""

    def give(text: str) -> Any:
        return text

    if asks and (runner is None or runner.journal is None):
        msg = f"{graph.__node__.name}.as_agent(asks=True) needs recorded runs: runner=Runner(journal=SqliteJournal('runs.db'))"
        raise DeclarationError(msg)
    output = TextOutput(give)
    return Agent(
        UnboundModel(graph),
        output_type=[output, DeferredToolRequests] if asks else output,
        name=name or snake_case(graph.__node__.name),
        description=described(graph),
        retries=0,
        tools=[approval_tool()] if asks else [],
        toolsets=[external_tools()] if asks else [],
        capabilities=[RunsGraph(graph, runner, asks, user, errors)],
    )


@dataclass
class RunsGraph(AbstractCapability[Any]):
    """Answers an agent run by a run of the graph, and hands its output out as it is."""

    graph: BaseGraph[Any, Any]
    runner: Runner | None
    asks: bool
    user: Callable[[RunContext[Any]], str | None] | None
    errors: bool
    run: Run[Any, Any] | None = None

    async def for_run(self, ctx: RunContext[Any]) -> RunsGraph:
        return replace(self, run=None)

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        parameters = request_context.model_request_parameters
        if parameters.output_mode != "text":
            msg = f"{self.graph.__node__.name} gives {self.graph.__node__.output_type.name}; a run cannot have another `output_type`"
            raise UserError(msg)
        user = None if self.user is None else self.user(ctx)
        model = GraphModel(self.graph, self.runner or Runner(), ctx, self._keep, user=user, errors=self.errors)
        # Front ends bring tools of their own, which a graph has no use for.
        tools = [tool for tool in parameters.function_tools if self.asks and tool.name in TOOL_NAMES]
        parameters = replace(parameters, function_tools=tools, native_tools=[])
        return replace(request_context, model=model, model_request_parameters=parameters)

    async def wrap_output_process(
        self, ctx: RunContext[Any], *, output_context: OutputContext, output: Any, handler: WrapOutputProcessHandler
    ) -> Any:
        return await handler(output) if self.run is None or self.run.status != "succeeded" else self.run.output

    def _keep(self, run: Run[Any, Any]) -> None:
        if run.status == "suspended" and not self.asks:
            msg = (
                f"{self.graph.__node__.name} waits for {', '.join(pending.id for pending in run.pending)}: answer with "
                f"`runner.resume({run.id!r}, answers=...)`, or let the agent ask: `as_agent(asks=True)`"
            )
            raise RunError(msg, run=run)
        self.run = run
