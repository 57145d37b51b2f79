"""Runs of candidates on examples, and new texts; nothing is paid for twice, also not after a crash."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stagegraph.data.examples import digest_of, in_parallel
from stagegraph.data.score import Note, Score
from stagegraph.journal import MemoryJournal, SqliteJournal
from stagegraph.optimize.evaluation.budget import BudgetReached, Spent
from stagegraph.optimize.evaluation.evaluate import run_example
from stagegraph.optimize.evaluation.report import Trial
from stagegraph.record.run import ReplayError, Run, RunError
from stagegraph.runner.runner import Runner

from .manifest import check_manifest, example_digest, manifest
from .proposers import propose, proposer_of

if TYPE_CHECKING:
    from stagegraph.data.examples import Example
    from stagegraph.data.prompts import Prompts
    from stagegraph.optimize.evaluation.metric import Grader

    from .components import Target, Texts
    from .options import Options
    from .proposers import Proposal

Purpose = Literal["trace", "fresh", "verdict"]
"""What a run is for: only a `trace` may reuse calls of another candidate; a `verdict` is not part of the budget."""


class Trials:
    """Runs candidates on the background loop while the budget lasts.

    With a `run_dir`, finished runs and proposals are appended to a file there. The search is deterministic: a resumed
    one starts from the beginning and finds in the file what it has already paid for.
    """

    def __init__(
        self, target: Target, grader: Grader, options: Options, data: Mapping[str, Sequence[Example[Any]]]
    ) -> None:
        self.target, self.grader, self.options, self.spent = target, grader, options, Spent()
        self._paid: dict[str, list[dict[str, Any]]] = {}
        """Key -> rows of the file: finished runs, the one that was interrupted, proposals."""
        self._file = None if options.run_dir is None else Path(options.run_dir) / "paid.jsonl"
        if self._file is not None:
            check_manifest(self._file, manifest(target, grader, data, options))
            self._read(self._file)
        self.resumes = bool(self._paid)
        """Whether an earlier process began this tuning."""
        self._proposer = proposer_of(
            options.proposer, options.reflection_model, target.components, options.retry_delays
        )
        self.runner, self._journal = self._with_journal()
        self._newest: dict[str, Run[Any, Any]] = {}
        """Example -> its newest `trace` run, from which a child reuses calls."""
        self._traced: dict[str, Trial] = {}
        """Key of a run -> the `trace` run."""

    def _with_journal(self) -> tuple[Runner, MemoryJournal | SqliteJournal | None]:
        """The runner with a journal, so that a child does not repeat calls that its change does not touch."""
        given = self.options.runner
        if given is not None and given.journal is not None:
            return given, None
        runner = Runner(tracing=None) if given is None else copy.copy(given)
        journal = MemoryJournal() if self._file is None else SqliteJournal(self._file.with_name("runs.db"))
        runner.journal = journal
        return runner, journal

    async def aclose(self) -> None:
        """Close the journal that was opened for this tuning."""
        if self._journal is not None:
            await self._journal.aclose()

    async def of(self, batch: Sequence[Example[Any]], candidate: Texts, purpose: Purpose) -> list[Trial]:
        """Run a candidate on all examples concurrently, as far as the budget lasts; a `verdict` is no part of it."""
        name, prompts = digest_of(dict(candidate)), self.target.prompts(candidate)
        found: dict[int, Trial] = {}
        missing: dict[str, list[int]] = {}
        keys = [f"{purpose}:{name}:{one.id}:{example_digest(one)}" for one in batch]
        for place, (key, example) in enumerate(zip(keys, batch, strict=True)):
            known = self._traced.get(key) or self._recorded(key, example, purpose)
            if known is not None:
                found[place] = known
            else:  # GEPA fills a minibatch up with examples that are already in it: their `trace` is made once
                missing.setdefault(key if purpose == "trace" else str(place), []).append(place)
        reached: list[str] = []

        async def make(places: list[int]) -> None:
            limit = None if purpose == "verdict" else self.spent.reached(self.options.budget)
            if limit is not None:
                reached.append(limit)
                return
            trial = await self._run(keys[places[0]], prompts, batch[places[0]], purpose)
            found.update(dict.fromkeys(places, trial))

        await in_parallel([partial(make, places) for places in missing.values()], self.options.concurrency)
        if reached:
            raise BudgetReached(reached[0])
        return [found[place] for place in range(len(batch))]

    async def _run(self, key: str, prompts: Prompts, example: Example[Any], purpose: Purpose) -> Trial:
        newest = self._newest.get(example.id) if purpose == "trace" else None
        run = await run_example(
            self.runner,
            self.target.graph,
            example,
            model=self.options.model,
            models=self.options.models,
            prompts=prompts,
            retry_delays=self.options.retry_delays,
            replay=await self._journaled(self._taken(key, "begun").get("begun"), newest.id if newest else None),
            # If the process is killed, the journal has what the run paid for.
            begin=lambda run_id: self._append({"key": key, "begun": run_id}),
        )
        trial = Trial(example, run, await self.grader(example, run))
        if self._file is not None:
            with suppress(RunError):  # a value has no JSON form, so a resumed search makes this run again
                self._append({"key": key, "run": run.to_json(), "score": asdict(trial.score)})
        return self._counted(key, trial, purpose)

    def _counted(self, key: str, trial: Trial, purpose: Purpose) -> Trial:
        spent, example = self.spent, trial.example.id
        if purpose != "verdict":
            spent.add_run(trial.run, trial.score)
        if purpose == "trace":
            self._traced[key] = trial
            self._newest[example] = trial.run
        costs = {"runs": spent.runs, "usd": spent.usd, "unpriced": spent.unpriced}
        self.options.report("run", example=example, score=trial.score.value, kind=purpose, **costs)
        return trial

    async def _journaled(self, *run_ids: str | None) -> str | None:
        """The first of these runs that the journal has."""
        journal = self.runner.journal
        for run_id in run_ids:
            if journal is not None and run_id is not None and await journal.run(run_id) is not None:
                return run_id
        return None

    async def proposed(self, proposal: Proposal) -> str | None:
        """A new text: the recorded one, or one that the proposer writes now."""
        key = digest_of(asdict(proposal))
        row = self._taken(key, "text", "asked", "tokens", "usd")
        if not row:
            row = asdict(await propose(self._proposer, proposal))
            self._append({"key": key, **row})
        if row["asked"]:
            self.spent.add_proposal(int(row["tokens"]), row["usd"])
        return row["text"]

    def _recorded(self, key: str, example: Example[Any], purpose: Purpose) -> Trial | None:
        """A recorded run with its score, if it can be read."""
        row = self._taken(key, "run")
        try:
            notes = [Note(**note) for note in row["score"]["notes"]]
            score = Score(**row["score"] | {"notes": notes})
            trial = Trial(example, Run.from_json(row["run"], self.target.graph), score)
        except (ReplayError, TypeError, ValueError, KeyError):
            return None
        return self._counted(key, trial, purpose)

    def _append(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")  # escaped, so that half a surrogate pair comes back as it was

    def _read(self, file: Path) -> None:
        lines = file.read_text("utf-8").splitlines(keepends=True) if file.exists() else []
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):  # the process was killed in the middle of a line
            file.write_text("".join(whole), encoding="utf-8")
        for line in whole:
            with suppress(ValueError, TypeError, KeyError):
                row: dict[str, Any] = json.loads(line)
                before = self._paid.get(str(row["key"]), [])
                self._paid[str(row["key"])] = [one for one in before if "begun" not in one] + [row]

    def _taken(self, key: str, *fields: str) -> dict[str, Any]:
        """The next recorded row with these fields; each is returned once."""
        rows = self._paid.get(key, [])
        for place, row in enumerate(rows):
            if {*fields} <= row.keys():
                return rows.pop(place)
        return {}
