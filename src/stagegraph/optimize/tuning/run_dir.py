"""The directory of one tuning: what it was begun with, and every paid run and proposal.

A killed tuning continues from it without paying again, as long as it finds everything else unchanged.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_ai.toolsets import AbstractToolset, FunctionToolset

from stagegraph.data.examples import digest_of
from stagegraph.data.score import Note, Score
from stagegraph.nodes.graph import BaseGraph
from stagegraph.nodes.stage import Stage
from stagegraph.nodes.step import Step
from stagegraph.optimize.evaluation.fingerprint import Fingerprint
from stagegraph.optimize.evaluation.report import Trial
from stagegraph.optimize.lms.names import model_named, name_of
from stagegraph.record.run import ReplayError, Run, RunError
from stagegraph.runner.identity import stage_parts, step_parts
from stagegraph.schema.errors import TuningError

from .proposers import Candidates, propose

if TYPE_CHECKING:
    import os

    from stagegraph.data.examples import Example
    from stagegraph.nodes.node import Node
    from stagegraph.optimize.evaluation.budget import Spent
    from stagegraph.optimize.evaluation.metric import Grader

    from .components import Target
    from .options import Options
    from .proposers import Proposal, Proposer

_log = logging.getLogger("stagegraph.optimize")
_NAMED = 8
"""Changed facts that an error names."""


class RunDir:
    """Lines of JSON, appended as runs and proposals finish; without a path nothing is kept.

    The search is deterministic. A resumed one starts from the beginning and finds here what it has already paid for.
    """

    def __init__(self, path: str | os.PathLike[str] | None, facts: dict[str, Any]) -> None:
        self._runs: dict[str, list[dict[str, Any]]] = {}
        self._interrupted: dict[str, str] = {}
        self._proposals: dict[str, dict[str, Any]] = {}
        self._file = None if path is None else Path(path) / "paid.jsonl"
        if self._file is not None:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            paid = self._file.exists()
            _check_manifest(self._file.with_name("manifest.json"), facts, paid=paid)
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

    def trial(self, key: str, example: Example[Any], graph: Node[Any, Any]) -> Trial | None:
        """A recorded run with its score; each is returned once."""
        rows = self._runs.get(key)
        if not rows:
            return None
        row = rows.pop(0)
        try:
            run = Run.from_json(row["run"], graph)
        except ReplayError:
            return None
        notes = [Note(**note) for note in row["score"]["notes"]]
        return Trial(example, run, Score(**row["score"] | {"notes": notes}))

    def begin(self, key: str, run_id: str) -> None:
        """Record that a run begins: if the process is killed, the journal has what the run paid for."""
        self._append({"key": key, "begun": run_id})

    def interrupted(self, key: str) -> str | None:
        """The id of a run that an earlier process did not finish."""
        return self._interrupted.pop(key, None)

    def keep(self, key: str, trial: Trial) -> None:
        """Record a finished run with its score."""
        if self._file is None:
            return
        try:
            run = trial.run.to_json()
        except RunError:
            return  # a value has no JSON form, so a resumed search makes this run again
        self._append({"key": key, "run": run, "score": asdict(trial.score)})

    async def proposed(self, proposer: Proposer, proposal: Proposal, spent: Spent) -> str | None:
        """A new text: the recorded one, or one that the proposer writes now."""
        key = digest_of(asdict(proposal))
        known = self._proposals.get(key)
        if known is not None:
            if known["asked"]:
                spent.add_proposal(int(known["tokens"]), known["usd"])
            return known["text"]
        tokens, usd, unpriced, proposals = spent.tokens, spent.usd, spent.unpriced, spent.proposals
        found = await propose(proposer, proposal)
        cost = None if spent.unpriced > unpriced else spent.usd - usd
        asked = spent.proposals > proposals  # a function or a pool costs nothing
        self._append({"key": key, "text": found, "asked": asked, "tokens": spent.tokens - tokens, "usd": cost})
        return found

    def _append(self, row: dict[str, Any]) -> None:
        if self._file is not None:
            with self._file.open("a", encoding="utf-8", errors="replace") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def _check_manifest(file: Path, facts: dict[str, Any], *, paid: bool) -> None:
    """Write the manifest, or make sure that it equals the one under which runs were *paid* for.

    Raises:
        TuningError: it differs, or the file is no manifest.
    """
    try:
        before: Any = json.loads(file.read_text("utf-8")) if file.exists() else None if paid else facts
    except ValueError:
        before = None
    if not isinstance(before, dict) or not facts.keys() & before.keys():
        msg = f"{file}: this is no manifest of a tuning; choose another folder"
        raise TuningError(msg)
    known: dict[str, Any] = {**before}
    changed = [name for name in known | facts if known.get(name) != facts.get(name)]
    if changed and paid:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        msg = (
            f"{file.parent} holds a tuning that cannot go on: since then, {', '.join(changed[:_NAMED])}{more} changed; "
            "choose another `run_dir`, or remove this one to begin anew"
        )
        raise TuningError(msg)
    if not paid:
        file.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def manifest(
    target: Target, grader: Grader, data: Mapping[str, Sequence[Example[Any]]], options: Options
) -> dict[str, Any]:
    """A description in the user's words -> a fact that is equal in every process; *data* are the parts by name."""
    return {
        "the graph": target.name,
        **dict(_program(target, options)),
        "what is tuned": list(options.components),
        "the texts to start from": digest_of(target.seed),
        **{f"the {name} examples": [example_digest(one) for one in rows] for name, rows in data.items()},
        "the metric": [grader.name, _metric(grader, warns=options.run_dir is not None)],
        "the seed": options.seed,
        "the minibatch": options.minibatch,
        "the proposer": _proposer(options),
    }


def example_digest(example: Example[Any]) -> str:
    """A hash of an example's whole content: a corrected example is another one, also with the same id."""
    return digest_of([example.id, example.input, example.expected, dict(example.metadata)])


def _program(target: Target, options: Options) -> Iterator[tuple[str, Any]]:
    """The facts about each node."""
    for path, node in target.graph.__node__.tree.nodes.items():
        types = [node.__node__.input_type.fingerprint, node.__node__.output_type.fingerprint]
        if isinstance(node, BaseGraph):
            name = f"`{path}`" if path else target.name
            yield f"the flow of {name}", [*types, Fingerprint(type(node)).text]
        elif isinstance(node, Step):
            yield f"the step `{path}`", [*types, Fingerprint(node.fn).text, step_parts(node)["the version"]]
        elif isinstance(node, Stage):
            parts = stage_parts(node, target.base.get(path), None)
            named = {"the model": "the model settings"}
            for name, part in parts.items():
                yield f"{named.get(name, name)} of `{path}`", [part, types[0]] if name == "the output type" else part
            yield f"the agent of `{path}`", [Fingerprint(list(_functions(node))).text, node.demos, node.retries]
            # By name: a search whose answers are all recorded resumes also where the model cannot be created.
            chosen = model_named(path, node, options.runner, default=options.model, own=options.models)
            yield f"the model of `{path}`", name_of(chosen)


def _functions(stage: Stage[Any, Any]) -> Iterator[object]:
    """The functions of a stage's agent, as far as they are known before a run."""
    yield stage.render
    agent: Any = stage.agent
    while hasattr(agent, "wrapped"):
        agent = agent.wrapped
    for sourced in getattr(agent, "_instructions", []):
        yield getattr(sourced, "instruction", None)
    for validator in getattr(agent, "_output_validators", []):
        yield getattr(validator, "function", None)
    found: list[object] = []

    def look(toolset: AbstractToolset[Any]) -> None:
        if isinstance(toolset, FunctionToolset):
            found.extend(tool.function for _, tool in sorted(toolset.tools.items()))

    for toolset in agent.toolsets:
        toolset.apply(look)
    yield from found


def _metric(grader: Grader, *, warns: bool) -> str:
    found = Fingerprint(grader.metric)
    if found.unknown and warns:
        _log.warning(
            "the metric %s holds %s, which cannot be looked into: when that changes, a tuning that goes on from its "
            "`run_dir` does not notice",
            grader.name,
            ", ".join(f"a {kind}" for kind in dict.fromkeys(found.unknown)),
        )
    return found.text


def _proposer(options: Options) -> Any:
    proposer = options.proposer
    if isinstance(proposer, Candidates):
        return {path: list(texts) for path, texts in proposer.texts.items()}
    if proposer is None or isinstance(proposer, str):
        return [proposer, name_of(options.reflection_model)]
    return [getattr(proposer, "__qualname__", type(proposer).__name__), Fingerprint(proposer).text]
