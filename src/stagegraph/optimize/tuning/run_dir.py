"""The directory of one tuning: every paid run and proposal, so that a killed tuning continues without paying again."""

from __future__ import annotations

import json
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from stagegraph.data.score import Note, Score
from stagegraph.optimize.evaluation.report import Trial
from stagegraph.record.run import ReplayError, Run, RunError
from stagegraph.schema.errors import TuningError

from .manifest import example_digest
from .proposers import propose

if TYPE_CHECKING:
    import os

    from stagegraph.data.examples import Example
    from stagegraph.nodes.node import Node
    from stagegraph.optimize.evaluation.budget import Spent

    from .proposers import Proposal, Proposer

__all__ = ["Purpose", "RunDir"]

Purpose = Literal["trace", "fresh", "verdict"]
"""What a run is for: only a `trace` may reuse calls of another candidate; a `verdict` is not part of the budget."""
_NAMED = 8
"""Changed facts that an error names."""


class RunDir:
    """Lines of JSON, appended as runs and proposals finish; without a path nothing is kept.

    The search is deterministic. A resumed one starts from the beginning and finds here what it has already paid for.
    """

    def __init__(self, path: str | os.PathLike[str] | None, manifest: dict[str, Any]) -> None:
        self._runs: dict[str, list[dict[str, Any]]] = {}
        self._interrupted: dict[str, str] = {}
        self._proposals: dict[str, dict[str, Any]] = {}
        self._file: Path | None = None
        if path is None:
            return
        folder = Path(path)
        folder.mkdir(parents=True, exist_ok=True)
        self._file = folder / "paid.jsonl"
        paid = self._file.exists()
        _check_manifest(folder / "manifest.json", manifest, paid=paid)
        if paid:
            self._read(self._file)

    def _read(self, file: Path) -> None:
        lines = file.read_text("utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):  # the process was killed in the middle of a line
            file.write_text("".join(whole), encoding="utf-8")
        for line in whole:
            try:
                row: dict[str, Any] = json.loads(line)
            except ValueError:
                continue
            key = str(row["key"])
            if "run" in row:
                self._runs.setdefault(key, []).append(row)
                self._interrupted.pop(key, None)
            elif "begun" in row:
                self._interrupted[key] = str(row["begun"])
            else:
                self._proposals[key] = row

    @property
    def resumes(self) -> bool:
        """Whether an earlier process began this tuning."""
        return bool(self._runs or self._interrupted or self._proposals)

    def trial(self, purpose: Purpose, candidate: str, example: Example[Any], graph: Node[Any, Any]) -> Trial | None:
        """A recorded run with its score; each is returned once."""
        rows = self._runs.get(_key(purpose, candidate, example))
        if not rows:
            return None
        row = rows.pop(0)
        try:
            run = Run.from_json(row["run"], graph)
        except ReplayError:
            return None
        score = row["score"]
        notes = [Note(*note) for note in score["notes"]]
        spent = {"cost": score.get("cost", 0.0), "tokens": score.get("tokens", 0)}
        return Trial(example, run, Score(score["value"], notes, score["objectives"], **spent))

    def begin(self, purpose: Purpose, candidate: str, example: Example[Any], run_id: str) -> None:
        """Record that a run begins: if the process is killed, the journal has what the run paid for."""
        self._append({"key": _key(purpose, candidate, example), "begun": run_id})

    def interrupted(self, purpose: Purpose, candidate: str, example: Example[Any]) -> str | None:
        """The id of a run that an earlier process did not finish."""
        return self._interrupted.pop(_key(purpose, candidate, example), None)

    def keep(self, purpose: Purpose, candidate: str, trial: Trial) -> None:
        """Record a finished run with its score."""
        if self._file is None:
            return
        try:
            run = trial.run.to_json()
        except RunError:
            return  # a value has no JSON form, so a resumed search makes this run again
        score = trial.score
        kept = {
            "value": score.value,
            "notes": [[note.target, note.text, note.weight] for note in score.notes],
            "objectives": dict(score.objectives),
            "cost": score.cost,
            "tokens": score.tokens,
        }
        self._append({"key": _key(purpose, candidate, trial.example), "run": run, "score": kept})

    async def proposed(self, proposer: Proposer, proposal: Proposal, spent: Spent) -> str | None:
        """A new text: the recorded one, or one that the proposer writes now."""
        text = json.dumps([asdict(proposal) | {"tried": sorted(proposal.tried)}], sort_keys=True, default=str)
        key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        known = self._proposals.get(key)
        if known is not None:
            if known["asked"]:
                spent.add_proposal(int(known["tokens"]), known["usd"])
            return known["text"]
        before = (spent.tokens, spent.usd, spent.unpriced, spent.proposals)
        found = await propose(proposer, proposal)
        tokens, usd, unpriced, proposals = before
        cost = None if spent.unpriced > unpriced else spent.usd - usd
        asked = spent.proposals > proposals  # a function or a pool costs nothing
        self._append({"key": key, "text": found, "asked": asked, "tokens": spent.tokens - tokens, "usd": cost})
        return found

    def _append(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8", errors="replace") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _key(purpose: Purpose, candidate: str, example: Example[Any]) -> str:
    return f"{purpose}:{candidate}:{example.id}:{example_digest(example)}"


def _check_manifest(file: Path, manifest: dict[str, Any], *, paid: bool) -> None:
    """Write the manifest, or make sure that it equals the one under which runs were *paid* for.

    Raises:
        TuningError: it differs, or the file is no manifest.
    """
    try:
        before: Any = json.loads(file.read_text("utf-8")) if file.exists() else None if paid else manifest
    except ValueError:
        before = None
    if not isinstance(before, dict) or not manifest.keys() & before.keys():
        msg = f"{file}: this is no manifest of a tuning; choose another folder"
        raise TuningError(msg)
    known: dict[str, Any] = {**before}
    changed = [name for name in known | manifest if known.get(name) != manifest.get(name)]
    if changed and paid:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        msg = (
            f"{file.parent} holds a tuning that cannot go on: since then, {', '.join(changed[:_NAMED])}{more} changed; "
            "choose another `run_dir`, or remove this one to begin anew"
        )
        raise TuningError(msg)
    if not paid:
        file.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
