"""How a module's graph is run: patiently, with the models that DSPy was given for its stages."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from stagegraph.agent.models import Models
from stagegraph.nodes.stage import stages_of
from stagegraph.optimize.evaluation.retries import run_patiently
from stagegraph.optimize.lms.lm import general_lm, model_behind
from stagegraph.optimize.lms.names import model_named
from stagegraph.runner.runner import Runner

from .executor import Flights, Outage
from .fields import Fields

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run

__all__ = ["Program"]


class Program:
    """What a module and its copies share: the graph, and how it is run."""

    def __init__(
        self,
        graph: Node[Any, Any],
        model: Model[Any] | str | None,
        runner: Runner | None,
        retry_delays: Sequence[float],
        demo_limit: int,
    ) -> None:
        self.graph = graph
        self.model = model
        self.runner = runner if runner is not None else Runner()
        self.retry_delays = tuple(retry_delays)
        self.demo_limit = demo_limit
        self.stages = stages_of(graph)
        self.inputs = Fields(graph.__node__.input_type, "input")
        self.outputs = Fields(graph.__node__.output_type, "output")
        self.flights, self.outage = Flights(), Outage()
        self._models = Models()

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def model_for(self, path: str, lm: object) -> Model[Any] | None:
        """The model of a stage as far as DSPy chooses it; *lm* is the one that was set on its predictor.

        It goes before that of `dspy.context(lm=)`. The LM that is configured for all of DSPy counts where neither the
        stage, nor the runner, nor the module names a model.
        """
        general, configured = general_lm()
        chosen = lm or general
        if chosen is None and self.model is None and model_named(path, self.stages[path], self.runner) is None:
            chosen = configured
        return None if chosen is None else model_behind(chosen, self._models)

    async def run(
        self, node: Node[Any, Any], value: Any, prompts: Prompts, models: Mapping[str, Model[Any]]
    ) -> tuple[Run[Any, Any], str | None]:
        """A run, and why it has no output if it has none.

        Raises:
            RunError: a provider failed for good, or the input does not fit.
        """
        run = await run_patiently(
            self.runner, node, value, self.retry_delays, model=self.model, prompts=prompts, models=models
        )
        if run.status == "succeeded":
            return run, None
        return run, str(run.error) if run.error is not None else "the run waits for an answer (see `run.pending`)"
