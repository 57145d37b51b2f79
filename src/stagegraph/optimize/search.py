"""GEPA on a graph: reflective evolution of its texts (arXiv:2507.19457), with blame that follows what happened."""

from __future__ import annotations

import asyncio
import copy
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagegraph.errors import TuningError
from stagegraph.journal import MemoryJournal, SqliteJournal
from stagegraph.prompts import Prompts
from stagegraph.runner import Runner
from stagegraph.structure import Structure

from ._store import Store
from .budget import Budget, Spent
from .evaluate import SIDE_BY_SIDE, checked_examples
from .grading import Grader, Metric, grader_of
from .proposers import Candidates, Proposer, notes_proposer, reflective_proposer

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.example import Example
    from stagegraph.node import Node

    from ._adapter import Finding

__all__ = ["Found", "Options", "search"]

_WAITS = (1.0, 4.0, 15.0, 60.0)
_MERGE = 5
"""Runs that GEPA tries a merge of two candidates on."""
Tell = Callable[[str, Mapping[str, Any]], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How to search; the defaults fit a few dozen examples."""

    model: Model[Any] | str | None = None
    reflection_model: Model[Any] | str | None = None
    proposer: Proposer | str | Candidates | None = None
    """A function, `"notes"`, `Candidates(...)`, or `None` for the reflection model."""
    runner: Runner | None = None
    prompts: Prompts | None = None
    """Where to start; the code's texts without it."""
    minibatch: int = 3
    merge: bool = True
    stagnation: int | None = 12
    perfect: float = 1.0
    side_by_side: int = SIDE_BY_SIDE
    run_dir: str | Path | None = None
    seed: int = 0
    waits: Sequence[float] = _WAITS


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


async def search(
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
        tell: Told what happens: `run`, `proposing`, `validated`, `accepted`, `rejected`.

    Raises:
        TuningError: there is nothing to search for or with; what goes wrong later is `Found.error`.
    """
    work = _Work(graph, metric, train, val, budget, options, tell)
    try:
        return await asyncio.to_thread(work.run)
    except asyncio.CancelledError:
        work.adapter.cancel()  # the thread cannot be interrupted, but what it waits for can
        raise


def journaled(runner: Runner | None, run_dir: str | Path | None) -> Runner:
    """A runner that records its runs, so that a child does not repeat what its change does not touch."""
    if runner is not None and runner.journal is not None:
        return runner
    own = Runner() if runner is None else copy.copy(runner)
    if run_dir is None:
        own.journal = MemoryJournal()
    else:
        Path(run_dir).mkdir(parents=True, exist_ok=True)
        own.journal = SqliteJournal(Path(run_dir) / "runs.db")
    return own


class _Work:
    """One search, in a thread of its own, where GEPA's engine blocks as it likes."""

    def __init__(  # noqa: PLR0917 - the search itself
        self,
        graph: Node[Any, Any],
        metric: Metric | Grader,
        train: Sequence[Example[Any]],
        val: Sequence[Example[Any]],
        budget: Budget,
        options: Options,
        tell: Tell,
    ) -> None:
        from ._adapter import Adapter, prompts_of  # noqa: PLC0415 - GEPA is loaded when it is used

        self.graph, self.budget, self.options, self.tell = graph, budget, options, tell
        self.train, self.val = (
            checked_examples(train, "training examples"),
            checked_examples(val, "validation examples"),
        )
        _check_overlap(self.train, self.val)
        self.stages = Structure.of(graph).stages
        grader = grader_of(metric)
        self.base = options.prompts or Prompts(graph=graph.label)
        self.base.check_known(self.stages, graph.label)
        self.seed = _seed(self.base, self.stages)
        if not self.seed:
            msg = f"no stage of {graph.label} has instructions to tune"
            raise TuningError(msg)
        self.spent = Spent()
        manifest = _manifest(graph, self.seed, grader, self.train, self.val, options)
        folder = None if options.run_dir is None else Path(options.run_dir)
        self.adapter = Adapter(
            graph=graph,
            stages=self.stages,
            base=self.base,
            grader=grader,
            runner=journaled(options.runner, folder),
            model=options.model,
            proposer=_proposer(options, self.spent),
            spent=self.spent,
            store=Store(folder, manifest, self.spent),
            perfect=options.perfect,
            side_by_side=options.side_by_side,
            validation=self.val,
            waits=options.waits,
            tell=tell,
        )
        self._prompts_of = prompts_of

    def run(self) -> Found:
        from gepa.api import optimize  # noqa: PLC0415  # pyright: ignore[reportUnknownVariableType]

        from ._rules import Acceptance, Selector, Stopper  # noqa: PLC0415

        options, adapter = self.options, self.adapter
        step = max(2 * options.minibatch, _MERGE) + len(self.val)
        if self.budget.runs is not None and self.budget.runs < len(self.val):
            msg = (
                f"Budget(runs={self.budget.runs}) does not even pay for the seed on {len(self.val)} validation "
                f"examples; one step more takes up to {step}"
            )
            raise TuningError(msg)
        stopper = Stopper(self.budget, self.spent, step, options.stagnation, adapter, options.perfect)
        error: TuningError | None = None
        try:
            optimize(
                seed_candidate=dict(self.seed),
                trainset=list(self.train),
                valset=list(self.val),
                adapter=adapter,  # pyright: ignore[reportArgumentType]
                frontier_type="hybrid",
                skip_perfect_score=True,
                perfect_score=options.perfect,
                reflection_minibatch_size=options.minibatch,
                module_selector=Selector(options.perfect),  # pyright: ignore[reportArgumentType]
                acceptance_criterion=Acceptance(options.perfect),
                use_merge=options.merge and len(self.seed) > 1,
                stop_callbacks=stopper,
                callbacks=[_Events(self.tell)],  # pyright: ignore[reportArgumentType]
                logger=_Quiet(),
                seed=options.seed,
                raise_on_exception=True,
            )
        except CancelledError:
            raise
        except Exception as raised:  # noqa: BLE001 - what was found until now is worth more than where it broke
            error = _as_tuning_error(raised)
        error = error or adapter.problem
        return self._found(str(error) if error else stopper.reason or "the search ended", error)

    def _found(self, stopped: str, error: TuningError | None) -> Found:
        findings = self.adapter.findings
        if not findings:
            if error is not None:
                raise error
            msg = f"the seed could not be evaluated: {stopped}"
            raise TuningError(msg)
        best = max(
            range(len(findings)), key=lambda i: (round(findings[i].mean, 9), -sum(findings[i].blame.values()), -i)
        )
        return Found(
            seed=self._prompts_of(self.base, self.seed, self.stages),
            candidates=tuple(findings),
            best=best,
            stopped=stopped,
            error=error,
            spent=self.spent,
            prompts=self._prompts_of(self.base, findings[best].texts, self.stages),
        )


class _Events:
    """GEPA's callbacks as plain events."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell

    def on_candidate_accepted(self, event: Mapping[str, Any]) -> None:
        self._tell("accepted", {"iteration": event.get("iteration"), "candidate": event.get("new_candidate_idx")})

    def on_candidate_rejected(self, event: Mapping[str, Any]) -> None:
        self._tell("rejected", {"iteration": event.get("iteration")})


class _Quiet:
    def log(self, message: str) -> None:
        """GEPA's own log is for its developers."""


def _as_tuning_error(error: BaseException) -> TuningError:
    while isinstance(error, BaseExceptionGroup):
        inner: Sequence[BaseException] = error.exceptions
        error = next((one for one in inner if isinstance(one, TuningError)), inner[0])
    if isinstance(error, TuningError):
        return error
    found = TuningError(f"the search broke off: {type(error).__name__}: {error}")
    found.__cause__ = error
    return found


def _seed(base: Prompts, stages: Mapping[str, Any]) -> dict[str, str]:
    """Stage path -> its text now, of the stages that have one."""
    found: dict[str, str] = {}
    for path, stage in stages.items():
        own = base[path].instructions if path in base else None
        text = own if own is not None else stage.instructions
        if text is not None and text.strip():
            found[path] = text
    return found


def _proposer(options: Options, spent: Spent) -> Proposer:
    proposer = options.proposer
    if proposer == "notes":
        return notes_proposer
    if isinstance(proposer, str):
        msg = f"proposer={proposer!r}: it is a function, Candidates(...) or 'notes'"
        raise TuningError(msg)
    if proposer is not None and not callable(proposer):
        msg = f"proposer={proposer!r}: it is a function, Candidates(...) or 'notes'"
        raise TuningError(msg)
    if proposer is not None:
        return proposer
    if options.reflection_model is None:
        msg = "say who writes new texts: reflection_model='openai:gpt-5', or without a model proposer='notes'"
        raise TuningError(msg)
    return reflective_proposer(options.reflection_model, spent, options.waits)


def _check_overlap(train: Sequence[Example[Any]], val: Sequence[Example[Any]]) -> None:
    from stagegraph.example import digest_of  # noqa: PLC0415

    known = {digest_of(one.input): one.id for one in train}
    both = [f"{one.id!r}" for one in val if digest_of(one.input) in known]
    if both:
        some = ", ".join(both[:5])
        msg = f"{len(both)} validation examples are training examples, too ({some}): what was learnt by heart would win"
        raise TuningError(msg)


def _manifest(  # noqa: PLR0917
    graph: Node[Any, Any],
    seed: Mapping[str, str],
    grader: Grader,
    train: Sequence[Example[Any]],
    val: Sequence[Example[Any]],
    options: Options,
) -> dict[str, Any]:
    """What a resumed search has to find unchanged."""
    stages = Structure.of(graph).stages
    return {
        "the graph": graph.label,
        "the stages": {path: [stages[path].takes.fingerprint, stages[path].gives.fingerprint] for path in stages},
        "the texts to start from": _hash(dict(seed)),
        "the training examples": _hash([one.data() for one in train]),
        "the validation examples": _hash([one.data() for one in val]),
        "the metric": [grader.name, _source(grader.metric)],
        "the seed": options.seed,
        "the minibatch": options.minibatch,
        "the model": name_of(options.model),
        "the proposer": _who_writes(options),
    }


def name_of(model: Model[Any] | str | None) -> str | None:
    """A model in a line that another process writes the same way."""
    return model if model is None or isinstance(model, str) else f"{model.system}:{model.model_name}"


def _who_writes(options: Options) -> Any:
    proposer = options.proposer
    if isinstance(proposer, Candidates):
        return {path: list(texts) for path, texts in proposer.texts.items()}
    if proposer is None or isinstance(proposer, str):
        return [proposer, name_of(options.reflection_model)]
    return [getattr(proposer, "__qualname__", type(proposer).__name__), _source(proposer)]


def _hash(value: object) -> str:
    return blake2b(
        json.dumps(value, sort_keys=True, default=repr).encode("utf-8", "replace"), digest_size=8
    ).hexdigest()


def _source(metric: object) -> str:
    try:
        return _hash(inspect.getsource(metric))  # pyright: ignore[reportArgumentType]
    except (OSError, TypeError):
        return ""
