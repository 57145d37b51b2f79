"""What a caller may say about one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict, cast

from pydantic_ai.models import Model

from stagegraph.data.prompts import Prompts
from stagegraph.record.run import Run
from stagegraph.schema.names import closest

from .limits import Limits

if TYPE_CHECKING:
    from pydantic_ai import RunContext

    from stagegraph.nodes.node import Node

__all__ = ["AgentOptions", "Labels", "ResumeOptions", "RunOptions", "check_options", "check_values"]


class RunOptions(TypedDict, total=False):
    """What a caller may say about one run besides its input, model, deps and prompts."""

    run_id: str | None
    """Chosen by the caller; a fresh one without it."""
    limits: Limits | None
    """Instead of the runner's."""
    session_id: str | None
    user_id: str | None
    tags: tuple[str, ...]
    metadata: Mapping[str, object] | None
    replay: Run[Any, Any] | str | None
    """A recorded run (or its id) whose unchanged calls are not made again."""
    override: Mapping[str, object] | None
    """Key of a stage or step call -> the output that it gets, whatever it would compute: for what-if runs."""
    models: Mapping[str, Model | str] | None
    """Stage path -> model, for this run alone; goes before every other choice."""


class ResumeOptions(TypedDict, total=False):
    """What a caller may say about a recorded run that goes on."""

    graph: Node[Any, Any] | None
    """What ran; needed when the runner has not run it yet."""
    answers: Mapping[str, object] | None
    """What a suspended run asks (`Run.pending`): `Pending.id`, or its tool call id, -> `True`, `False`,
    `ToolDenied(...)` for an approval, the result for an external tool."""
    strict: bool
    """Raise `ReplayError` instead of running a changed call again."""
    model: Model | str | None
    deps: object
    prompts: Prompts | None
    """Instead of those that the run began with."""
    limits: Limits | None
    """Instead of the runner's, for what is still to be done."""
    models: Mapping[str, Model | str] | None
    """Stage path -> model; the names that the run began with count without it."""
    take_over: bool
    """Go on even though a process on another host holds the run: you know that it is gone for good, as when a container
    was replaced. A process of this host is looked for, and never taken over from while it lives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What the caller said about a run for those who look at it later."""

    session_id: str | None = None
    user_id: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))


class AgentOptions(TypedDict, total=False):
    """How a graph appears as an agent: what `Graph.as_agent` takes."""

    name: str
    """Of the agent; else the class name in snake case."""
    user: Callable[[RunContext[Any]], str | None]
    """Gives the id of who talks to the agent, out of the agent run's deps or metadata. It is kept with each run, and
    nobody else's answers reach a run that asks."""
    errors: bool
    """Whether a streamed run fails with all that the error said, which front ends show to people. Without it, the error
    says where the run failed, and the original is its `__cause__`."""


_MAPPING = (dict, Mapping)  # which is quicker than asking for a `Mapping` alone
_A_MODEL = "a model or its name, such as 'openai:gpt-5-mini'"
_VALUES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "model": ((str, Model), _A_MODEL),
    "models": (_MAPPING, "a dict of stage paths and models, such as {'plan': 'openai:gpt-5-mini'}"),
    "prompts": (Prompts, "Prompts.load('prompts.yaml'), or Prompts({'plan': 'the instructions'})"),
    "limits": (Limits, "Limits(requests=100)"),
    "metadata": (_MAPPING, "a dict, such as {'customer': 7}"),
    "tags": ((tuple, list, set, frozenset), "a tuple of texts, such as ('nightly',)"),
    "replay": ((Run, str), "a run or its id"),
    "override": (_MAPPING, "a dict of call keys and outputs, such as {'plan': plan}"),
    "answers": (_MAPPING, "a dict, such as {run.pending[0].id: True}"),
    "max_queued": (int, "a whole number"),
    "drain_seconds": ((int, float), "seconds as a number"),
}
"""Name of an option -> what it may be, and how that is written."""


def check_values(given: Mapping[str, object], call: str) -> None:
    """Refuse what is of another type than an option takes, before it fails somewhere inside.

    Raises:
        TypeError: it says what to write.
    """
    for name, value in given.items():
        if value is None or name not in _VALUES:
            continue
        types, written = _VALUES[name]
        if not isinstance(value, types):
            msg = f"{call}({name}=...) was given {type(value).__name__} {value!r}: write {written}"
            raise TypeError(msg)
        if name == "models":
            for path, model in cast("Mapping[str, object]", value).items():
                if model is not None and not isinstance(model, (str, Model)):
                    msg = (
                        f"{call}(models=...) was given {type(model).__name__} {model!r} for `{path}`: write {_A_MODEL}"
                    )
                    raise TypeError(msg)


def check_options(given: Mapping[str, object], known: type, call: str, **named: object) -> None:
    """Refuse a keyword that means nothing: a limit that was misspelt would limit nothing; and values that cannot be.

    Raises:
        TypeError: as for any function; it names what may have been meant.
    """
    names = known.__annotations__
    for name in given:
        if name not in names:
            msg = f"{call}() got an unexpected keyword argument `{name}`{closest(name, list(names))}"
            raise TypeError(msg)
    check_values(given, call)
    check_values(named, call)
