"""Between GEPA's engine and the graph: what a candidate scored, what went wrong, and a new text for it."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from gepa.core.adapter import EvaluationBatch

from stagegraph.schema.errors import TuningError

from ._components import Component, EngineName, Texts
from ._loop import submit
from ._runs import Runs, digest
from ._shown import tool_use
from .blame import Judged, blame, records
from .budget import BudgetReached
from .proposers import Proposal, Proposer, ask, schema_text

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.data.examples import Example
    from stagegraph.nodes.stage import Stage

    from .report import ReportRow

__all__ = ["Adapter", "Finding"]

T = TypeVar("T")


@dataclass(slots=True)
class Finding:
    """A candidate that was run on the whole validation set."""

    texts: dict[str, str]
    """Component (`plan`, `plan:tool:search`, `plan:field:title`) -> text."""
    parents: tuple[int, ...]
    """The candidates that it was made of: none for the seed, two for a merge."""
    scores: list[float]
    """On each validation example, in their order."""
    blame: dict[str, float]
    """Stage path -> how much of what went wrong was its own."""
    objectives: list[dict[str, float]]
    """On each validation example: the score, those of the metric, and `blame:<path>`, of which less is worse."""
    rows: list[ReportRow]
    """Its runs."""
    calls: dict[str, float]
    """Stage path -> calls in one run."""

    @property
    def mean(self) -> float:
        return sum(self.scores) / len(self.scores)


@dataclass
class Adapter:
    """What `gepa.optimize` takes as `adapter`; it lives in the engine's thread and works on the background loop."""

    runs: Runs
    stages: Mapping[str, Stage[Any, Any]]
    proposer: Proposer
    perfect: float
    validation: Sequence[Example[Any]]
    propose_new_texts: Any = None
    findings: list[Finding] = field(default_factory=list[Finding])
    problem: TuningError | None = None
    """What ended the search where GEPA's engine would have gone on."""
    tried: dict[str, set[str]] = field(default_factory=dict[str, "set[str]"])
    _lift: float = 1.0
    """What GEPA's engine is told on top of each score: it cannot merge where scores do not sum up to more than 0."""
    _validated: dict[str, list[Judged]] = field(default_factory=dict[str, "list[Judged]"])
    _left_out: dict[str, int] = field(default_factory=dict[str, int])
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
        future = self._current = submit(self._in_time(work))
        if self._cancelled:
            future.cancel()
        return future.result()

    async def _in_time(self, work: Coroutine[Any, Any, T]) -> T:
        """Do what there are seconds left for."""
        limit = self.runs.budget.seconds
        deadline = asyncio.timeout(None if limit is None else limit - self.runs.spent.seconds)
        try:
            async with deadline:
                return await work
        except TimeoutError:
            if not deadline.expired():
                raise
            msg = f"the budget of {limit:g} seconds"
            raise BudgetReached(msg) from None

    def evaluate(
        self, batch: list[Example[Any]], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Judged, Any]:
        """Run a candidate on examples, all at once.

        Raises:
            TuningError: a provider or the metric failed for good.
            BudgetReached: not all of them could be run.
        """
        texts = EngineName.taken(candidate)
        validating = all(id(one) in self._validation for one in batch)  # the engine asks for traces there, too
        judged = self._wait_for(self.runs.of(batch, texts, "fresh" if validating else "trace"))
        scores = [one.score.value for one in judged]
        if validating and [one.id for one in batch] == [one.id for one in self.validation]:
            self._validated[digest(texts)] = judged
            if not self.findings:
                self._lift = 1 - min(0.0, *scores)
        told = [score + self._lift for score in scores]
        return EvaluationBatch([one.run.output for one in judged], told, judged, self._objectives(judged))

    def _objectives(self, judged: Sequence[Judged]) -> list[dict[str, float]]:
        """What a candidate may be good at besides the score: at earning a stage no blame."""
        paths = dict.fromkeys(component.path for component in self.runs.components.values())
        rows: list[dict[str, float]] = []
        for one in judged:
            blamed = blame(one, perfect=self.perfect)
            own = {f"blame:{path}": -blamed.get(path, 0.0) for path in paths}
            rows.append({**one.score.objectives, "score": one.score.value} | own)
        return rows

    def found(self, candidate: Texts, parents: Sequence[int]) -> None:
        """GEPA's engine took a candidate in, with what it scored on the validation set."""
        texts = EngineName.taken(candidate)
        judged = self._validated.pop(digest(texts))
        total: dict[str, float] = {}
        for one in judged:
            for path, weight in blame(one, perfect=self.perfect).items():
                total[path] = total.get(path, 0.0) + weight
        scores, rows = [one.score.value for one in judged], [one.row for one in judged]
        made = Counter(call.path for one in judged for call in one.run.root.walk())
        calls = {path: made[path] / len(judged) for path in self.stages}
        self.findings.append(Finding(texts, tuple(parents), scores, total, self._objectives(judged), rows, calls))
        self.runs.tell("validated", {"candidate": len(self.findings) - 1, "mean": self.findings[-1].mean})

    def make_reflective_dataset(
        self, candidate: dict[str, str], eval_batch: EvaluationBatch[Judged, Any], components_to_update: list[str]
    ) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        """All calls of each stage that is to be changed, the worst first."""
        found: dict[str, Sequence[Mapping[str, Any]]] = {}
        judged = eval_batch.trajectories or []
        for name in map(str, components_to_update):
            component = self.runs.components[name]
            more = _use_of(component.part) if component.kind == "tool" else None
            found[name] = records(judged, component.path, more=more)
            calls = sum(call.path == component.path for one in judged for call in one.run.root.walk())
            self._left_out[name] = calls - len(found[name])
        return found

    def _propose(
        self,
        candidate: dict[str, str],
        reflective_dataset: Mapping[str, Sequence[Mapping[str, Any]]],
        components_to_update: list[str],
    ) -> dict[str, str]:
        found: dict[str, str] = {}
        texts = EngineName.taken(candidate)
        for name in map(str, components_to_update):
            if self.runs.spent.reached(self.runs.budget) is not None:
                break
            component = self.runs.components[name]
            self.runs.tell("proposing", {"stage": component.path, "component": name})
            tried = self.tried.setdefault(f"{digest({**texts, name: ''})}:{name}", set())
            proposal = self._proposal(component, texts, reflective_dataset.get(name, ()), tried)
            try:
                text = self._wait_for(self.runs.store.proposed(self.proposer, proposal, ask))
            except TuningError as error:
                self.problem = error  # the engine goes on after a failed proposal, so the stopper looks here
                return {}
            except BudgetReached:  # the stopper will find out by itself
                return {}
            if text is not None:
                tried.add(text)
                found[EngineName(name)] = text
                self.runs.tell("proposed", {"stage": component.path, "component": name})
        return found

    def _proposal(
        self, component: Component, candidate: Texts, shown: Sequence[Mapping[str, Any]], tried: set[str]
    ) -> Proposal:
        path, stage = component.path, self.stages[component.path]
        base = self.runs.base[path].instructions if path in self.runs.base else None
        instructions = candidate.get(path, base if base is not None else stage.instructions)
        return Proposal(
            path=path,
            text=candidate[component.name],
            records=shown,
            takes=schema_text(stage, "takes"),
            gives=schema_text(stage, "gives"),
            tried=frozenset(tried),
            kind=component.kind,
            part=component.part,
            schema=component.schema,
            instructions="" if component.kind == "instructions" else instructions,
            left_out=self._left_out.get(component.name, 0),
        )


def _use_of(tool: str) -> Callable[[Call], dict[str, str]]:
    return lambda call: {"tool": tool_use(call, tool)}
