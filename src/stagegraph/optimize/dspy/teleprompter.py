"""The search as a DSPy teleprompter over a `GraphModule`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Unpack

from dspy.teleprompt import Teleprompter

from stagegraph.data.examples import Example
from stagegraph.optimize.lms.loop import run_here
from stagegraph.optimize.tuning.options import Options, TuningOptions
from stagegraph.optimize.tuning.search import search
from stagegraph.schema.errors import TuningError

from .fields import from_dspy
from .module import GraphModule

if TYPE_CHECKING:
    from stagegraph.nodes.node import Node
    from stagegraph.optimize.evaluation.budget import Budget
    from stagegraph.optimize.evaluation.metric import Grader, Metric
    from stagegraph.optimize.tuning.result import SearchResult


class GEPA(Teleprompter):
    """Reflective evolution of a graph's texts, for those who write DSPy.

    It differs from `dspy.GEPA`: all calls of a stage reach reflection, the worst first, and failed runs with their
    partial record; the stage with the most blame is changed; a child that scores the same is kept when its stage earns
    less blame; a provider's failure is retried and never becomes a score; nothing is paid for twice.

    Args:
        metric: `(example, run) -> Score | float | bool`.
        budget: When to stop.
        reflection_lm: `reflection_model` under the name that `dspy.GEPA` uses.
        options: See `TuningOptions`: `reflection_model`, `proposer`, `components`, `minibatch`, `merge`, `stagnation`,
            `concurrency`, `run_dir`, `seed`, `retry_delays`, `callback`.

    It tunes for the models that `module(...)` would use, including those set on the module or in `dspy.context(lm=)`.

    Raises:
        TuningError: both `reflection_model` and `reflection_lm` are given.
    """

    def __init__(
        self, metric: Metric | Grader, *, budget: Budget, reflection_lm: Any = None, **options: Unpack[TuningOptions]
    ) -> None:
        super().__init__()
        if reflection_lm is not None:
            if options.get("reflection_model") is not None:
                msg = "reflection_model= and reflection_lm= are two names of one thing: give one of them"
                raise TuningError(msg)
            options["reflection_model"] = reflection_lm
        self.metric = metric
        self.budget = budget
        self.found: SearchResult | None = None
        """The result of the last search: every candidate with its scores, and why the search ended."""
        self._options = Options(budget=budget, **options)

    def compile(self, student: GraphModule, *, trainset: Sequence[Any], valset: Sequence[Any]) -> GraphModule:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A copy of the module with the best texts.

        Raises:
            TuningError: see `acompile`.
            NotRunningError: called on this package's own event loop; use `acompile`.
        """
        return run_here(self.acompile(student, trainset=trainset, valset=valset), "await gepa.acompile(...)")

    async def acompile(self, student: GraphModule, *, trainset: Sequence[Any], valset: Sequence[Any]) -> GraphModule:
        """The same for async code.

        Raises:
            TuningError: the data, the metric or an option cannot work, or a provider failed before the seed was
                evaluated.
        """
        if not isinstance(student, GraphModule):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"this GEPA tunes a GraphModule, not {type(student).__name__}; dspy.GEPA takes any module"
            raise TuningError(msg)
        graph, program = student.graph, student.program
        options = replace(
            self._options,
            model=program.model,
            models=student.chosen_models(),
            runner=program.runner,
            prompts=student.prompts(),
        )
        train, val = (_examples(rows, graph) for rows in (trainset, valset))
        self.found = await search(graph, self.metric, train, val, options)
        return student.with_prompts(self.found.prompts)


def _examples(rows: Sequence[Any], graph: Node[Any, Any]) -> list[Example[Any]]:
    return [row if isinstance(row, Example) else from_dspy(row, graph) for row in rows]
