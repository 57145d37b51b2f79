"""Two candidates that are good at different stages, put together."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic_ai import Agent
from rules import rows, searched, tuned

from stagegraph import Example, Graph, Run, Score, Stage
from stagegraph.optimize import Budget, Proposal

pytestmark = pytest.mark.anyio


class Two(Graph[str, str]):
    a = Stage(str, Agent(instructions="a: begin"))
    b = Stage(str, Agent(instructions="b: end"))

    async def flow(self, text: str) -> str:
        return await self.b(await self.a(text))


def judged(example: Example[str], run: Run[str, str]) -> Score:
    """Half of the examples are about one stage, half about the other; a short instruction is worth something, too.

    The last keeps the seed in the running, so that both stages are repaired in it and not one after the other.
    """
    wrong = [call.path for call in run.calls() if call.output.endswith("no")]
    stage = "a" if int(example.id[-1]) % 2 else "b"
    kept = "alone" if len(wrong) == 2 else "not alone"
    short = {"short": -float("aok" in run.output) - float("bok" in run.output)}
    return Score(float(stage not in wrong), [run.call(path).note(kept) for path in wrong if path == stage], short)


def repair(proposal: Proposal) -> str | None:
    """Repairs a stage only where the other one is not repaired: no candidate can get both but by a merge."""
    if any("not alone" in record["feedback"] for record in proposal.records):
        return None
    return f"{proposal.path}: RULE-{proposal.path}"


KNOWN: dict[str, Any] = {
    "graph": Two(),
    "train": rows("t", 6),
    "val": rows("v", 6),
    "budget": Budget(runs=400),
    "proposer": repair,
    "stagnation": 40,
}


@pytest.mark.parametrize("lowest", [0, -3])
async def test_two_halves_make_a_whole(lowest: int) -> None:
    """The merged candidate is run on all validation examples and names both parents, also where scores are low."""
    told: list[Mapping[str, Any]] = []

    def metric(example: Example[str], run: Run[str, str]) -> Score:
        score = judged(example, run)
        return Score(score.value + lowest, score.notes, score.objectives)

    def callback(event: str, data: Mapping[str, Any]) -> None:
        if event == "accepted":
            told.append(data)

    found = await searched(metric, perfect=1.0 + lowest, callback=callback, **KNOWN)
    assert found.error is None
    assert [one.parents for one in found.candidates] == [(), (0,), (0,), (1, 2)]
    assert [one.mean - lowest for one in found.candidates] == [0, 0.5, 0.5, 1]
    merged = found.candidates[found.best]
    assert merged.texts == {"a": "a: RULE-a", "b": "b: RULE-b"}
    assert len(merged.rows) == 6
    assert [data["parents"] for data in told] == [(0,), (0,), (1, 2)]


async def test_without_merging_each_half_stays_alone() -> None:
    """`merge=False` is obeyed."""
    found = await searched(judged, **KNOWN | {"stagnation": 20}, merge=False)
    assert max(one.mean for one in found.candidates) == 0.5
    assert all(len(one.parents) < 2 for one in found.candidates)


async def test_a_merge_is_in_the_report(tmp_path: Path) -> None:
    """What is written beside the prompts says what each candidate was made of."""
    result = await tuned(judged, **KNOWN)
    assert result.found.changed == ("a", "b")
    result.save(tmp_path / "best.yaml")
    lines = (tmp_path / "best.tuning.json").read_text("utf-8").split()
    assert '"parents":[1,2]' in "".join(lines)


async def test_a_merge_on_as_few_examples_as_it_is_tried_on() -> None:
    """With five validation examples the trial may be all of them, and is still no candidate by itself."""
    for seed in range(4):
        found = await searched(judged, **KNOWN | {"val": rows("v", 5)}, seed=seed)
        assert found.candidates[found.best].parents == (1, 2)
        assert len(found.candidates) == 4


async def test_a_search_goes_the_same_way_in_every_process() -> None:
    """One seed is one search: Python salts the hashes of texts anew in every process, and no merge hangs on that."""
    command = [sys.executable, str(Path(__file__).with_name("wandering.py"))]
    processes = (anyio.run_process(command, env={**os.environ, "PYTHONHASHSEED": salt}, stderr=None) for salt in "02")
    ways = [json.loads(done.stdout) for done in await asyncio.gather(*processes)]
    assert sum(len(parents) == 2 for _, parents in ways[0][1:]) > 2
    assert ways[1] == ways[0]
