"""The runs of a search: candidates run for real, and what is known is not paid for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, Literal

from ._components import Component, Texts, prompts_of
from .blame import Judged
from .budget import BudgetReached
from .evaluation import run_example

if TYPE_CHECKING:
    from stagegraph.data.examples import Example
    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run
    from stagegraph.runner.runner import Runner

    from ._store import Store
    from .budget import Budget, Spent
    from .grading import Grader

__all__ = ["Runs", "digest"]

Kind = Literal["trace", "fresh", "verdict"]
"""What a run is for: only a `trace` may take from the run of another candidate; a `verdict` is not in the budget."""


@dataclass
class Runs:
    """Runs candidates on examples, on the background loop, as long as the budget lasts."""

    graph: Node[Any, Any]
    components: Mapping[str, Component]
    base: Prompts
    grader: Grader
    runner: Runner
    model: Any
    models: Mapping[str, Any]
    spent: Spent
    budget: Budget
    store: Store
    side_by_side: int
    waits: Sequence[float]
    tell: Callable[[str, Mapping[str, Any]], None]
    _recent: dict[str, Run[Any, Any]] = field(default_factory=dict[str, "Run[Any, Any]"])
    """Example -> its newest run with traces: what a child need not compute again."""
    _known: dict[tuple[str, str], Judged] = field(default_factory=dict[tuple[str, str], Judged])

    async def of(self, batch: Sequence[Example[Any]], candidate: Texts, kind: Kind) -> list[Judged]:
        """Run a candidate on examples, all at once; what was paid for before is not run again.

        Raises:
            BudgetReached: not all of them could be run; a `verdict` costs nothing of the budget.
        """
        slots = asyncio.Semaphore(self.side_by_side)
        found = [await self._known_run(example, candidate, kind) for example in batch]
        first: dict[str, int] = {}  # GEPA fills a minibatch up with examples that are in it already
        for place, judged in enumerate(found):
            if judged is None:
                first.setdefault(batch[place].id if kind == "trace" else str(place), place)
        reached: list[str] = []

        async def one(place: int) -> None:
            async with slots:
                reason = None if kind == "verdict" else self.spent.reached(self.budget)
                if reason is None:
                    found[place] = await self._new_run(batch[place], candidate, kind)
                else:
                    reached.append(reason)

        async with asyncio.TaskGroup() as group:
            for place in first.values():
                group.create_task(one(place))
        if reached:
            raise BudgetReached(reached[0])
        all_found = [
            found[first[one.id]] if judged is None else judged for one, judged in zip(batch, found, strict=True)
        ]
        return [judged for judged in all_found if judged is not None]

    async def _known_run(self, example: Example[Any], candidate: Texts, kind: Kind) -> Judged | None:
        """What was paid for before."""
        name = digest(candidate)
        if kind == "trace" and (known := self._known.get((name, example.id))) is not None:
            return known
        judged = await self.store.judged(kind, name, example, self.graph)
        return None if judged is None else self._counted(judged, name, kind)

    async def _new_run(self, example: Example[Any], candidate: Texts, kind: Kind) -> Judged:
        name = digest(candidate)
        recent = self._recent.get(example.id)
        begun = self.store.begun(kind, name, example)
        replay = await self._recorded(begun, recent.id if kind == "trace" and recent else None)
        run = await run_example(
            self.runner,
            self.graph,
            example,
            model=self.model,
            models=self.models,
            prompts=prompts_of(self.base, candidate, self.components),
            waits=self.waits,
            replay=replay,
            begin=lambda run_id: self.store.begin(kind, name, example, run_id),
        )
        judged = Judged(example, run, await self.grader(example, run))
        self.store.keep(kind, name, judged)
        return self._counted(judged, name, kind)

    def _counted(self, judged: Judged, name: str, kind: Kind) -> Judged:
        example, run = judged.example, judged.run
        if kind != "verdict":
            self.spent.add_run(run)
            self.spent.add_verdict(judged.score)
        if kind == "trace":
            self._known[name, example.id] = judged
            self._recent[example.id] = run
        spent = {"runs": self.spent.runs, "usd": self.spent.usd, "unpriced": self.spent.unpriced}
        self.tell("run", {"example": example.id, "score": judged.score.value, "kind": kind, **spent})
        return judged

    async def _recorded(self, *run_ids: str | None) -> str | None:
        """The first of these runs that is in the journal."""
        journal = self.runner.journal
        if journal is not None:
            for run_id in run_ids:
                if run_id is not None and await journal.run(run_id) is not None:
                    return run_id
        return None


def digest(texts: Texts) -> str:
    """A candidate by its content."""
    text = "\0".join(f"{path}\1{texts[path]}" for path in sorted(texts))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
