"""What GEPA's engine asks for while it searches: runs of candidates, new texts, and the decisions of the search."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from gepa.api import optimize  # pyright: ignore[reportUnknownVariableType]
from gepa.core.adapter import EvaluationBatch

from stagegraph.data.examples import digest_of
from stagegraph.optimize.evaluation.budget import BudgetReached
from stagegraph.optimize.evaluation.report import blame_in
from stagegraph.optimize.evaluation.shown import records, tool_use
from stagegraph.optimize.evaluation.statistics import SAME
from stagegraph.optimize.lms.loop import submit
from stagegraph.schema.errors import TuningError

from .components import EngineName, Texts
from .proposers import Proposal, schema_text
from .result import Candidate
from .trials import Purpose

if TYPE_CHECKING:
    from gepa.core.state import GEPAState
    from gepa.proposer.base import CandidateProposal

    from stagegraph.data.call import Call
    from stagegraph.data.examples import Example
    from stagegraph.optimize.evaluation.report import Trial

    from .components import Component
    from .trials import Trials

T = TypeVar("T")

_log = logging.getLogger("stagegraph.optimize")
Row = tuple[Purpose, "Example[Any]"]
"""One row of GEPA's data: an example, and what its runs are for."""


class Engine:
    """GEPA's adapter, rules, callbacks and logger. It runs in a thread, and its work on the background loop.

    *step* is the most runs that the next step can make.
    """

    def __init__(self, trials: Trials, minibatch: int, step: int) -> None:
        self._trials, self._minibatch, self._step = trials, minibatch, step
        self._target, self._options, self._spent = trials.target, trials.options, trials.spent
        self.candidates: list[Candidate] = []
        """Those that were run on the whole validation set; the first is the seed."""
        self.stopped = ""
        """Which rule ended the search."""
        self._evaluated: list[Trial] = []
        """The runs of the last evaluation. GEPA does not hand over those of the seed."""
        self._lift = 1.0
        """Added to each score that the engine sees: it merges only candidates whose scores sum up to more than 0."""
        self._chosen: Component | None = None
        """What the step changes."""
        self._text: str | None = None
        self._tried: dict[str, set[str]] = {}
        """A component within a candidate -> texts that were tried for it."""
        self._turns: Counter[tuple[int, str]] = Counter()
        self._changed: Counter[str] = Counter()
        self._best, self._since = float("-inf"), 0
        self._warned = False
        self._current: Future[Any] | None = None
        self._cancelled = False

    @property
    def best(self) -> int:
        """The candidate with the highest mean; among equals the one with the least blame, then the earliest."""
        means = [(round(one.mean, 9), -sum(one.blame.values())) for one in self.candidates]
        return max(range(len(means)), key=lambda index: (means[index], -index))

    def run(self, train: Sequence[Example[Any]], val: Sequence[Example[Any]]) -> None:
        """Search until a rule, an error, the budget or `cancel` ends it."""
        optimize(
            seed_candidate={EngineName(name): text for name, text in self._target.seed.items()},
            trainset=[("trace", example) for example in train],
            valset=[("fresh", example) for example in val],
            adapter=self,  # pyright: ignore[reportArgumentType]
            frontier_type="hybrid",
            skip_perfect_score=False,  # the engine's scores are lifted; the selector looks at the scores themselves
            reflection_minibatch_size=self._minibatch,
            module_selector=self.select,  # pyright: ignore[reportArgumentType]
            acceptance_criterion=self,
            use_merge=self._options.merge and len(self._target.components) > 1,
            stop_callbacks=self.stop,
            callbacks=[self],  # pyright: ignore[reportArgumentType]
            logger=self,
            track_best_outputs=False,
            seed=self._options.seed,
            raise_on_exception=True,
        )

    def cancel(self) -> None:
        """Cancel the current work and start nothing more."""
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
        """Do the work within the seconds that the budget has left."""
        limit = self._options.budget.seconds
        with anyio.move_on_after(None if limit is None else limit - self._spent.seconds):
            return await work
        msg = f"the budget of {limit:g} seconds"
        raise BudgetReached(msg)

    def evaluate(
        self, batch: list[Row], candidate: dict[str, str], capture_traces: bool = False
    ) -> EvaluationBatch[Trial, Trial]:
        """Run a candidate on rows of one purpose, concurrently."""
        purpose = batch[0][0]  # whether traces are asked for does not say it
        trials = self._wait_for(self._trials.of([example for _, example in batch], _plain(candidate), purpose))
        if not self.candidates:
            self._lift = 1 - min(0.0, *(one.score.value for one in trials))
        self._evaluated = trials
        lifted = [one.score.value + self._lift for one in trials]
        return EvaluationBatch(trials, lifted, trials, self._objectives(trials))

    def _objectives(self, trials: Sequence[Trial]) -> list[dict[str, float]]:
        """What a candidate can be good at besides the score: that a stage earns no blame."""
        rows: list[dict[str, float]] = []
        for one in trials:
            blamed = one.blame(self._options.perfect)
            own = {f"blame:{path}": -blamed.get(path, 0.0) for path in self._target.paths}
            rows.append({**one.score.objectives, "score": one.score.value, **own})
        return rows

    def select(
        self, _state: object, trials: Sequence[Trial], _scores: object, parent: int, candidate: Mapping[str, str]
    ) -> list[str]:
        """The one component to change; none where there is no new text.

        The text is written here: to GEPA, an exception of a proposer is no proposal, while one of a selector ends the
        search.
        """
        chosen = self._chosen = self._choose(trials, parent)
        text = self._text = None if chosen is None else self._write(chosen, _plain(candidate), trials)
        return [] if chosen is None or text is None else [EngineName(chosen.name)]

    def make_reflective_dataset(self, *_: object) -> dict[str, Any]:
        """Nothing more: the new text is there."""
        return {}

    def propose_new_texts(self, _candidate: object, _dataset: object, selected: Sequence[str]) -> dict[str, str]:
        """The text that the selector wrote."""
        return dict.fromkeys(selected, self._text or "")

    def _choose(self, trials: Sequence[Trial], parent: int) -> Component | None:
        """The component to change; `None` when no stage is to blame or no score can be improved.

        The stage with the most blame comes first. Each unsuccessful attempt lowers its turn, so that others follow. Of
        the components of a stage, the one that was changed least often in the whole search is next.
        """
        if all(trial.score.value >= self._options.perfect for trial in trials):
            return None
        blamed = blame_in(trials, self._options.perfect)
        total = {path: blamed[path] for path in self._target.paths if blamed.get(path, 0.0) > 0}
        if not total:
            return None
        stage = min(total, key=lambda path: (-total[path] / (1 + self._turns[parent, path]), path))
        own = [component for component in self._target.components.values() if component.path == stage]
        chosen = min(own, key=lambda component: self._changed[component.name])
        self._turns[parent, stage] += 1
        self._changed[chosen.name] += 1
        return chosen

    def _write(self, component: Component, texts: Texts, trials: Sequence[Trial]) -> str | None:
        """A new text for a component of a candidate, from its runs."""
        reached = self._spent.reached(self._options.budget)
        if reached is not None:
            raise BudgetReached(reached)
        path, name = component.path, component.name
        self._options.report("proposing", stage=path, component=name)
        tried = self._tried.setdefault(f"{digest_of({**texts, name: ''})}:{name}", set())

        def use(call: Call) -> dict[str, str]:
            return {"tool": tool_use(call, component.part)}

        node = self._target.stages[path].__node__
        shown = records(trials, path, more=use if component.kind == "tool" else None)
        calls = sum(call.path == path for one in trials for call in one.run.root.walk())
        proposal = Proposal(
            path=path,
            text=texts[name],
            records=shown,
            input_schema=schema_text(node.input_type),
            output_schema=schema_text(node.output_type),
            tried=frozenset(tried),
            kind=component.kind,
            part=component.part,
            schema=component.schema,
            instructions="" if component.kind == "instructions" else self._target.instructions(path, texts),
            left_out=calls - len(shown),
        )
        text = self._wait_for(self._trials.proposed(proposal))
        if text is not None:
            tried.add(text)
            self._options.report("proposed", stage=path, component=name)
        return text

    def should_accept(self, proposal: CandidateProposal[Any], state: object) -> bool:
        """Whether to run a child on the whole validation set.

        It is, when it scores better, or when it scores the same while the stage that it changed earns less blame: when
        two stages are at fault, repairing one of them often leaves the final score unchanged.
        """
        before, after = sum(proposal.subsample_scores_before or []), sum(proposal.subsample_scores_after or [])
        if abs(after - before) > SAME:
            return after > before
        if self._chosen is None or proposal.eval_before is None or proposal.eval_after is None:
            return False
        runs = (proposal.eval_before.trajectories or [], proposal.eval_after.trajectories or [])
        earned, earns = (blame_in(some, self._options.perfect).get(self._chosen.path, 0.0) for some in runs)
        return earns < earned - SAME

    def stop(self, gepa_state: GEPAState[Any, Any]) -> bool:
        """Whether to stop before the next step; `stopped` has the reason."""
        self.stopped = self._reason(gepa_state.i) or ""
        return bool(self.stopped)

    def _reason(self, iteration: int) -> str | None:
        reached = self._spent.reached(self._options.budget, next_runs=self._step)
        if reached is not None:
            return reached
        best = max((one.mean for one in self.candidates), default=float("-inf"))
        if best >= self._options.perfect - SAME:
            return "every validation example scored as well as can be"
        self._check_prices()
        if best > self._best + SAME:
            self._best, self._since = best, iteration
        elif self._options.stagnation is not None and iteration - self._since >= self._options.stagnation:
            return f"nothing got better in {self._options.stagnation} iterations"
        return None

    def _check_prices(self) -> None:
        """A limit in dollars does not hold where prices are unknown: as the only limit an error, else a warning."""
        budget = self._options.budget
        if budget.usd is None or not self._spent.unpriced:
            return
        unknown = f"the price of {self._spent.unpriced} runs, verdicts or proposals is not known"
        what = f"Budget(usd={budget.usd:g}) does not hold: {unknown}"
        if budget.only_money and not self._spent.usd:
            msg = f"{what}; set another limit, too, as in Budget(runs=300)"
            raise TuningError(msg)
        if not self._warned:
            self._warned = True
            _log.warning("%s, and they are not counted", what)

    def on_valset_evaluated(self, event: Mapping[str, Any]) -> None:
        """Keep a candidate that the engine has taken into its population."""
        trials = self._evaluated
        calls = Counter(call.path for one in trials for call in one.run.root.walk())
        candidate = Candidate(
            texts=_plain(event["candidate"]),
            parents=tuple(event["parent_ids"]),
            rows=[one.row for one in trials],
            objectives=self._objectives(trials),
            blame=blame_in(trials, self._options.perfect),
            calls={path: calls[path] / len(trials) for path in self._target.stages},
        )
        self.candidates.append(candidate)
        self._options.report("validated", candidate=event["candidate_idx"], mean=candidate.mean)

    def on_candidate_accepted(self, event: Mapping[str, Any]) -> None:
        """Report that a child is kept."""
        parents, candidate = tuple(event["parent_ids"]), event["new_candidate_idx"]
        self._options.report("accepted", iteration=event["iteration"], candidate=candidate, parents=parents)

    def on_candidate_rejected(self, event: Mapping[str, Any]) -> None:
        """Report that a child is dropped."""
        self._options.report("rejected", iteration=event["iteration"])

    def log(self, message: str) -> None:
        """Drop GEPA's own log, which is for its developers."""


def _plain(candidate: Texts) -> dict[str, str]:
    """A candidate of the engine with plain names."""
    return {str(name): text for name, text in candidate.items()}
