"""What is asked of a run: the options of a caller, and the specification that is made of them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from os import urandom
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypedDict, cast

from pydantic_ai.models import Model

from stagegraph.data.call import path_of
from stagegraph.data.prompt import unknown_stages
from stagegraph.data.prompts import Checkable, Prompts, PromptSource
from stagegraph.nodes.node import Node
from stagegraph.nodes.stage import stages_of
from stagegraph.record.run import ReplayError, Run
from stagegraph.schema.errors import DeclarationError, closest

from .limits import Limits

if TYPE_CHECKING:
    from stagegraph.nodes.node import Tree
    from stagegraph.record.rows import RunRow
    from stagegraph.schema.schema import Schema


class RunOptions(TypedDict, total=False):
    """What a caller may ask of one run besides its input, model, deps and prompts."""

    run_id: str | None
    """Chosen by the caller; a fresh one without it."""
    limits: Limits | None
    """Instead of the runner's, also when the run is resumed."""
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
    """What a caller may ask of a recorded run that is resumed."""

    graph: Node[Any, Any] | None
    """The graph of the run; needed when the runner has not run it yet."""
    answers: Mapping[str, object] | None
    """Answers for a suspended run (`Run.pending`): `Pending.id`, or its tool call id, -> `True`, `False` or
    `ToolDenied(...)` for an approval, the result for an external tool."""
    input: object
    """The input of the run, where its record does not hold all of it, as of a secret."""
    strict: bool
    """Raise `ReplayError` instead of running a changed call again, or a step whose record is not whole."""
    model: Model | str | None
    deps: object
    prompts: Prompts | PromptSource | None
    """Instead of those that the run began with."""
    limits: Limits | None
    """Instead of the run's own or the runner's, until the run is interrupted again. What it has spent counts."""
    models: Mapping[str, Model | str] | None
    """Stage path -> model; without it, the names that the run began with."""


def _nothing() -> dict[str, Any]:
    """Quicker than `dict[str, Any]()`."""
    return {}


@dataclass(slots=True, kw_only=True, eq=False)
class RunSpec:
    """What one run is asked to do: by a caller, or by a journal that holds the beginning of the run."""

    run_id: str
    own_id: bool
    """Whether the caller or a journal gave the id, so that another process may hold a run of that id."""
    node: Node[Any, Any]
    input: object
    """A value of the input type, or data that validates to one."""
    fits: bool = False
    """Whether it is a value of the input type."""
    model: Model | str | None = None
    models: Mapping[str, Model | str] = field(default_factory=_nothing)
    deps: object = None
    prompts: Prompts | PromptSource | None = None
    """Instead of the runner's."""
    limits: Limits | None = None
    """Instead of the runner's."""
    session_id: str | None = None
    user_id: str | None = None
    tags: tuple[str, ...] = ()
    metadata: Mapping[str, object] = field(default_factory=_nothing)
    deltas: bool = False
    replay: str | None = None
    """The id of another run whose outputs may be used."""
    override: Mapping[str, object] = field(default_factory=_nothing)
    answers: Mapping[str, Mapping[str, object]] = field(default_factory=_nothing)
    """Call key -> tool call id -> answer."""
    resumed: RunRow | None = None
    """The row of the recorded run that is resumed."""
    strict: bool = False

    @classmethod
    def of(cls, call: str, node: Node[Any, Any], value: object, options: RunOptions, **named: object) -> RunSpec:
        """What the caller of *call* asks for, by options and *named* arguments; one that is `None` was not given.

        Raises:
            TypeError: an option is unknown, or one has a wrong type.
            DeclarationError: *node* is none.
        """
        check_options(options, RunOptions, call)
        check_values(named, call)
        node = _checked(node)
        fitting, fits = fitted(node, value)
        asked: dict[str, Any] = {name: one for name, one in {**named, **options}.items() if one is not None}
        run_id, replay = asked.pop("run_id", None), asked.pop("replay", None)
        return cls(
            run_id=run_id or urandom(16).hex(),
            own_id=run_id is not None,
            node=node,
            input=fitting,
            fits=fits,
            replay=replay.id if isinstance(replay, Run) else replay,
            tags=tuple(asked.pop("tags", ())),
            metadata=MappingProxyType(dict(asked.pop("metadata", {}))),
            **asked,
        )

    def output_type(self, key: str) -> Schema:
        """The output type of the call with this key."""
        return self.node.__node__.tree.nodes[path_of(key)].__node__.output_type

    def check(self, tree: Tree) -> None:
        """Refuse models and outputs for nodes that the graph does not have, before anything is paid for.

        Raises:
            DeclarationError: a model is given for a path where there is no stage.
            ReplayError: an output is given for a call that no run of the graph can make.
        """
        for key in self.override:
            path = path_of(key)
            node = tree.nodes.get(path)
            if node is None or node.__node__.kind == "graph":
                leaves = [path for path, node in tree.nodes.items() if node.__node__.kind != "graph"]
                msg = f"`override` names `{key}`, and {tree.root.__node__.name} has no such stage or step"
                raise ReplayError(msg + closest(path, leaves))
        if self.models and (unknown := unknown_stages(self.models, stages_of(tree.root))):
            msg = f"the models do not fit {tree.root.__node__.name}: {'; '.join(unknown)}"
            raise DeclarationError(msg)


def fitted(node: Node[Any, Any], value: object) -> tuple[object, bool]:
    """The input of a run as a value of its type, and whether it is one: what does not fit stays, and fails the run."""
    try:
        return node.__node__.input_type.validate(value), True
    except Exception:  # noqa: BLE001 - what is wrong with it is an event of the run
        return value, False


def _checked(node: object) -> Node[Any, Any]:
    if isinstance(node, Node):
        return cast("Node[Any, Any]", node)
    instance = f"; write {node.__name__}()" if isinstance(node, type) and issubclass(node, Node) else ""
    msg = f"a runner runs graphs, stages and steps, not {node!r}{instance}"
    raise DeclarationError(msg)


_MAPPING = (dict, Mapping)  # quicker than `Mapping` alone
_A_MODEL = "a model or its name, such as 'openai:gpt-5-mini'"
_VALUES: dict[str, tuple[type | tuple[type, ...], str]] = {
    "model": ((str, Model), _A_MODEL),
    "models": (_MAPPING, "a dict of stage paths and models, such as {'plan': 'openai:gpt-5-mini'}"),
    "prompts": ((Prompts, PromptSource), "Prompts.load('prompts.yaml'), or Prompts({'plan': 'the instructions'})"),
    "limits": (Limits, "Limits(requests=100)"),
    "metadata": (_MAPPING, "a dict, such as {'customer': 7}"),
    "tags": ((tuple, list, set, frozenset), "a tuple of texts, such as ('nightly',)"),
    "replay": ((Run, str), "a run or its id"),
    "override": (_MAPPING, "a dict of call keys and outputs, such as {'plan': plan}"),
    "answers": (_MAPPING, "a dict, such as {run.pending[0].id: True}"),
    "max_queued": (int, "a whole number"),
    "drain_seconds": ((int, float), "seconds as a number"),
}
"""Name of an option -> its types, and an example of a value."""


def check_values(given: Mapping[str, object], call: str) -> None:
    """Refuse values of a wrong type, before they fail somewhere inside.

    Raises:
        TypeError: with what to write instead.
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


def check_options(given: Mapping[str, object], known: type, call: str) -> None:
    """Refuse unknown keywords, since a misspelt limit would limit nothing, and values of a wrong type.

    Raises:
        TypeError: as for any function; it names the keyword that may have been meant.
    """
    names = known.__annotations__
    for name in given:
        if name not in names:
            msg = f"{call}() got an unexpected keyword argument `{name}`{closest(name, list(names))}"
            raise TypeError(msg)
    check_values(given, call)


def check_models(models: Mapping[str, Model | str], node: Node[Any, Any], known: Collection[Node[Any, Any]]) -> None:
    """Check the models of a runner that begins to run *node*; a stage that runs by itself has no path.

    Raises:
        DeclarationError: a model is given for a path where no *known* graph has a stage.
    """
    if models and node.__node__.kind == "graph":
        stages = {path: stage for graph in known for path, stage in stages_of(graph).items()}
        if unknown := unknown_stages(models, stages):
            names = ", ".join(graph.__node__.name for graph in known)
            hint = "if another graph has that stage, tell the runner first: runner.add(graph)"
            msg = f"the models of this runner do not fit {names}: {'; '.join(unknown)}; {hint}"
            raise DeclarationError(msg)


def check_prompts(prompts: Prompts | PromptSource, spec: RunSpec, tree: Tree) -> None:
    """Check that prompts, or a source of them, fit the stages of a run; a stage that runs by itself has no path.

    Raises:
        PromptError: they do not.
    """
    declared = tree.root.__node__
    if not prompts or (spec.prompts is None and declared.kind != "graph"):
        return
    if isinstance(prompts, (Prompts, Checkable)):  # quicker than `Checkable` alone
        prompts.check_known(declared.stages, declared.name)
