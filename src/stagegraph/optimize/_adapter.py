"""Between GEPA's engine and the graph: candidates run for real, and what is known is not paid for twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, TypeVar

from gepa.core.adapter import EvaluationBatch

from stagegraph.errors import TuningError
from stagegraph.prompts import Prompts

from ._loop import submit
from .blame import Judged, blame, records
from .evaluation import run_example
from .proposers import Proposal, Proposer, ask, schema_text

if TYPE_CHECKING:
    from stagegraph.example import Example
    from stagegraph.node import Node
    from stagegraph.run import Run
    from stagegraph.runner import Runner
    from stagegraph.stage import Stage

    from ._store import Store
    from .budget import Spent
    from .grading import Grader
    from .report import ReportRow

__all__ = ["Adapter", "Finding", "prompts_of"]

T = TypeVar("T")

Texts = Mapping[str, str]
"""Component (a stage's path) -> text."""


@dataclass(slots=True)
class Finding:
    """A candidate that was run on the whole validation set."""

    texts: dict[str, str]
    scores: list[float]
    blame: dict[str, float]
    objectives: list[dict[str, float]]
    rows: list[ReportRow]

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


@dataclass
class Adapter:
    """What `gepa.optimize` takes as `adapter`; it lives in the engine's thread and works on the background loop."""

    graph: Node[Any, Any]
    stages: Mapping[str, Stage[Any, Any]]
    base: Prompts
    grader: Grader
    runner: Runner
    model: Any
    proposer: Proposer
    spent: Spent
    store: Store
    perfect: float
    side_by_side: int
    validation: Sequence[Example[Any]]
    waits: Sequence[float]
    tell: Callable[[str, Mapping[str, Any]], None]
    propose_new_texts: Any = None
    findings: list[Finding] = field(default_factory=list[Finding])
    problem: TuningError | None = None
    """What ended the search where GEPA's engine would have gone on."""
    tried: dict[str, set[str]] = field(default_factory=dict[str, "set[str]"])
    _recent: dict[str, Run[Any, Any]] = field(default_factory=dict[str, "Run[Any, Any]"])
    """Example -> its newest run with traces: what a child need not compute again."""
    _known: dict[tuple[str, str], Judged] = field(default_factory=dict[tuple[str, str], Judged])
    _current: Future[Any] | None = None
    _cancelled: bool = False

    def __post_init__(self) -> None:
        self._validation = {id(one) for one in self.validation}
        self.propose_new_texts = self._propose

    def cancel(self) -> None:
        """End what goes on, and begin nothing more."""
        self._cancelled = True
        if self._current is not None:
            self._current.cancel()

    def _wait_for(self, work: Coroutine[Any, Any, T]) -> T:
        if self._cancelled:
            work.close()
            raise CancelledError
        future = self._current = submit(work)
        if self._cancelled:
            future.cancel()
        return future.result()

    def evaluate(
        self, batch: list[Example[Any]], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Judged, Any]:
        """Run a candidate on examples, all at once.

        Raises:
            TuningError: a provider or the metric failed for good.
        """
        validating = all(id(one) in self._validation for one in batch)  # the engine asks for traces there, too
        judged = self._wait_for(self.judge_all(batch, candidate, "fresh" if validating else "trace"))
        blames = [blame(one, perfect=self.perfect) for one in judged]
        objectives = [
            {**one.score.objectives, "score": one.score.value}
            | {f"blame:{path}": -blamed.get(path, 0.0) for path in candidate}
            for one, blamed in zip(judged, blames, strict=True)
        ]
        scores = [one.score.value for one in judged]
        if validating and [one.id for one in batch] == [one.id for one in self.validation]:
            total: dict[str, float] = {}
            for blamed in blames:
                for path, weight in blamed.items():
                    total[path] = total.get(path, 0.0) + weight
            self.findings.append(Finding(dict(candidate), scores, total, objectives, [one.row for one in judged]))
            self.tell("validated", {"candidate": len(self.findings) - 1, "mean": self.findings[-1].mean})
        return EvaluationBatch([one.run.output for one in judged], scores, judged, objectives)

    async def judge_all(self, batch: Sequence[Example[Any]], candidate: Texts, kind: str) -> list[Judged]:
        """Run a candidate on examples; only a `trace` may take from the run of another candidate."""
        slots = asyncio.Semaphore(self.side_by_side)

        async def one(example: Example[Any]) -> Judged:
            async with slots:
                return await self._judge(example, candidate, kind)

        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(example)) for example in batch]
        return [task.result() for task in tasks]

    async def _judge(self, example: Example[Any], candidate: Texts, kind: str) -> Judged:
        name = digest(candidate)
        place = (name, example.id)
        if kind == "trace" and (known := self._known.get(place)) is not None:
            return known
        judged = await self.store.judged(kind, name, example, self.graph)
        if judged is None:
            recent = self._recent.get(example.id)
            begun = self.store.begun(kind, name, example)
            replay = await self._recorded(begun, recent.id if kind == "trace" and recent else None)
            run = await run_example(
                self.runner,
                self.graph,
                example,
                model=self.model,
                prompts=prompts_of(self.base, candidate, self.stages),
                waits=self.waits,
                replay=replay,
                begin=lambda run_id: self.store.begin(kind, name, example, run_id),
            )
            judged = Judged(example, run, await self.grader(example, run))
            self.store.keep(kind, name, judged)
        if kind != "verdict":
            self.spent.add_run(judged.run)
            self.spent.add_verdict(judged.score)
        if kind == "trace":
            self._known[place] = judged
            self._recent[example.id] = judged.run
        spent = {"runs": self.spent.runs, "usd": self.spent.usd}
        self.tell("run", {"example": example.id, "score": judged.score.value, **spent})
        return judged

    async def _recorded(self, *run_ids: str | None) -> str | None:
        """The first of these runs that is in the journal."""
        journal = self.runner.journal
        if journal is not None:
            for run_id in run_ids:
                if run_id is not None and await journal.run(run_id) is not None:
                    return run_id
        return None

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: EvaluationBatch[Judged, Any], components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """All calls of each stage that is to be changed, the worst first."""
        return {path: records(eval_batch.trajectories or [], path) for path in components_to_update}

    def _propose(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        found: dict[str, str] = {}
        for path in components_to_update:
            self.tell("proposing", {"stage": path})
            tried = self.tried.setdefault(f"{digest({**candidate, path: ''})}:{path}", set())
            stage = self.stages[path]
            proposal = Proposal(
                path=path,
                text=candidate[path],
                records=reflective_dataset.get(path, ()),
                takes=schema_text(stage, "takes"),
                gives=schema_text(stage, "gives"),
                tried=frozenset(tried),
            )
            try:
                text = self._wait_for(self.store.proposed(self.proposer, proposal, ask))
            except TuningError as error:
                self.problem = error  # the engine goes on after a failed proposal, so the stopper looks here
                return {}
            if text is not None:
                tried.add(text)
                found[path] = text
        return found


def prompts_of(base: Prompts, texts: Texts, stages: Mapping[str, Stage[Any, Any]]) -> Prompts:
    """What a candidate deploys: the base with its texts, as far as they differ from what the code says."""
    changes = {path: text for path, text in texts.items() if path in base or text != (stages[path].instructions or "")}
    return base.replace(changes)


def digest(texts: Texts) -> str:
    """A candidate by its content."""
    text = "\0".join(f"{path}\1{texts[path]}" for path in sorted(texts))
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()
