"""A graph as a DSPy program: every DSPy optimizer takes it, and the real graph runs with the real agents."""

from __future__ import annotations

import copy
import re
from collections.abc import Coroutine, Mapping, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Self

import dspy

from stagegraph.data.prompts import Prompts
from stagegraph.nodes.graph import BaseGraph
from stagegraph.nodes.node import Node
from stagegraph.optimize.evaluation.retries import RETRY_DELAYS
from stagegraph.optimize.lms.lm import lm as bridged
from stagegraph.optimize.lms.loop import await_here, run_here
from stagegraph.schema.errors import DeclarationError, PromptError

from .fields import untyped
from .predictors import RunPrediction, StagePredict, entries_of, record_trace, record_usage
from .program import Program, check_evaluation, end_evaluation, in_executor

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.record.run import Run
    from stagegraph.runner.runner import Runner

_OWN = frozenset({"callbacks", "history", "program", "_attributes", "_compiled"})
"""Attributes of an instance, which no predictor may replace."""


class GraphModule(dspy.Module):
    """A graph as a `dspy.Module` with one flat predictor per stage.

    The predictor of the stage `build.code` is the attribute `build__code` (with a `_` at the end where a module has
    that attribute itself, such as `load`): the names of `named_predictors()` and of the components of `dspy.GEPA`.
    `signature.instructions` and `demos` of a predictor are the prompt of its stage.

    Args:
        graph: What to run; also a single stage.
        model: The model of stages that have none of their own. Where the runner has none either, it is the LM that DSPy
            is configured with.
        runner: How to run: models, limits, journal, tracing. It is used on the background loop of this package.
        prompts: Where to start; the runner's prompts by default. A stage that they do not name starts from its code.
        retry_delays: Seconds between the attempts at a run whose provider failed.
        demo_limit: Characters (of JSON) of all the demos that an optimizer may give one stage. Longer ones are left
            out of its prompt, those of *prompts* never.

    Raises:
        DeclarationError: DSPy needs the name of a field for itself, or the graph has no stages.
        PromptError: *prompts* name stages that the graph does not have.
    """

    def __new__(cls, graph: object = None, **_: object) -> Self:
        """Create a module that has the source of its graph: proposers read the source of a program's class."""
        kind = type(graph)
        if isinstance(graph, BaseGraph) and "graph_class" not in vars(cls):
            return object.__new__(_with_source(cls, kind))
        return object.__new__(cls)

    def __init__(
        self,
        graph: Node[Any, Any],
        *,
        model: Model[Any] | str | None = None,
        runner: Runner | None = None,
        prompts: Prompts | None = None,
        retry_delays: Sequence[float] = RETRY_DELAYS,
        demo_limit: int = 20_000,
    ) -> None:
        untyped.Module.__init__(self)
        if not isinstance(graph, Node):  # pyright: ignore[reportUnnecessaryIsInstance]
            hint = f": write {graph.__name__}()" if isinstance(graph, type) else ""
            msg = f"GraphModule(graph) takes a graph or a stage, not {graph!r}{hint}"
            raise DeclarationError(msg)
        program = self.program = Program(graph, model, runner, retry_delays, demo_limit)
        """How it is run: graph, model, runner; shared with its copies."""
        if not program.stages:
            msg = f"{graph.__node__.name} has no stages, so there is nothing that could be tuned"
            raise DeclarationError(msg)
        start = prompts if prompts is not None else program.runner.prompts
        if not isinstance(start, Prompts):
            start = run_here(start.current(None), "GraphModule(graph, prompts=await prompts.current(None))")
        self._attributes = _attributes(program.stages)
        for path, predictor in _predictors_of(program, start).items():
            setattr(self, self._attributes[path], predictor)

    @property
    def graph(self) -> Node[Any, Any]:
        """What it runs."""
        return self.program.graph

    def with_prompts(self, prompts: Prompts) -> Self:
        """A copy with other prompts and the same models."""
        new, before = copy.deepcopy(self), self._predictors()
        for path, predictor in _predictors_of(self.program, prompts).items():
            predictor.lm = before[path].lm
            setattr(new, self._attributes[path], predictor)
        return new

    def prompts(self) -> Prompts:
        """The current prompts of the predictors, as a runner deploys them."""
        prompts = {path: predictor.prompt() for path, predictor in self._predictors().items()}
        return Prompts(prompts, graph=self.program.graph.__node__.name)

    def _predictors(self) -> dict[str, StagePredict]:
        """Stage path -> its current predictor, which an optimizer may have replaced."""
        return {path: getattr(self, name) for path, name in self._attributes.items()}

    def __call__(self, *args: Any, **kwargs: Any) -> dspy.Prediction:
        """Run the graph; see `forward`.

        Raises:
            TuningStopped: instead of an error of `forward`, where one of DSPy's evaluations would make a score of 0 out
                of it.
        """
        if not in_executor():
            return untyped.Module.__call__(self, *args, **kwargs)
        check_evaluation(self.graph)
        try:
            return untyped.Module.__call__(self, *args, **kwargs)
        except Exception as error:  # noqa: BLE001 - a failed stage raises nothing, so this is no candidate's fault
            end_evaluation(error, self.graph)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Run the graph on the fields of its input model, or on `input` when the input is no model.

        A failed stage gives a prediction with an `error` and the partial `run`.

        Raises:
            RunError: a provider failed for good. `InputError`: the input does not fit.
            NotRunningError: this is the event loop that the run needs.
        """
        call = (id(self), *((name, id(given)) for name, given in sorted(inputs.items())))
        ran = self.program.flights.run(call, lambda: self._run(inputs), "await module.acall(...)")
        return self._predicted(*ran)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """The same for async code on any event loop."""
        return self._predicted(*await await_here(self._run(inputs)))

    def _run(self, inputs: Mapping[str, Any]) -> Coroutine[Any, Any, tuple[Run[Any, Any], str | None]]:
        """A run with what is chosen here and now."""
        return self.program.run(self.graph, self._input(inputs), self.prompts(), self.chosen_models())

    def _predicted(self, run: Run[Any, Any], error: str | None) -> dspy.Prediction:
        outputs = self.program.outputs
        record_trace(lambda: entries_of(run, self._predictors()))
        record_usage(run)
        fields = dict.fromkeys(outputs.names) if error is not None else outputs.split(run.output)
        return RunPrediction(fields, run, run.output, error)

    def _input(self, fields: Mapping[str, Any]) -> Any:
        inputs, name = self.program.inputs, self.program.graph.__node__.name
        unknown = sorted(fields.keys() - inputs.names.keys())
        if unknown:
            msg = f"{name} has no input `{unknown[0]}`; it takes: {', '.join(inputs.names)}"
            raise TypeError(msg)
        if inputs.model is None and not fields:
            msg = f"{name} takes one input: write module(input=...)"
            raise TypeError(msg)
        return inputs.data(fields)

    def chosen_models(self) -> dict[str, Model[Any]]:
        """Stage path -> the model, where DSPy chooses it."""
        models = {path: self.program.model_for(path, one.lm) for path, one in self._predictors().items()}
        return {path: model for path, model in models.items() if model is not None}

    def get_lm(self) -> Any:
        """The LM of all predictors; where none was set, the module's own model as one."""
        lm = untyped.Module.get_lm(self)
        return bridged(self.program.model) if lm is None and self.program.model is not None else lm

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> None:
        """Take over the prompts of a saved module.

        Raises:
            PromptError: it was saved from a graph with other stages.
        """
        own = [name for name, _ in untyped.Module.named_parameters(self)]
        missing = [name for name in own if name not in state]
        unknown = [name for name in state if name not in own and name != "metadata"]
        if missing or unknown:
            parts = [f"`{name}` is missing" for name in missing] + [f"there is no `{name}`" for name in unknown]
            msg = f"the saved program does not fit {self.program.graph.__node__.name}: {'; '.join(parts)}"
            raise PromptError(msg)
        untyped.Module.load_state(self, state, allow_unsafe_lm_state=allow_unsafe_lm_state)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A module with predictors of its own that shares the graph and the runner."""
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        for name, value in vars(self).items():
            if name != "forward":  # an evaluation patched it in; the copy would go on running this module
                vars(new)[name] = list(value) if name in {"callbacks", "history"} else copy.deepcopy(value, memo)
        return new


@cache
def _with_source(cls: Any, graph: type) -> Any:
    """A subclass of *cls* for which `inspect.getsource` finds the source of the graph."""
    names = ("__module__", "__qualname__", "__doc__", "__firstlineno__")
    about = {name: getattr(graph, name) for name in names if hasattr(graph, name)}
    return type(cls)(graph.__name__, (cls,), {**about, "graph_class": graph})


def _predictors_of(program: Program, prompts: Prompts) -> dict[str, StagePredict]:
    """Stage path -> a new predictor. A stage that the prompts do not name starts from its code."""
    prompts.check_known(program.stages, program.graph.__node__.name)
    seeds = Prompts.of(program.graph).replace(dict(prompts))
    return {path: StagePredict(path, program, seeds[path]) for path in program.stages}


def _attributes(paths: Mapping[str, object]) -> dict[str, str]:
    """Stage path -> the attribute of its predictor."""
    found: dict[str, str] = {}
    for path in paths:
        name = re.sub(r"\W", "_", path.replace(".", "__"))
        while not name.isidentifier() or name in found.values() or hasattr(GraphModule, name) or name in _OWN:
            name = f"{name}_" if name.isidentifier() else f"_{name}"
        found[path] = name
    return found
