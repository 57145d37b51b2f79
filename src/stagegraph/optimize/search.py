"""GEPA on a graph: reflective evolution of its texts (arXiv:2507.19457), with blame that follows what happened."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ._missing import needing
from .budget import Budget, Spent
from .evaluation import SIDE_BY_SIDE, WAITS

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.data.examples import Example
    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node
    from stagegraph.runner.runner import Runner
    from stagegraph.schema.errors import TuningError

    from ._adapter import Finding
    from ._components import Tuned
    from .grading import Grader, Metric
    from .proposers import Candidates, Proposer

__all__ = ["Found", "Options", "Tell", "search"]

Tell = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to search; the defaults fit a few dozen examples."""

    model: Model[Any] | str | None = None
    models: Mapping[str, Model[Any] | str] = field(default_factory=dict[str, "Model[Any] | str"])
    """Stage path -> model; goes before every other choice."""
    reflection_model: Model[Any] | str | None = None
    proposer: Proposer | str | Candidates | None = None
    """A function, `"notes"`, `Candidates(...)`, or `None` for the reflection model."""
    runner: Runner | None = None
    prompts: Prompts | None = None
    """Where to start; the runner's without it, and for stages that they do not name the code's texts."""
    components: Sequence[Tuned] = ("instructions",)
    """Which texts to change: `"instructions"`, `"tools"`, `"fields"`."""
    minibatch: int = 3
    merge: bool = True
    stagnation: int | None = 12
    perfect: float = 1.0
    side_by_side: int = SIDE_BY_SIDE
    run_dir: str | Path | None = None
    seed: int = 0
    waits: Sequence[float] = WAITS
    """Seconds between the attempts at what a provider did not do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What a search found."""

    seed: Prompts
    candidates: tuple[Finding, ...]
    """Each with its texts and its scores on the validation examples; the first is the seed."""
    best: int
    """The index of the best mean score; of equals the one that earned the least blame, then the earliest."""
    stopped: str
    """Why it ended."""
    error: TuningError | None
    spent: Spent
    prompts: Prompts
    """The best candidate, ready to be deployed."""
    warnings: tuple[str, ...] = ()
    """What kept it from doing better, in plain sentences."""

    def changes(self, candidate: int) -> dict[str, str]:
        """Component -> its text in a candidate, as far as its parent (of two the first) has another one."""
        own = self.candidates[candidate]
        before = self.candidates[own.parents[0]].texts if own.parents else own.texts
        return {name: text for name, text in own.texts.items() if before[name] != text}

    @property
    def changed(self) -> tuple[str, ...]:
        """The components whose text is another one in the best candidate than in the seed."""
        before, after = self.candidates[0].texts, self.candidates[self.best].texts
        return tuple(name for name, text in after.items() if before[name] != text)


async def search(  # noqa: PLR0917 - what is searched, with what, how
    graph: Node[Any, Any],
    metric: Metric | Grader,
    train: Sequence[Example[Any]],
    val: Sequence[Example[Any]],
    budget: Budget,
    options: Options,
    tell: Tell = lambda _name, _data: None,
) -> Found:
    """Search for better texts.

    Args:
        graph: What to tune.
        metric: What is better.
        train: Examples to learn from.
        val: Examples that decide which candidate is best; none of *train*.
        budget: When to stop.
        options: How.
        tell: Told what happens: `run`, `proposing`, `proposed`, `validated`, `accepted`, `rejected`.

    Raises:
        TuningError: there is nothing to search for or with; what goes wrong later is `Found.error`.
    """
    with needing("the search"):
        from ._start import starting  # noqa: PLC0415
        from ._work import Work  # noqa: PLC0415 - GEPA is loaded when it is used

    options = replace(options, prompts=await starting(options.prompts, options.runner))
    work = Work(graph, metric, train, val, budget, options, tell)
    try:
        return await work.search()
    finally:
        await work.close()
