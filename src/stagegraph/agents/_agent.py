"""A graph as a Pydantic AI agent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from pydantic_ai import Agent, TextOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import UserError

from stagegraph.runner import Runner

from ._model import GraphModel, UnboundModel
from ._shape import described, snake_case

if TYPE_CHECKING:
    from pydantic_ai import RunContext
    from pydantic_ai.capabilities import WrapOutputProcessHandler
    from pydantic_ai.models import ModelRequestContext
    from pydantic_ai.output import OutputContext

    from stagegraph.graph import Graph
    from stagegraph.run import Run

__all__ = ["graph_agent"]


def graph_agent(graph: Graph[Any, Any], *, runner: Runner | None = None, name: str | None = None) -> Agent[Any, Any]:
    """See `Graph.as_agent`."""

    def give(text: str) -> Any:
        return text

    return Agent(
        UnboundModel(graph),
        output_type=TextOutput(give),
        name=name or snake_case(graph.label),
        description=described(graph),
        retries=0,
        capabilities=[RunsGraph(graph, runner)],
    )


@dataclass
class RunsGraph(AbstractCapability[Any]):
    """Answers an agent run by a run of the graph, and hands its output out as it is."""

    graph: Graph[Any, Any]
    runner: Runner | None
    run: Run[Any, Any] | None = None

    async def for_run(self, ctx: RunContext[Any]) -> RunsGraph:
        return replace(self, run=None)

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        if request_context.model_request_parameters.output_mode != "text":
            msg = f"{self.graph.label} gives {self.graph.gives.name}; a run cannot have another `output_type`"
            raise UserError(msg)
        model = GraphModel(self.graph, self.runner or Runner(), ctx, self._keep)
        return replace(request_context, model=model)

    async def wrap_output_process(
        self, ctx: RunContext[Any], *, output_context: OutputContext, output: Any, handler: WrapOutputProcessHandler
    ) -> Any:
        return await handler(output) if self.run is None else self.run.output

    def _keep(self, run: Run[Any, Any]) -> None:
        self.run = run
