"""A graph as a Pydantic AI agent."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, TypedDict

from pydantic_ai import Agent, DeferredToolRequests, TextOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import UserError
from typing_extensions import Unpack

from stagegraph.nodes.graph import BaseGraph
from stagegraph.record.run import RunError
from stagegraph.runner.runner import Runner
from stagegraph.schema.errors import DeclarationError

from .caller import calling_run
from .model import ASKING_TOOLS, CalledGraph, GraphModel, UnboundModel, approval_tool, external_tools
from .tool import described, snake_case

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic_ai import RunContext
    from pydantic_ai.capabilities import WrapOutputProcessHandler
    from pydantic_ai.models import Model, ModelRequestContext
    from pydantic_ai.output import OutputContext

    from stagegraph.record.run import Run


class AgentOptions(TypedDict, total=False):
    """How a graph appears as an agent: the options of `Graph.as_agent`."""

    name: str
    """The agent's name; by default the class name in snake case."""
    user: Callable[[RunContext[Any]], str | None]
    """Returns the id of the user from the agent run's deps or metadata. It is recorded with each run, and only this
    user can answer what the run asks."""
    errors: bool
    """Whether the error of a streamed run contains the full text, which front ends show to people. By default the error
    says where the run failed, and the original is its `__cause__`."""


def graph_agent(
    graph: BaseGraph[Any, Any],
    *,
    runner: Runner | None = None,
    asks: bool = False,
    **options: Unpack[AgentOptions],
) -> Agent[Any, Any]:
    """See `Graph.as_agent`."""

    def unchanged(text: str) -> Any:
        return text

    own = graph.__node__.name
    if asks and (runner is None or runner.journal is None):
        msg = f"{own}.as_agent(asks=True) needs recorded runs: runner=Runner(journal=SqliteJournal())"
        raise DeclarationError(msg)
    output = TextOutput(unchanged)
    return Agent(
        UnboundModel(graph),
        output_type=[output, DeferredToolRequests] if asks else output,
        name=options.get("name") or snake_case(own),
        description=described(graph),
        retries=0,
        tools=[approval_tool()] if asks else [],
        toolsets=[external_tools()] if asks else [],
        capabilities=[RunsGraph(graph, runner, asks, options)],
    )


@dataclass
class RunsGraph(AbstractCapability[Any]):
    """Answers an agent run by a run of the graph, and makes its typed output the output of the agent run."""

    graph: BaseGraph[Any, Any]
    runner: Runner | None
    asks: bool
    options: AgentOptions
    outputs: tuple[Any, ...] = ()
    """The typed output, when there is one."""

    async def for_run(self, ctx: RunContext[Any]) -> RunsGraph:
        return replace(self, outputs=())

    async def before_model_request(
        self, ctx: RunContext[Any], request_context: ModelRequestContext
    ) -> ModelRequestContext:
        parameters = request_context.model_request_parameters
        if parameters.output_mode != "text":
            own = self.graph.__node__
            msg = f"{own.name} gives {own.output_type.name}; a run cannot have another `output_type`"
            raise UserError(msg)
        user_of = self.options.get("user")
        user = None if user_of is None else user_of(ctx)
        around = calling_run(self.runner)
        if around is not None:
            model: Model = CalledGraph(self.graph, around, ctx, self._answered)
        else:
            errors = self.options.get("errors", False) or not request_context.streaming
            model = GraphModel(self.graph, self.runner or Runner(), ctx, self._keep, user, errors)
        # A graph cannot use the tools that front ends add.
        tools = [tool for tool in parameters.function_tools if self.asks and tool.name in ASKING_TOOLS]
        parameters = replace(parameters, function_tools=tools, native_tools=[])
        return replace(request_context, model=model, model_request_parameters=parameters)

    async def wrap_output_process(
        self, ctx: RunContext[Any], *, output_context: OutputContext, output: Any, handler: WrapOutputProcessHandler
    ) -> Any:
        return self.outputs[0] if self.outputs else await handler(output)

    def _answered(self, output: Any) -> None:
        self.outputs = (output,)

    def _keep(self, run: Run[Any, Any]) -> None:
        if run.status == "suspended" and not self.asks:
            msg = (
                f"{self.graph.__node__.name} waits for {', '.join(pending.id for pending in run.pending)}: answer with "
                f"`runner.resume({run.id!r}, answers=...)`, or let the agent ask: `as_agent(asks=True)`"
            )
            raise RunError(msg, run=run)
        if run.status == "succeeded":
            self._answered(run.output)
