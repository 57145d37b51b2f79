"""Evaluations: each run judged once, reports that can be kept, and what is nobody's score."""

import asyncio
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from rules import Chain, rows, separate, student
from words import asked, before, shaky

from stagegraph import (
    Example,
    Graph,
    Prompt,
    PromptError,
    Prompts,
    Run,
    Runner,
    Stage,
    StageError,
    TuningError,
    settle,
)
from stagegraph.journal import MemoryJournal
from stagegraph.optimize import GraphModule, Report, ReportRow, evaluate
from stagegraph.tracing import JournalRuns

pytestmark = pytest.mark.anyio

ROWS = rows("x", 4)


def report(scores: dict[str, list[float]], **fields: Any) -> Report:
    """A report with these scores, repeat by repeat."""
    known: dict[str, Any] = {"run_id": "r", "status": "succeeded", "seconds": 1.0, "cost": 0.5}
    return Report(
        graph="G",
        metric="m",
        prompts_digest="",
        created="2026-01-01",
        rows=tuple(
            ReportRow(example=example, repeat=repeat, score=score, **known | fields)
            for example, values in scores.items()
            for repeat, score in enumerate(values)
        ),
    )


async def test_a_report_has_a_row_for_every_run_in_the_order_of_the_examples() -> None:
    """Scores, notes by stage, money and tokens of each run are kept, whichever run ended first."""
    found = await evaluate(Chain(), separate, ROWS, model=student(cost="0.01")[0], repeats=2)
    assert [(row.example, row.repeat) for row in found.rows] == [(row.id, n) for n in range(2) for row in ROWS] or [
        (row.example, row.repeat) for row in found.rows
    ] == [(row.id, n) for row in ROWS for n in range(2)]
    assert found.mean == 0
    assert found.notes == {"b": 16, "a": 8, "c": 8}
    assert found.cost == pytest.approx(8 * 0.04)
    assert found.dollars(0.9) == pytest.approx(0.04)
    assert {row.requests for row in found.rows} == {4}
    assert {row.tokens for row in found.rows} == {60}
    assert "notes for b | 16" in found.table()


async def test_the_metric_is_asked_once_a_run() -> None:
    """Also when it is slow, async, or a judge that costs money; `on_row` hears of every run, for a progress bar."""
    asked: Counter[str] = Counter()
    heard: list[ReportRow] = []

    async def metric(_example: Example[str], run: Run[str, str]) -> bool:
        asked[run.id] += 1
        return True

    found = await evaluate(Chain(), metric, ROWS, model=student()[0], repeats=3, on_row=heard.append)
    assert len(asked) == 12
    assert {row.run_id: row for row in heard} == {row.run_id: row for row in found.rows}
    assert set(asked.values()) == {1}
    assert found.mean == 1


async def test_an_outage_is_no_score_and_leaves_what_was_found() -> None:
    """A provider that stays away ends the evaluation with an error that carries the rows until then."""
    model = shaky(student()[0], ModelHTTPError(429, "student"), lambda number: number > 10)[0]
    with pytest.raises(TuningError, match="that is no score") as raised:
        await evaluate(Chain(), separate, ROWS, model=model, concurrency=1, retry_delays=(0, 0))
    partial: Report = raised.value.report  # type: ignore[attr-defined]
    assert [row.example for row in partial.rows] == ["x-0", "x-1"]


class Sure(Graph[list[str], int]):
    """It goes on without what fails: once for good, once by trying again itself."""

    each = Stage(str, Agent(instructions="each"))
    last = Stage(str, Agent(instructions="last"))

    async def flow(self, texts: list[str]) -> int:
        found = sum(outcome.ok for outcome in await settle(self.each, texts))
        for _ in range(2):
            with suppress(StageError):
                return found + len(await self.last("x"))
        return found


@pytest.mark.parametrize(
    ("stage", "fails", "waits", "asked_for", "mean"),
    [
        ("each", 0, (0, 0), {"each": 2, "last": 1}, 3),
        ("each", 1, (0, 0), {"each": 4, "last": 2}, 3),
        ("each", 99, (0, 0), {"each": 6, "last": 3}, 2),
        ("each", 1, (), {"each": 2, "last": 1}, 2),
        ("last", 1, (0, 0), {"each": 2, "last": 2}, 3),
    ],
)
@pytest.mark.parametrize("status", [503, 401])
async def test_a_graph_that_copes_with_an_outage_is_run_again(  # noqa: PLR0917
    stage: str, fails: int, waits: tuple[float, ...], asked_for: dict[str, int], mean: float, status: int
) -> None:
    """Its score would be the provider's; what will not pass, and what it repaired itself, is left as it is."""
    count: Counter[str] = Counter()

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        name = info.instructions or ""
        count[name] += 1
        bad = asked(messages) == "bad" or name == "last"
        if name == stage and bad and count[f"{name} failed"] < fails:
            count[f"{name} failed"] += 1
            raise ModelHTTPError(status, "student")
        return ModelResponse([TextPart("y")])

    def number(_example: Example[Any], run: Run[Any, int]) -> float:
        return run.output

    model = FunctionModel(answer)
    report = await evaluate(Sure(), number, [Example(["good", "bad"])], model=model, retry_delays=waits)
    if status == 503:
        assert {name: count[name] for name in ("each", "last")} == asked_for
        assert report.mean == mean
    else:
        assert count["each"] == 2
    if stage == "each" and status == 503:
        before = dict(count)
        count.clear()
        prediction = await asyncio.to_thread(
            GraphModule(Sure(), model=model, retry_delays=waits), input=["good", "bad"]
        )
        assert (prediction.output, dict(count)) == (mean, before)


async def test_a_retry_with_a_journal_pays_only_for_the_rest() -> None:
    """What an attempt had paid for before the provider failed is not asked again."""
    model, requests = student()
    failed: list[int] = []

    def act(_messages: list[ModelMessage], info: AgentInfo) -> None:
        if (info.instructions or "").startswith("c") and not failed:
            failed.append(1)
            raise ModelHTTPError(503, "student")

    runner = Runner(journal=MemoryJournal())
    found = await evaluate(Chain(), separate, ROWS[:1], model=before(model, act), runner=runner, retry_delays=(0,))
    assert found.failures == []
    assert requests == {"a": 1, "b": 2, "c": 1}


def test_the_numbers_of_a_report() -> None:
    """The mean is over examples, the spread over repeats, percentiles by nearest rank, the unknown stays unknown."""
    found = report({"a": [0, 1], "b": [1, 1]})
    assert found.mean == 0.75
    assert found.spread == 0.25
    assert found.seconds(0.9) == 1
    assert found.cost == 2
    assert report({"a": [1]}, cost=None).cost is None
    assert "| cost | unknown |" in report({"a": [1]}, cost=None).table()
    low, high = report({str(n): [n % 2] for n in range(40)}).interval
    assert 0.3 < low < 0.5 < high < 0.7
    assert "0.750" in repr(found)


async def test_a_report_is_the_same_after_saving_and_loading(tmp_path: Path) -> None:
    """Whatever the values are made of."""
    found = await evaluate(Chain(), separate, rows("\u2028ü</script>", 2), model=student()[0])
    found.save(tmp_path / "report.json")
    assert Report.load(tmp_path / "report.json") == found
    values = {"raw": b"\xff", "far": float("inf"), "it": object()}  # written as what they look like
    found = await evaluate(Chain(), lambda *_: 1, [Example("x", expected=values)], model=student()[0])
    found.save(tmp_path / "values.json")
    assert Report.load(tmp_path / "values.json").mean == 1
    odd = report({"a": [1]}, input={"x": [1, None]}, output="\ud800", notes=(("a", "t", 1.0),), stages=("a",))
    odd.save(tmp_path / "odd.json")
    assert Report.load(tmp_path / "odd.json").notes == {"a": 1}


EMPTY = '{"format": 1, "graph": "G", "metric": "m", "prompts_digest": "", "created": "2026-01-01", "rows": []}'


@pytest.mark.parametrize(
    ("text", "message"),
    [*((text, "") for text in ("", "[]", "{}", '{"format": 9}', '{"format": 1, "rows": []}', "null", "\x00")),
     (EMPTY, "has no rows")],
)  # fmt: skip
def test_what_is_no_report_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """The error names the file; without rows, there is no mean."""
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(TuningError, match=rf"r\.json.*{message}"):
        Report.load(tmp_path / "r.json")
    with pytest.raises(TuningError, match=r"none\.json"):
        Report.load(tmp_path / "none.json")


async def test_scores_are_kept_with_the_runs_when_asked_for() -> None:
    """The journal has each run's score, and nobody who learns from recorded runs takes these for real ones."""
    journal = MemoryJournal()
    runner = Runner(student()[0], journal=journal)
    await evaluate(Chain(), separate, ROWS, runner=runner, record=True)
    source = JournalRuns(journal)
    assert [run async for run in source.runs(Chain())] == []
    runs = [run async for run in source.runs(Chain(), experiments=True)]
    assert [(one.name, one.value) for run in runs for one in run.feedback] == [("separate", 0.0)] * len(ROWS)
    with pytest.raises(TuningError, match="a journal"):
        await evaluate(Chain(), separate, ROWS, model=student()[0], record=True)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"examples": []}, TuningError, "there are no examples"),
        ({"examples": [*ROWS, ROWS[0]]}, TuningError, "do not: 'x-0'"),
        ({"examples": [Example(3, id="3")]}, TuningError, "examples: '3' does not fit str, which Chain takes"),
        ({"examples": [*ROWS, "a"]}, TuningError, "number 5 is str, not an Example"),
        ({"graph": Chain}, TuningError, r"not <class '.*Chain'>; write Chain\(\)"),
        ({"metric": lambda *_: 1 / 0}, TuningError, "raised ZeroDivisionError"),
        ({"repeats": 0}, TuningError, "repeats=0: at least 1 is needed"),
        ({"concurrency": 0}, TuningError, "concurrency=0: at least 1 is needed"),
        ({"concurrency": 1.5}, TuningError, "concurrency=1.5: it is a whole number"),
        ({"prompts": Prompts({"nope": Prompt("x")})}, PromptError, "there is no stage `nope`"),
        ({"runner": Runner(prompts=Prompts({"nope": Prompt("x")}))}, PromptError, "there is no stage `nope`"),
        ({"on_row": lambda _: 1 / 0}, ZeroDivisionError, "division by zero"),
    ],
)
async def test_a_mistake_is_one_error(options: dict[str, Any], error: type[Exception], message: str) -> None:
    """However many runs it ended: never a group of errors, and never a wait for ever. It says what is wrong."""
    given: dict[str, Any] = {"graph": Chain(), "metric": separate, "examples": ROWS, **options}
    with pytest.raises(error, match=message):
        await evaluate(given.pop("graph"), given.pop("metric"), given.pop("examples"), model=student()[0], **given)


async def test_a_report_is_a_page_with_the_worst_examples_first(tmp_path: Path) -> None:
    """Nothing of it is taken for markup."""
    found = report({"good": [1.0], "<i>bad": [0.0, 0.2]})
    found.html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text("utf-8")
    assert "<i>" not in text
    assert text.index("&lt;i&gt;bad") < text.index("good</h2>")
    assert "<p>0.200</p>" in text
    found.html(tmp_path / "page.html", examples=1)
    assert "good</h2>" not in (tmp_path / "page.html").read_text("utf-8")
