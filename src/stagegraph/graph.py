"""A class that declares nodes and says in `async def flow` how data moves through them."""

from __future__ import annotations

import asyncio
import inspect
from abc import abstractmethod
from collections.abc import Mapping
from functools import cached_property
from typing import (
    TYPE_CHECKING,
    Any,
    ClassVar,
    Generic,
    Literal,
    cast,
    overload,
)

from typing_extensions import Format, Unpack, get_annotations
from typing_extensions import TypeVar as TypeVarWithDefault

from .errors import DeclarationError, NotRunningError
from .graph_types import schemas_of
from .node import Node
from .schema import Schema

if TYPE_CHECKING:
    from pydantic_ai import Agent, DeferredToolRequests, Tool
    from pydantic_ai.models import Model

    from .call import Kind
    from .options import AgentOptions, RunOptions
    from .prompts import Prompts, PromptSource
    from .run import Run
    from .runner import Runner

__all__ = ["Graph"]

In_contra = TypeVarWithDefault("In_contra", contravariant=True)
Out_co = TypeVarWithDefault("Out_co", covariant=True)


class Graph(Node[In_contra, Out_co], Generic[In_contra, Out_co]):
    """A pipeline of agents: nodes as attributes, and `flow`, which says in plain Python what runs next.

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

    kind: ClassVar[Kind] = "graph"

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        for name, value in vars(cls).items():
            if isinstance(value, Node):
                reject_reserved(cls, name)
            elif isinstance(value, type) and issubclass(value, Node):
                _reject_class(cls, name, cast("type[Any]", value))
        flow = vars(cls).get("flow")
        if flow is not None and not inspect.iscoroutinefunction(flow):
            msg = f"{cls.__name__}.flow must be `async def flow(self, value) -> output`, with no `yield` in it"
            raise DeclarationError(msg)

    @abstractmethod
    async def flow(self, value: In_contra, /) -> Out_co:
        """How data moves: ordinary Python that awaits the graph's own nodes."""
        raise NotImplementedError

    @cached_property
    def takes(self) -> Schema:
        return schemas_of(type(self), Graph)[0]

    @cached_property
    def gives(self) -> Schema:
        return schemas_of(type(self), Graph)[1]

    @property
    def label(self) -> str:
        return type(self).__name__

    async def run(
        self,
        input: In_contra | Mapping[str, object],  # noqa: A002 - the name users write
        *,
        model: Model | str | None = None,
        deps: object = None,
        prompts: Prompts | PromptSource | None = None,
        **options: Unpack[RunOptions],
    ) -> Run[In_contra, Out_co]:
        """Run the graph once, by a runner of its own; `Runner.run` says what the options are.

        Raises:
            RunError: the run ended without an output; `error.run` is its partial record.
        """
        from .runner import Runner  # noqa: PLC0415 - the one door from declaring to executing

        async with Runner() as runner:
            return await runner.run(self, input, model=model, deps=deps, prompts=prompts, **options)

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
                f"{self.label}.run_sync() was called where an event loop is running, which it would block: "
                f"write `await {self.label}().run(...)` instead"
            )
            raise NotRunningError(msg)
        return asyncio.run(self.run(input, model=model, deps=deps, prompts=prompts, **options))

    def as_tool(
        self, *, name: str | None = None, description: str | None = None, runner: Runner | None = None
    ) -> Tool[Any]:
        """The graph as a tool of any Pydantic AI agent: `Agent(..., tools=[Support().as_tool()])`.

        The fields of the input type are the tool's arguments; a type without fields is the one argument `input`. The
        run gets the calling agent's deps, what is left of its usage limits, and its model when *runner* has none; what
        it used is added to the agent's usage. Arguments that do not fit go back to the model; a failed run raises its
        `RunError`; one that waits for answers defers the call (`CallDeferred`, with the run's id in the metadata).

        Args:
            name: Of the tool; else the class name in snake case.
            description: For the model; else the docstring of the class.
            runner: Runs the graph; else each call has a fresh one.
        """
        from .agents import graph_tool  # noqa: PLC0415 - an edge, loaded when it is asked for

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

        The newest user prompt is the input: as it is for `str`; else read as JSON, or put into the only required field
        if that is a text. What was said before is kept in the result's messages but not shown to the graph, unless its
        input type has a field `list[ModelMessage]`. Every stage and step call is shown as a tool call while it runs,
        without what goes in and out; the output is the answer's text (JSON where it is no `str`) and, typed,
        `result.output`. A model given to the agent's run serves the stages that have none; instructions, tools and
        model settings given to it are not used.

        Args:
            runner: Runs the graph; else each agent run has a fresh one.
            asks: A run that needs an approval or an external result gives `DeferredToolRequests`, which front ends put
                to a person, and goes on when they are answered; the runner needs a journal.
            options: See `AgentOptions`.
        """
        from .agents import graph_agent  # noqa: PLC0415

        return graph_agent(self, runner=runner, asks=asks, **options)

    def mermaid(self) -> str:
        """What is declared, as a Mermaid flowchart; dotted arrows show which types fit together."""
        from .mermaid import declared_chart  # noqa: PLC0415 - drawing reads structures, which read graphs

        return declared_chart(self)

    def __repr__(self) -> str:
        return f"<graph {self.label}>"


_RESERVED = frozenset(name for base in (Graph, Node) for name in vars(base) if not name.startswith("__"))


def reject_reserved(cls: type[Graph[Any, Any]], name: str) -> None:
    """Refuse a node whose name would hide a part of every graph."""
    if name in _RESERVED:
        msg = f"{cls.__name__}.{name}: every graph has a `{name}` of its own; give the node another name"
        raise DeclarationError(msg)


def _reject_class(cls: type[Graph[Any, Any]], name: str, node: type[Any]) -> None:
    """Refuse a class in the place of a node; one that is named like a class, or annotated, is meant as a class."""
    if name[0].isupper() or name in get_annotations(cls, format=Format.FORWARDREF):
        return
    inside = {"stage": "Input, Agent(...)", "step": "function"}.get(getattr(node, "kind", ""), "")
    made = f"{name} = {node.__name__}({inside})"
    msg = f"{cls.__name__}.{name} is the class {node.__name__}, not a node: write `{made}`"
    raise DeclarationError(msg)
