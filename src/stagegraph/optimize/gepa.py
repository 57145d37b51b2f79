"""GEPA without losses, for those who write DSPy: a teleprompter over a `GraphModule`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dspy.teleprompt import Teleprompter

from stagegraph.data.examples import Example
from stagegraph.schema.errors import TuningError

from ._loop import run_here
from .data import from_dspy
from .evaluation import WAITS
from .module import GraphModule
from .search import Found, Options, Tell, search

if TYPE_CHECKING:
    import os

    import dspy
    from pydantic_ai.models import Model

    from ._components import Tuned
    from .budget import Budget
    from .grading import Grader, Metric
    from .proposers import Candidates, Proposer

__all__ = ["GEPA"]


class GEPA(Teleprompter):
    """Reflective evolution of a graph's instructions, with every call of a fan-out heard and nothing paid twice.

    It differs from `dspy.GEPA` in what reaches reflection (all calls of a stage, worst first, and failed runs with
    their partial record), in what is changed (the stage that earned the blame), in what is kept (a child that scores no
    worse while its stage earns less blame), and in what a provider's failure means (a retry, never a score).

    Args:
        metric: `(example, run) -> Score | float | bool`.
        budget: When to stop.
        reflection_model: Writes new texts: a Pydantic AI model, its name, or an LM that `stagegraph.optimize.lm` made.
        reflection_lm: The same, as `dspy.GEPA` calls it.
        proposer: Instead of it: a function, `"notes"` or `Candidates(...)`.
        minibatch: Training examples of one step.
        components: Which texts to change: `"instructions"`, `"tools"`, `"fields"`; see `tune`.
        merge: Whether two candidates that are good at different texts may be put together.
        stagnation: Steps without a better candidate after which it stops.
        side_by_side: Runs that go on at once.
        run_dir: Where every paid run and proposal is kept, to go on from after a crash.
        seed: Another number searches otherwise.
        waits: Seconds between the attempts at what a provider did not do.
        tell: Told what happens, for a progress bar.

    It tunes for the models that `module(...)` would ask: those set on the module or in `dspy.context(lm=)` included.
    """

    def __init__(
        self,
        metric: Metric | Grader,
        *,
        budget: Budget,
        reflection_model: Model[Any] | str | dspy.LM | None = None,
        reflection_lm: Model[Any] | str | dspy.LM | None = None,
        proposer: Proposer | Candidates | str | None = None,
        components: Sequence[Tuned] = ("instructions",),
        minibatch: int = 3,
        merge: bool = True,
        stagnation: int | None = 12,
        side_by_side: int = 16,
        run_dir: str | os.PathLike[str] | None = None,
        seed: int = 0,
        waits: Sequence[float] = WAITS,
        tell: Tell = lambda _name, _data: None,
    ) -> None:
        super().__init__()
        if reflection_model is not None and reflection_lm is not None:
            msg = "reflection_model= and reflection_lm= are two names of one thing: give one of them"
            raise TuningError(msg)
        self.metric = metric
        self.budget = budget
        self.found: Found | None = None
        """What the last search found: every candidate with its scores, and why it ended."""
        self._tell = tell
        self._options = {
            "reflection_model": reflection_lm if reflection_model is None else reflection_model,
            "proposer": proposer,
            "components": components,
            "minibatch": minibatch,
            "merge": merge,
            "stagnation": stagnation,
            "side_by_side": side_by_side,
            "run_dir": None if run_dir is None else Path(run_dir),
            "seed": seed,
            "waits": tuple(waits),
        }

    def compile(self, student: GraphModule, *, trainset: Sequence[Any], valset: Sequence[Any]) -> GraphModule:  # pyright: ignore[reportIncompatibleMethodOverride]
        """A copy of the module with the best texts that were found.

        Raises:
            TuningError: see `acompile`.
            NotRunningError: called on this package's own event loop; use `acompile`.
        """
        return run_here(self.acompile(student, trainset=trainset, valset=valset), "await gepa.acompile(...)")

    async def acompile(self, student: GraphModule, *, trainset: Sequence[Any], valset: Sequence[Any]) -> GraphModule:
        """The same for async code.

        Raises:
            TuningError: the data, the metric or the budget cannot work, or a provider failed before anything was found.
        """
        if not isinstance(student, GraphModule):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"this GEPA tunes a GraphModule, not {type(student).__name__}; dspy.GEPA takes any module"
            raise TuningError(msg)
        graph, program = student.graph, student.program
        options = Options(
            model=program.model,
            models=student.chosen_models(),
            runner=program.runner,
            prompts=student.prompts(),
            **self._options,  # pyright: ignore[reportArgumentType]
        )
        train, val = (_examples(rows, graph) for rows in (trainset, valset))
        self.found = await search(graph, self.metric, train, val, self.budget, options, self._tell)
        return student.with_prompts(self.found.prompts)


def _examples(rows: Sequence[Any], graph: Any) -> list[Example[Any]]:
    return [row if isinstance(row, Example) else from_dspy(row, graph) for row in rows]
