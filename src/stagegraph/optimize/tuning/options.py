"""How to tune: the options that `tune`, `GEPA` and the search share."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, TypedDict, cast

from pydantic_ai.models import Model

from stagegraph.agent.models import Models, chosen_model
from stagegraph.data.prompts import Prompts
from stagegraph.optimize.evaluation.budget import Budget, check_numbers
from stagegraph.optimize.evaluation.evaluate import CONCURRENCY
from stagegraph.optimize.evaluation.retries import RETRY_DELAYS
from stagegraph.schema.errors import TuningError

from .components import Tuned, checked_kinds

if TYPE_CHECKING:
    import os

    from stagegraph.nodes.stage import Stage
    from stagegraph.runner.runner import Runner

    from .proposers import Candidates, Proposer

_log = logging.getLogger("stagegraph.optimize")
Callback = Callable[[str, Mapping[str, Any]], None]
"""Receives an event's name and its data."""


class TuningOptions(TypedDict, total=False):
    """What `tune` and `GEPA` take as keyword arguments, all optional.

    Keys:
        reflection_model: Reads what went wrong and writes new texts: a Pydantic AI model, its name, or an LM that
            `stagegraph.optimize.lm` made.
        proposer: Writes new texts instead: a function `Proposal -> text`, `"notes"` (no model: the notes are appended
            to the text) or `Candidates({component: [texts]})` (no model: a pool to choose from).
        components: Which texts to change: `"instructions"` (the default), `"tools"` (descriptions of the agents'
            tools, as far as they are known before a run), `"fields"` (descriptions of the fields of their answers).
            Each text is a component: `plan`, `plan:tool:search`, `plan:field:items.name`. Blame selects a stage; the
            components of one stage take turns.
        minibatch: Training examples of one step (default: 3).
        merge: Whether two candidates that are good at different texts may be merged (default: yes); needs at least 5
            validation examples.
        stagnation: The search stops after so many steps without a better candidate (default: 12).
        concurrency: Runs at the same time (default: 16).
        run_dir: A directory that keeps every paid run and proposal. A killed tuning continues from it without paying
            again.
        seed: The seed of the search's random choices.
        retry_delays: Seconds between the attempts when a provider fails (429, 5xx, no connection).
        callback: Called with each event: `run`, `proposing`, `proposed`, `validated`, `accepted`, `rejected`. An
            exception that it raises is logged once and ignored.
    """

    reflection_model: Any
    proposer: Proposer | Candidates | str | None
    components: Sequence[Tuned]
    minibatch: int
    merge: bool
    stagnation: int | None
    concurrency: int
    run_dir: str | os.PathLike[str] | None
    seed: int
    retry_delays: Sequence[float]
    callback: Callback


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """`TuningOptions` with their defaults, the budget, and what runs: model, runner and the prompts to start from."""

    budget: Budget
    model: Model[Any] | str | None = None
    models: Mapping[str, Model[Any] | str] = field(default_factory=dict[str, "Model[Any] | str"])
    """Stage path -> model; takes precedence over every other choice."""
    runner: Runner | None = None
    prompts: Prompts | None = None
    """Where to start; the runner's prompts by default. A stage that they do not name starts from its code's text."""
    reflection_model: Any = None
    proposer: Proposer | Candidates | str | None = None
    components: Sequence[Tuned] = ("instructions",)
    minibatch: int = 3
    merge: bool = True
    stagnation: int | None = 12
    concurrency: int = CONCURRENCY
    run_dir: str | os.PathLike[str] | None = None
    seed: int = 0
    retry_delays: Sequence[float] = RETRY_DELAYS
    callback: Callback | None = None
    perfect: float = 1.0
    """The score that cannot be improved."""
    _failed: list[str] = field(default_factory=list[str], init=False, repr=False)
    """Events at which the callback failed."""

    async def checked(self) -> Options:
        """The same options with their values checked and the prompts to start from resolved."""
        if not isinstance(self.budget, Budget):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = f"budget={self.budget!r}: write Budget(runs=300), Budget(usd=5) or both"
            raise TuningError(msg)
        check_numbers({"minibatch": self.minibatch, "concurrency": self.concurrency})
        if self.stagnation is not None:
            check_numbers({"stagnation": self.stagnation})
        start = self.prompts if self.prompts is not None or self.runner is None else self.runner.prompts
        return replace(
            self,
            components=checked_kinds(self.components),
            reflection_model=_model_of(self.reflection_model),
            prompts=start if start is None or isinstance(start, Prompts) else await start.current(None),
        )

    def model_of(self, path: str, stage: Stage[Any, Any]) -> Model[Any] | str | None:
        """The model of a stage, or its name, chosen as the runner chooses it; `None` when no model is named."""
        of_runner: Mapping[str, Model[Any] | str] = {} if self.runner is None else self.runner.models
        default = self.model if self.model is not None or self.runner is None else self.runner.model
        return chosen_model(path, stage, of_run=self.models, of_runner=of_runner, default=default)

    def report(self, event: str, **data: Any) -> None:
        """Call the callback, if there is one. No error of a progress bar is worth losing a paid search."""
        if self.callback is None:
            return
        try:
            self.callback(event, data)
        except Exception:  # noqa: BLE001
            if not self._failed:
                message = "`callback` failed at the event %r; the search continues, later errors are hidden"
                _log.exception(message, event)
            self._failed.append(event)


def _model_of(given: Any) -> Model[Any] | str | None:
    """A model, its name, or the model behind a `dspy.LM`."""
    if given is None or isinstance(given, (str, Model)):
        return cast("Model[Any] | str | None", given)
    from stagegraph.optimize.lms.lm import model_behind  # noqa: PLC0415 - a `dspy.LM` means that DSPy is loaded

    return model_behind(given, Models())
