"""A correction that a user gives over HTTP becomes an expected output, or is refused when it is given."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

from serving import app_for, served
from stagegraph import Graph, Runner, TuningError, fan_out, load_examples, save_examples, step
from stagegraph.journal import MemoryJournal
from stagegraph.optimize import evaluate
from stagegraph.tracing import JournalRuns


class Label(BaseModel):
    name: str
    sure: float


@step
async def count(text: str) -> int:
    return len(text)


@step
async def label(text: str) -> Label:
    return Label(name=text[:1], sure=0.5)


class Sort(Graph[str, Label]):
    """Label a text by its longest word."""

    count = count
    label = label

    async def flow(self, text: str) -> Label:
        lengths = await fan_out(self.count, text.split())
        return await self.label(text[: max(lengths)])


FITS: list[tuple[str | None, Any]] = [
    (None, '{"name": "x", "sure": 1}'),
    ("label", '{"name": "x", "sure": 1}'),
    ("count[0]", 7),
    ("count[0]", "7"),
]
MISFITS: list[tuple[str | None, Any, str]] = [
    (None, '{"name": "x"}', "sure: Field required"),
    (None, "x", "a mapping"),
    (None, '["x"]', "a mapping"),
    (None, "[" * 9000, "a mapping"),
    (None, 1, "a mapping"),
    (None, True, "a mapping"),
    ("label", '{"name": "x", "sure": "very"}', "sure: "),
    ("count[0]", "seven", "integer"),
    ("count[0]", 0.5, "integer"),
]


@pytest.mark.parametrize(("key", "value", "reason"), [(*one, None) for one in FITS] + MISFITS)
def test_a_correction_fits_or_is_refused(key: str | None, value: Any, reason: str | None):
    """With the reason; what was accepted is never left out of an export."""
    journal = MemoryJournal()
    runner = Runner(journal=journal, tracing=None)
    app = app_for(Sort(), runner)
    with served(app) as client:
        run_id = client.post("/runs", json="a text").json()["run_id"]
        place = f"/runs/{run_id}/feedback"
        answer = client.post(place, json={"name": "correction", "value": value, "key": key})
        assert answer.status_code == (422 if reason else 204), answer.text
        assert client.post(place, json={"name": "another", "value": value, "key": key}).status_code == 204
        assert client.post(place, json={"name": "correction", "value": value, "key": "no"}).status_code == 404
    if reason is not None:
        assert answer.json()["detail"].startswith("a correction is the expected output, ")
        assert reason in answer.json()["detail"]
        assert answer.json()["type"] == "urn:stagegraph:problem:invalid"
        return
    source = JournalRuns(journal)
    stage = {"count": Sort.count, "label": Sort.label}.get((key or "").partition("[")[0])
    found: Any = asyncio.run(source.examples(Sort(), stage=stage, score="correction"))
    assert [one.metadata["corrected"] for one in found] == [True]
    assert found[0].expected in (7, Label(name="x", sure=1))
    assert not source.skipped


def same(example: Any, run: Any) -> bool:
    return run.output == Label.model_validate(example.expected)


def test_what_nobody_corrected_is_no_measure(tmp_path: Path):
    """A model that repeats its own answers would score 1; who has another use for such examples says so."""

    async def both() -> None:
        journal = MemoryJournal()
        runner = Runner(journal=journal, tracing=None)
        await runner.run(Sort(), "a text", run_id="a")
        await runner.run(Sort(), "b text", run_id="b")
        save_examples(await JournalRuns(journal).examples(Sort()), tmp_path / "all.jsonl")
        examples = load_examples(tmp_path / "all.jsonl", Sort())
        with pytest.raises(TuningError, match=r"2 of 2 examples expect the model's own answer.*accept_own_answers"):
            await evaluate(Sort(), same, examples)
        assert (await evaluate(Sort(), same, examples, accept_own_answers=True)).mean == 1

    asyncio.run(both())
    rows = [json.loads(line) for line in (tmp_path / "all.jsonl").read_text("utf-8").splitlines()]
    assert [row["metadata"]["corrected"] for row in rows] == [False, False]
