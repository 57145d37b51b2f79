"""A graph as a DSPy program: every optimizer of DSPy takes it, and what runs is the real graph with the real agents."""

from __future__ import annotations

import copy
import re
from collections.abc import Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Self, cast

import dspy

from stagegraph.data.prompts import Prompts
from stagegraph.nodes.graph import BaseGraph
from stagegraph.nodes.node import Node
from stagegraph.nodes.stage import stages_of
from stagegraph.record.run import RunError
from stagegraph.schema.errors import DeclarationError, PromptError

from ._lm import general_lm, model_behind
from ._lm import lm as bridged
from ._loop import await_here, run_here
from ._predict import Declared, StagePredict
from ._program import WAITS, Program, run_patiently
from ._provider import raise_through_evaluation
from ._trace import RunPrediction, entries_of, record_usage, recorded

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.data.prompt import Prompt
    from stagegraph.record.run import Run
    from stagegraph.runner.runner import Runner

__all__ = ["GraphModule"]


class GraphModule(dspy.Module):
    """A graph as a `dspy.Module` with one flat predictor per stage.

    The predictor of the stage `build.code` is the attribute `build__code` (a name that a module has itself, such as
    `load`, gets a `_` behind it): the names of `named_predictors()`, and of the components of `dspy.GEPA`.
    `signature.instructions` and `demos` of a predictor are what its stage says to its model.

    Args:
        graph: What to run; also a single stage.
        model: The model of stages that have none of their own. Where the runner has none either, it is the LM that DSPy
            is configured with.
        runner: How to run: models, limits, journal, tracing. It is used on the background loop of this package.
        prompts: Where to start; without it the runner's, and for stages they do not name the texts of the code.
        waits: Seconds between the attempts at a run whose provider failed.
        demo_limit: Characters (of JSON) of all the demos that an optimizer may give one stage; longer ones are left
            out of its prompt, those of *prompts* never.

    Raises:
        DeclarationError: a field has a name that DSPy keeps for itself, or the graph has no stages.
        PromptError: *prompts* name stages that the graph does not have.
    """

    def __new__(cls, graph: object = None, **_: object) -> Self:
        """Make a module that shows the graph's source to proposers, which read that of a program's class."""
        if isinstance(graph, BaseGraph) and "graph_class" not in vars(cls):
            return object.__new__(_shown_as(cls, type(cast("object", graph))))
        return object.__new__(cls)

    def __init__(
        self,
        graph: Node[Any, Any],
        *,
        model: Model[Any] | str | None = None,
        runner: Runner | None = None,
        prompts: Prompts | None = None,
        waits: Sequence[float] = WAITS,
        demo_limit: int = 20_000,
    ) -> None:
        cast("Any", super()).__init__()
        if not isinstance(graph, Node):  # pyright: ignore[reportUnnecessaryIsInstance]
            hint = f": write {graph.__name__}()" if isinstance(graph, type) else ""
            msg = f"GraphModule(graph) takes a graph or a stage, not {graph!r}{hint}"
            raise DeclarationError(msg)
        program = self._program = Program(graph, model, runner, waits, demo_limit)
        program.attributes.update(_attributes(stages_of(program.tree.root)))
        if not stages_of(program.tree.root):
            msg = f"{graph.__node__.name} has no stages, so there is nothing that could be tuned"
            raise DeclarationError(msg)
        start = prompts if prompts is not None else program.runner.prompts
        if not start.settled:
            start = run_here(start.resolved(), "GraphModule(graph, prompts=await prompts.resolved())")
        start.check_known(stages_of(program.tree.root), graph.__node__.name)
        seeds = Prompts.of(graph).replace(dict(start))
        for path, stage in stages_of(program.tree.root).items():
            predictor = StagePredict(Declared(path, stage, self._asker(), demo_limit), seeds[path])
            setattr(self, program.attributes[path], predictor)

    @property
    def graph(self) -> Node[Any, Any]:
        """What it runs."""
        return self._program.graph

    @property
    def program(self) -> Program:
        """How it is run: graph, model, runner; shared with its copies."""
        return self._program

    def with_prompts(self, prompts: Prompts) -> Self:
        """A copy that says something else, to the same models."""
        program = self._program
        new = type(self)(
            program.graph,
            prompts=prompts,
            model=program.model,
            runner=program.runner,
            waits=program.waits,
            demo_limit=program.demo_limit,
        )
        for name, predictor in zip(program.attributes.values(), self._predictors().values(), strict=True):
            getattr(new, name).lm = predictor.lm
        return new

    def prompts(self) -> Prompts:
        """What the predictors say now, as the file that people review and a runner deploys."""
        prompts = {path: predictor.prompt() for path, predictor in self._predictors().items()}
        return Prompts(prompts, graph=self._program.graph.__node__.name)

    def _predictors(self) -> dict[str, StagePredict]:
        """Stage path -> its predictor now; an optimizer may have put another one in its place."""
        return {path: getattr(self, name) for path, name in self._program.attributes.items()}

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Run the graph on the fields of its input model, or on `input` when it is no model.

        A failed stage gives a prediction with an `error` and the partial `run`.

        Raises:
            RunError: a provider failed, and waiting did not help. `InputError`: the input does not fit.
            NotRunningError: this is the event loop that the run would need.
        """
        raise_through_evaluation(None)
        try:
            value, chosen = self._input(inputs), self.chosen_models()
            call = (id(self), *((name, id(given)) for name, given in sorted(inputs.items())))
            run, error = self._program.flights.run(call, lambda: self._run(value, chosen), "await module.acall(...)")
        except Exception as failure:  # a failed stage raises nothing, so this is no candidate's fault
            raise_through_evaluation(failure)
            raise
        return self._predicted(run, error)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """The same for async code on any event loop."""
        run, error = await await_here(self._run(self._input(inputs), self.chosen_models()))
        return self._predicted(run, error)

    def _predicted(self, run: Run[Any, Any], error: str | None) -> dspy.Prediction:
        program = self._program
        recorded(entries_of(run, self._predictors()))
        record_usage(run)
        fields = dict.fromkeys(program.gives.names) if error is not None else program.gives.split(run.output)
        return RunPrediction(fields, run, run.output, error)

    def _input(self, inputs: Mapping[str, Any]) -> Any:
        takes = self._program.takes
        unknown = sorted(inputs.keys() - takes.names.keys())
        if unknown:
            msg = f"{self._program.graph.__node__.name} has no input `{unknown[0]}`; it takes: {', '.join(takes.names)}"
            raise TypeError(msg)
        if takes.model is None and not inputs:
            msg = f"{self._program.graph.__node__.name} takes one input: write module(input=...)"
            raise TypeError(msg)
        return takes.data(inputs)

    def chosen_models(self) -> dict[str, Model[Any] | str]:
        """Stage path -> the model that DSPy was told to use for it.

        What was set on the predictor goes before what `dspy.context(lm=)` says. What is configured for all of DSPy
        counts where nobody else names a model: neither the stage, nor the runner, nor this module.
        """
        program, (general, everywhere) = self._program, general_lm()
        found: dict[str, Any] = {}
        for path, predictor in self._predictors().items():
            lm = predictor.lm or general
            found[path] = everywhere if lm is None and not program.has_model(path) else lm
        return {path: model_behind(lm, program.models) for path, lm in found.items() if lm is not None}

    async def _run(self, value: Any, models: Mapping[str, Model[Any] | str]) -> tuple[Run[Any, Any], str | None]:
        program = self._program
        return await run_patiently(program, program.graph, value, self.prompts(), models)

    def _asker(self) -> Any:
        program = self._program

        async def ask(predictor: StagePredict, value: Any) -> Any:
            lm = predictor.lm
            stage = predictor.declared.stage
            if lm is None and not program.has_model(predictor.path):
                lm = general_lm()[1]
            models = {stage.__node__.name: model_behind(lm, program.models)} if lm is not None else {}
            prompts: dict[str, Prompt] = {stage.__node__.name: predictor.prompt()}
            run, error = await run_patiently(program, stage, value, Prompts(prompts), models)
            if error is not None:
                raise RunError(error, run=run)
            return run.output

        return ask

    def get_lm(self) -> Any:
        """The LM of all predictors; when none was set, the module's own model as one."""
        lm = cast("Any", super()).get_lm()
        return bridged(self._program.model) if lm is None and self._program.model is not None else lm

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Take over the prompts of a saved module.

        Raises:
            PromptError: it was saved from a graph with other stages.
        """
        own = dict(cast("list[tuple[str, Any]]", cast("Any", self).named_parameters()))
        missing = [name for name in own if name not in state]
        unknown = [name for name in state if name not in own and name != "metadata"]
        if missing or unknown:
            parts = [f"`{name}` is missing" for name in missing] + [f"there is no `{name}`" for name in unknown]
            msg = f"the saved program does not fit {self._program.graph.__node__.name}: {'; '.join(parts)}"
            raise PromptError(msg)
        cast("Any", super()).load_state(state, allow_unsafe_lm_state=allow_unsafe_lm_state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A module with predictors of its own that shares the graph and the runner."""
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        for name, value in vars(self).items():
            if name != "forward":  # an evaluation patched it in; the copy would go on running this module
                vars(new)[name] = list(value) if name in {"callbacks", "history"} else copy.deepcopy(value, memo)
        return new


@cache
def _shown_as(cls: Any, graph: type) -> Any:
    """A class like *cls* whose source, for whoever looks it up, is that of the graph."""
    names = ("__module__", "__qualname__", "__doc__", "__firstlineno__")
    about = {name: getattr(graph, name) for name in names if hasattr(graph, name)}
    return type(cls)(graph.__name__, (cls,), {**about, "graph_class": graph})


def _attributes(paths: Mapping[str, object]) -> dict[str, str]:
    """Stage path -> the attribute of its predictor."""
    found: dict[str, str] = {}
    for path in paths:
        name = re.sub(r"\W", "_", path.replace(".", "__"))
        while not name.isidentifier() or name in found.values() or hasattr(GraphModule, name) or name in _OWN:
            name = f"{name}_" if name.isidentifier() else f"_{name}"
        found[path] = name
    return found


_OWN = frozenset({"callbacks", "history", "_program", "_compiled"})
