"""The public `Graph`: a declared graph with methods to run it, draw it and offer it to agents."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Generic, Literal, overload

from typing_extensions import TypeVar, Unpack

from .nodes.graph import BaseGraph
from .schema.errors import NotRunningError
from .schema.tracebacks import UserFrames

if TYPE_CHECKING:
    from pydantic_ai import Agent, DeferredToolRequests, Tool
    from pydantic_ai.models import Model

    from .as_agent import AgentOptions
    from .data.prompts import Prompts, PromptSource
    from .record.run import Run
    from .runner.options import RunOptions
    from .runner.runner import Runner

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class Graph(BaseGraph[In_contra, Out_co], Generic[In_contra, Out_co]):
    """A pipeline of agents: nodes as attributes, and `flow`, which calls them in plain Python.

    A node is an attribute of the class, or set in `__init__` (also inside lists, tuples and dicts); its name is its
    path. Graphs may contain graphs, a subclass may redeclare a node, and one graph object serves many runs at once.

    ```python
    class Support(Graph[Ticket, Reply]):
        triage = Stage(Ticket, Agent(output_type=Team, instructions="Which team?"))
        answer = Stage(Case, Agent(output_type=Reply, instructions="Answer kindly."))

        async def flow(self, ticket: Ticket) -> Reply:
            return await self.answer(Case(ticket=ticket, team=await self.triage(ticket)))
    ```
    """

    async def run(
        self,
        input: In_contra | Mapping[str, object],  # noqa: A002 - the name users write
        *,
        model: Model | str | None = None,
        deps: object = None,
        prompts: Prompts | PromptSource | None = None,
        **options: Unpack[RunOptions],
    ) -> Run[In_contra, Out_co]:
        """Run the graph once, on a runner of its own; `Runner.run` describes the options.

        Raises:
            RunError: the run ended without an output; `error.run` is its partial record.
        """
        from .runner.runner import Runner  # noqa: PLC0415 - the one door from declaring to executing

        with UserFrames():
            return await Runner().run(self, input, model=model, deps=deps, prompts=prompts, **options)

    def run_sync(
        self,
        input: In_contra | Mapping[str, object],  # noqa: A002
        *,
        model: Model | str | None = None,
        deps: object = None,
        prompts: Prompts | PromptSource | None = None,
        **options: Unpack[RunOptions],
    ) -> Run[In_contra, Out_co]:
        """The same for scripts and notebooks without a running event loop.

        Raises:
            NotRunningError: an event loop runs in this thread, which a blocking call would freeze.
        """
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            pass
        else:
            msg = (
                f"{self.__node__.name}.run_sync() was called where an event loop is running, which it would block: "
                f"write `await {self.__node__.name}().run(...)` instead"
            )
            raise NotRunningError(msg)
        with UserFrames():
            return asyncio.run(self.run(input, model=model, deps=deps, prompts=prompts, **options))

    def as_tool(
        self, *, name: str | None = None, description: str | None = None, runner: Runner | None = None
    ) -> Tool[Any]:
        """The graph as a tool of any Pydantic AI agent: `Agent(..., tools=[Support().as_tool()])`.

        The fields of the input type are the tool's arguments; a type without fields is the one argument `input`.
        Invalid arguments are returned to the model, and a failure raises a `RunError`.

        Called in a run, the graph is a part of that run: its calls are below the calling stage, with the tool call in
        their key, and the run's limits, prompts and models apply. They get the calling agent's deps, and its model
        where nothing else gives one.

        Called outside a run, or given another *runner*, the graph has a run of its own. It receives the calling agent's
        deps, the rest of its usage limits, and its model when *runner* has none. The usage of the run is added to that
        of the agent. A run that waits for answers defers the call (`CallDeferred`, with the run's id in the metadata).

        Args:
            name: The tool's name; by default the class name in snake case.
            description: The tool's description for the model; by default the docstring of the class.
            runner: Runs the graph; by default that of the calling run, or else a new one for each call.
        """
        from .as_agent import graph_tool  # noqa: PLC0415 - loaded when it is used

        return graph_tool(self, name=name, description=description, runner=runner)

    @overload
    def as_agent(
        self, *, runner: Runner | None = None, asks: Literal[False] = False, **options: Unpack[AgentOptions]
    ) -> Agent[Any, Out_co]: ...
    @overload
    def as_agent(
        self, *, runner: Runner, asks: Literal[True], **options: Unpack[AgentOptions]
    ) -> Agent[Any, Out_co | DeferredToolRequests]: ...
    def as_agent(
        self, *, runner: Runner | None = None, asks: bool = False, **options: Unpack[AgentOptions]
    ) -> Agent[Any, Out_co] | Agent[Any, Out_co | DeferredToolRequests]:
        """The graph as a Pydantic AI agent, for its AG-UI, Vercel AI, A2A, CLI and web front ends.

        The newest user prompt is the input: unchanged for `str`; otherwise it is parsed as JSON, or put into the only
        required field if that is a text. Earlier messages stay in the result's messages but do not reach the graph,
        unless its input type has a field `list[ModelMessage]`. Every stage and step call appears as a tool call while
        it runs, without its input and output. The output is the answer's text (JSON where it is not a `str`) and,
        typed, `result.output`. A model given to the agent's run is used for stages without a model of their own;
        instructions, tools and model settings given to it are ignored.

        Args:
            runner: Runs the graph; by default that of the run in which the agent is called (the graph is then a part
                of that run, as with `as_tool`), or else a new one for each agent run.
            asks: A run that needs an approval or an external result returns `DeferredToolRequests`, which front ends
                show to a person, and continues with the answers; the runner needs a journal.
            options: See `AgentOptions`.
        """
        from .as_agent import graph_agent  # noqa: PLC0415 - loaded when it is used

        return graph_agent(self, runner=runner, asks=asks, **options)

    def mermaid(self) -> str:
        """The declared nodes as a Mermaid flowchart; dotted arrows are guesses, which connect types that fit together.

        `Run.mermaid` follows the data of a run.
        """
        from .record.mermaid import declared_chart  # noqa: PLC0415 - loaded when it is used

        return declared_chart(self)
