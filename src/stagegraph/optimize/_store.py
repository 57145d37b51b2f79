"""The folder of one tuning: every run and every proposal that was paid for, so that a killed one goes on for free."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from stagegraph.data.score import Note, Score
from stagegraph.record.run import ReplayError, Run, RunError
from stagegraph.schema.errors import TuningError

from ._manifest import digest_of_example
from .blame import Judged

if TYPE_CHECKING:
    from stagegraph.data.examples import Example
    from stagegraph.nodes.node import Node

    from .budget import Spent
    from .proposers import Proposal, Proposer

__all__ = ["Store"]

_NAMED = 8
"""Things that changed, of which an error tells."""
Ask = Callable[["Proposer", "Proposal"], Awaitable["str | None"]]


class Store:
    """Lines of JSON, appended as things happen; without a folder it forgets.

    The search itself is deterministic, so it is begun again from the start when it is resumed, and finds here what it
    has done before: no state of it has to be trusted, only data.
    """

    def __init__(self, folder: Path | None, manifest: dict[str, Any], spent: Spent) -> None:
        self._file = None if folder is None else folder / "paid.jsonl"
        self._spent = spent
        self._runs: dict[str, list[dict[str, Any]]] = {}
        self._begun: dict[str, str] = {}
        self._texts: dict[str, dict[str, Any]] = {}
        if folder is None or self._file is None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        paid = self._file.exists()
        _keep_manifest(folder / "manifest.json", manifest, paid=paid)
        if paid:
            self._read(self._file)

    def _read(self, file: Path) -> None:
        lines = file.read_text("utf-8").splitlines(keepends=True)
        whole = [line for line in lines if line.endswith("\n")]
        if len(whole) < len(lines):  # the process ended in the middle of a line
            file.write_text("".join(whole), encoding="utf-8")
        for line in whole:
            try:
                row = cast("dict[str, Any]", json.loads(line))
            except ValueError:
                continue
            if "run" in row:
                self._runs.setdefault(str(row["key"]), []).append(row)
                self._begun.pop(str(row["key"]), None)
            elif "begun" in row:
                self._begun[str(row["key"])] = str(row["begun"])
            else:
                self._texts[str(row["key"])] = row

    @property
    def known(self) -> bool:
        """Whether anything was begun before."""
        return bool(self._runs or self._begun or self._texts)

    async def judged(self, kind: str, candidate: str, example: Example[Any], graph: Node[Any, Any]) -> Judged | None:
        """A run that was made and judged before, each once."""
        rows = self._runs.get(_key(kind, candidate, example))
        if not rows:
            return None
        row = rows.pop(0)
        try:
            run = Run.from_json(row["run"], graph)
        except ReplayError:
            return None
        score = row["score"]
        spent = {"cost": score.get("cost", 0.0), "tokens": score.get("tokens", 0)}
        notes = [Note(*note) for note in score["notes"]]
        return Judged(example, run, Score(score["value"], notes, score["objectives"], **spent))

    def begin(self, kind: str, candidate: str, example: Example[Any], run_id: str) -> None:
        """Write down that a run begins: what it pays for is in the journal if the process ends in its middle."""
        self._append({"key": _key(kind, candidate, example), "begun": run_id})

    def begun(self, kind: str, candidate: str, example: Example[Any]) -> str | None:
        """The id of a run that an earlier process did not finish."""
        return self._begun.pop(_key(kind, candidate, example), None)

    def keep(self, kind: str, candidate: str, judged: Judged) -> None:
        """Write down a run that was made and judged."""
        if self._file is None:
            return
        try:
            run = judged.run.to_json()
        except RunError:
            return  # a value that is no JSON: this run will be made again
        score = judged.score
        notes = [[note.target, note.text, note.weight] for note in score.notes]
        self._append(
            {
                "key": _key(kind, candidate, judged.example),
                "run": run,
                "score": {"value": score.value, "notes": notes, "objectives": dict(score.objectives)}
                | {"cost": score.cost, "tokens": score.tokens},
            }
        )

    async def proposed(self, proposer: Proposer, proposal: Proposal, ask: Ask) -> str | None:
        """A new text, from the proposer or from before."""
        text = json.dumps([asdict(proposal) | {"tried": sorted(proposal.tried)}], sort_keys=True, default=str)
        key = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        known = self._texts.get(key)
        if known is not None:
            if known["asked"]:
                self._spent.add_proposal(int(known["tokens"]), known["usd"])
            return cast("str | None", known["text"])
        tokens, usd, unpriced = self._spent.tokens, self._spent.usd, self._spent.unpriced
        proposals = self._spent.proposals
        found = await ask(proposer, proposal)
        cost = None if self._spent.unpriced > unpriced else self._spent.usd - usd
        asked = self._spent.proposals > proposals  # not of a function or a pool, which cost nothing
        self._append({"key": key, "text": found, "asked": asked, "tokens": self._spent.tokens - tokens, "usd": cost})
        return found

    def _append(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8", errors="replace") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _key(kind: str, candidate: str, example: Example[Any]) -> str:
    """A run by what it is of: an example that was corrected is another one, though it keeps its id."""
    return f"{kind}:{candidate}:{example.id}:{digest_of_example(example)}"


def _keep_manifest(file: Path, manifest: dict[str, Any], *, paid: bool) -> None:
    """Write down what is tuned, or make sure that it is what was *paid* for here before."""
    try:
        before = json.loads(file.read_text("utf-8")) if file.exists() else manifest if not paid else None
    except ValueError:
        before = None
    if not isinstance(before, dict) or not manifest.keys() & before.keys():
        msg = f"{file}: this is no manifest of a tuning; choose another folder"
        raise TuningError(msg)
    known = cast("dict[str, Any]", before)
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
