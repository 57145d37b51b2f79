"""A Pydantic AI agent with a typed input: the tunable leaf of a graph."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, Literal, Union, cast

from pydantic_ai import DeferredToolRequests
from pydantic_ai._output import types_from_output_spec  # the only way from an output spec to its types
from pydantic_ai.agent import AbstractAgent, WrapperAgent
from pydantic_ai.messages import AgentInstructionSource, InstructionId, InstructionPart
from pydantic_ai.models import Model
from pydantic_ai.toolsets import AbstractToolset, FunctionToolset
from typing_extensions import TypeForm, TypeVar

from stagegraph.schema.errors import DeclarationError
from stagegraph.schema.schema import Schema

from .describe import Offered, fields_of, tools_of
from .node import Declaration, Node
from .render import render_input

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic_ai.messages import UserContent
    from pydantic_ai.settings import ModelSettings

OWN_INSTRUCTIONS = InstructionId(AgentInstructionSource())
"""Pydantic AI's id for an agent's own literal instructions in a request."""

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)


class Stage(Node[In_contra, Out_co], Generic[In_contra, Out_co]):
    """A Pydantic AI agent with a typed input; its instructions and demos are what tuning changes.

    Args:
        input: The type of its input.
        agent: Any Pydantic AI agent; it is never modified and keeps its own tools, validators and retries.
        render: Turns an input into the user prompt, live and in demos. The default sends a `str` unchanged and
            everything else as XML, with media fields (`ImageUrl`, `BinaryContent`, ...) as content parts.
        model: A model for this stage alone. Without one, the agent's is used, then the run's, then the runner's.
        model_settings: Merged over the agent's own.
        deps: Picks this agent's deps from the run's: `deps=lambda app: app.db`.
        timeout: Seconds that one attempt may take, and that all waits between the attempts may take together.
        retries: Maximum number of repeated attempts (0 by default), each after the wait that the provider asks for.
            Lasting errors (a bad key, an unknown model) are not repeated. The agent's own retries of bad output and
            tools happen inside an attempt.
        version: Part of the identity of a recorded call. Increase it when the code of a tool changed.
        demos: How demos reach the model: `"examples"` in the instructions, or `"messages"` before the input.

    Raises:
        DeclarationError: *agent* is not an agent, or one that cannot be a stage.
    """

    if not TYPE_CHECKING:  # a type checker says it by itself

        def __new__(cls, *given: object, **named: object) -> Stage[Any, Any]:
            if len(given) == 1 and not named.keys() & {"input", "agent"}:
                msg = "a stage has the type of its input and an agent: write Stage(Ticket, Agent(output_type=Reply))"
                raise DeclarationError(msg)
            return super().__new__(cls)

    def __init__(
        self,
        input: type[In_contra] | TypeForm[In_contra],  # noqa: A002 - the name users read
        agent: AbstractAgent[Any, Out_co | DeferredToolRequests],
        *,
        render: Callable[[In_contra], str | Sequence[UserContent]] | None = None,
        model: Model | str | None = None,
        model_settings: ModelSettings | None = None,
        deps: Callable[[Any], object] | None = None,
        timeout: float | None = None,
        retries: int | None = None,
        version: int | str = 1,
        demos: Literal["examples", "messages"] = "examples",
    ) -> None:
        _check_agent(agent)
        _check_options(model, render, deps, timeout, retries)
        self.agent = agent
        self.render: Callable[[Any], str | Sequence[UserContent]] = render or render_input
        self.model = model
        self.model_settings = model_settings
        self.deps = deps
        self.timeout = timeout
        self.retries = retries or 0
        self.version = version
        self.demos: Literal["examples", "messages"] = demos
        self._input = input
        self._name: str | None = None
        self._fallback_name = agent.name or "stage"  # Pydantic AI may rename an agent when it is used elsewhere

    def __set_name__(self, owner: type, name: str) -> None:
        if self._name is None:
            self._name = name
            vars(self).pop("__node__", None)

    @cached_property
    def __node__(self) -> Declaration:
        name = self._name or self._fallback_name
        given, output = lambda: Schema(self._input), lambda: _output_type(self.agent)
        return Declaration(self, "stage", name, given, output, offered=lambda: _graphs_of(self.agent))

    @cached_property
    def fields(self) -> Mapping[str, Offered]:
        """Dotted path -> the field of the answer, as the model sees it: the names that `Prompt.fields` may use."""
        return fields_of(self.agent)

    @property
    def tools(self) -> tuple[Mapping[str, Offered], bool]:
        """Name -> tool, and whether the list is complete: tools of servers and functions are known at run time only."""
        return tools_of(self.agent)

    @property
    def instructions(self) -> str:
        """The agent's own literal instructions: the text that prompts replace and that tuning starts from."""
        # Pydantic AI has no public reader for them: `agent.instructions` is a decorator. A test compares this
        # with the text that a model receives.
        sourced = cast("list[Any]", getattr(_unwrapped(self.agent), "_instructions", []))
        own = [s.instruction for s in sourced if s.id == OWN_INSTRUCTIONS]
        texts = [(part.content if isinstance(part, InstructionPart) else part).strip() for part in own]
        return "\n\n".join(text for text in texts if text)

    def __repr__(self) -> str:
        node = self.__node__
        return f"<stage {node.name}: {node.input_type.name} -> {node.output_type.name}>"


def stages_of(node: Node[Any, Any]) -> dict[str, Stage[Any, Any]]:
    """Path -> stage, of all stages at or below *node*, in the order of declaration."""
    return {path: one for path, one in node.__node__.tree.nodes.items() if isinstance(one, Stage)}


def _output_type(agent: AbstractAgent[Any, Any]) -> Schema:
    types = [t for t in types_from_output_spec(agent.output_type) if t is not DeferredToolRequests]
    return Schema(Union[tuple(types)] if types else str)  # noqa: UP007 - built from a list


def _graphs_of(agent: AbstractAgent[Any, Any]) -> dict[str, Node[Any, Any]]:
    """Name of a tool -> the graph that it runs."""
    found: dict[str, Node[Any, Any]] = {}

    def visit(leaf: AbstractToolset[Any]) -> None:
        for tool in leaf.tools.values() if isinstance(leaf, FunctionToolset) else ():
            graph: object = getattr(tool.function, "graph", None)
            if isinstance(graph, Node):
                found[tool.name] = cast("Node[Any, Any]", graph)

    for toolset in agent.toolsets:
        toolset.apply(visit)
    return found


def _unwrapped(agent: AbstractAgent[Any, Any]) -> AbstractAgent[Any, Any]:
    while isinstance(agent, WrapperAgent):
        agent = agent.wrapped
    return agent


def _check_agent(agent: object) -> None:
    """Refuse what is no agent, or one that cannot be a stage.

    Raises:
        DeclarationError: with what to write instead.
    """
    if not isinstance(agent, AbstractAgent):
        msg = (
            f"Stage(input, agent) needs a Pydantic AI agent, not {agent!r}: write Stage(Spec, Agent(output_type=Plan))"
        )
        raise DeclarationError(msg)
    inner = _unwrapped(cast("AbstractAgent[Any, Any]", agent))
    if any(getattr(inner, name, None) for name in ("_system_prompts", "_system_prompt_functions")):
        msg = (
            f"the agent {inner.name or ''!r} uses `system_prompt`, which is part of the message history and cannot be "
            "tuned or deployed: write the text as Agent(instructions=...)"
        )
        raise DeclarationError(msg)
    if getattr(inner.model, "system", None) == "stagegraph":
        msg = (
            f"the agent {inner.name or ''!r} is a graph (`as_agent`), which could wait for its own requests forever: "
            "declare the graph itself as a node, as in `build = Build()`"
        )
        raise DeclarationError(msg)


def _check_options(model: object, render: object, deps: object, timeout: object, retries: object) -> None:
    """Refuse values of a wrong type.

    Raises:
        DeclarationError: with what to write instead.
    """
    msg = ""
    if timeout is not None and not (isinstance(timeout, (int, float)) and timeout > 0):
        msg = f"Stage(timeout={timeout!r}): the seconds must be a number above 0"
    elif retries is not None and not (isinstance(retries, int) and retries >= 0):
        msg = f"Stage(retries={retries!r}): it must be a whole number, 0 or more"
    elif model is not None and not isinstance(model, (str, Model)):
        msg = f"Stage(model={model!r}): write a Pydantic AI model or its name, such as 'openai:gpt-5-mini'"
    for name, function, gives in (("render", render, "text or a list of content parts"), ("deps", deps, "the deps")):
        if inspect.iscoroutinefunction(function):
            msg = f"Stage({name}=...) takes an ordinary function that returns {gives}: remove its `async`"
        elif function is not None and not callable(function):
            msg = f"Stage({name}={function!r}): write a function that returns {gives}, as in `{name}=lambda given: ...`"
    if msg:
        raise DeclarationError(msg)
