"""Recorded runs: resumed, replayed, suspended, scored, pruned, and safe in files that anything may happen to."""

import asyncio
import json
import os
import sqlite3
import stat
import subprocess
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ToolDenied
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from forked import Process, python
from scripted import careful
from stagegraph import (
    DeclarationError,
    Graph,
    JournalError,
    LimitError,
    Limits,
    Prompt,
    Prompts,
    ReplayError,
    RunError,
    Runner,
    Stage,
    fan_out,
    feedback,
    gather,
    settle,
    step,
)
from stagegraph.journal import FeedbackRow, Journal, RunFilter, RunRow, SqliteJournal
from stagegraph.record.labels import Labels
from stagegraph.record.rows import EXPERIMENT


class Text(BaseModel):
    text: str


class Model:
    """Answers with what it was asked, counts, and fails where it is told to."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.fails: set[str] = set()

    def __call__(self, messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        text = str(messages[0].parts[0].content)  # type: ignore[union-attr]
        self.asked.append(text)
        if text in self.fails:
            raise ConnectionError(text)
        return ModelResponse([TextPart(f"{text}!")])


stepped: list[str] = []


@step
async def shout(text: str) -> Text:
    stepped.append(text)
    return Text(text=text.upper())


class Flow(Graph[list[str], list[Text]]):
    first = Stage(str, Agent(instructions="First."))
    second = Stage(str, Agent(instructions="Second."))
    shout = shout

    async def branch(self, text: str) -> Text:
        return await self.shout(await self.second(await self.first(text)))

    async def flow(self, texts: list[str]) -> list[Text]:
        return await fan_out(self.branch, texts, limit=1)


@pytest.fixture(name="model")
def _model() -> Model:
    stepped.clear()
    return Model()


async def test_a_failed_run_goes_on_where_it_stood(journal: Journal, model: Model) -> None:
    """What was answered before the failure is not asked again, and the record is whole afterwards."""
    runner = Runner(FunctionModel(model), journal=journal)
    model.fails = {"b!"}
    with pytest.raises(RunError):
        await runner.run(Flow(), ["a", "b", "c"], run_id="r")
    model.fails = set()
    asked = list(model.asked)
    run = await runner.resume("r")
    assert [text.text for text in run.output] == ["A!!", "B!!", "C!!"]
    assert model.asked[len(asked) :] == ["b!", "c", "c!"]
    assert stepped == ["a!!", "b!!", "c!!"]
    assert run.usage.requests == 6
    assert [call.key for call in run.calls() if call.replayed] == ["first[0]", "first[1]", "second[0]", "shout[0]"]
    again = await runner.resume("r")
    assert again.output == run.output
    assert len(model.asked) == len(asked) + 3


async def test_a_limit_and_a_cancellation_interrupt_a_run_that_resume_finishes(journal: Journal, model: Model) -> None:
    """A reached limit is no failure of the call it stopped; a cancelled run goes on as well."""
    runner = Runner(FunctionModel(model), journal=journal)
    with pytest.raises(LimitError):
        await runner.run(Flow(), ["a", "b"], run_id="r", limits=Limits(requests=3))
    with pytest.raises(LimitError):
        await runner.resume("r")
    run = await runner.resume("r", limits=Limits(requests=4))
    assert len(model.asked) == 4
    assert run.status == "succeeded"
    live = runner.start(Flow(), ["x"], run_id="c")
    async for event in live.events():
        if event.type == "call_finished" and event.key == "first[0]":
            await live.cancel()
    row = await journal.run("c")
    assert row is not None
    assert (row.status, row.owner) == ("cancelled", None)
    model.asked.clear()
    await runner.resume("c")
    assert model.asked.count("x") == 0


async def test_replay_asks_only_what_changed(journal: Journal, model: Model) -> None:
    """Nothing changed: no request. One prompt changed: that stage, and what depends on its new outputs."""
    runner = Runner(FunctionModel(model), journal=journal)
    first = await runner.run(Flow(), ["a", "b"])
    model.asked.clear()
    same = await runner.run(Flow(), ["a", "b"], replay=first)
    assert model.asked == []
    assert (same.output, same.usage.requests, same.cost) == (first.output, 0, 0)
    changed = await runner.run(Flow(), ["a", "b"], replay=first.id, prompts=Prompts({"second": Prompt("New.")}))
    assert model.asked == ["a!", "b!"]
    assert changed.rerun == {"second[0]": "the prompt", "second[1]": "the prompt"}
    model.asked.clear()
    await runner.run(Flow(), ["a", "z"], replay=first)
    assert model.asked == ["z", "z!"]


async def test_what_if_one_call_had_given_something_else(journal: Journal, model: Model) -> None:
    """The named call gets the given output, and only what depends on it runs again."""
    runner = Runner(FunctionModel(model), journal=journal)
    first = await runner.run(Flow(), ["a", "b"])
    model.asked.clear()
    run = await runner.run(Flow(), ["a", "b"], replay=first, override={"second[1]": "given"})
    assert [text.text for text in run.output] == ["A!!", "GIVEN"]
    assert model.asked == []
    run = await runner.run(Flow(), ["a"], override={"shout[0]": {"text": "made"}})
    assert run.output == [Text(text="made")]
    with pytest.raises(ReplayError, match=r"`shout\[9\]`"):
        await runner.run(Flow(), ["a"], override={"shout[9]": Text(text="x")})
    model.asked.clear()
    with pytest.raises(ReplayError, match=r"`shuot\[0\]`, and Flow has no such stage or step; did you mean `shout`\?"):
        await runner.run(Flow(), ["b"], override={"shuot[0]": Text(text="x")})
    assert model.asked == []  # it is said before anything is paid for


async def test_a_changed_program_is_noticed(journal: Journal, model: Model) -> None:
    """Resuming replays what still fits and says what did not; `strict` refuses instead."""
    runner = Runner(FunctionModel(model), journal=journal)
    model.fails = {"b"}
    with pytest.raises(RunError):
        await runner.run(Flow(), ["a", "b"], run_id="r")
    model.fails, model.asked = set(), []

    class Changed(Flow):
        first = Stage(str, Agent(instructions="First."), version=2)

    with pytest.raises(ReplayError, match=r"`first\[0\]` differs from its record: the version changed"):
        await runner.resume("r", graph=Changed(), strict=True)
    run = await runner.resume("r", graph=Changed())
    assert run.rerun["first[0]"] == "the version"
    assert model.asked.count("a") == 1
    assert model.asked.count("a!") == 0


def wants_to_delete(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    results = [part for m in messages for part in m.parts if isinstance(part, ToolReturnPart)]
    text = str(messages[0].parts[0].content)  # type: ignore[union-attr]
    if "fine" in text:
        return ModelResponse([TextPart("fine")])
    if not results:
        return ModelResponse([ToolCallPart("delete", {"path": text}, tool_call_id="same")])
    return ModelResponse([TextPart(f"{text}: {results[-1].content}")])


class Tidy(Graph[list[str], list[str]]):
    clean = Stage(str, careful)

    async def flow(self, texts: list[str]) -> list[str]:
        return await fan_out(self.clean, texts)


class TidyPairs(Tidy):
    async def flow(self, texts: list[str]) -> list[str]:
        first, rest = await gather(self.clean(texts[0]), settle(self.clean, texts[1:]))
        return [first, *(outcome.value for outcome in rest)]


@pytest.mark.parametrize("graph", [Tidy(), TidyPairs()])
async def test_a_question_suspends_the_run_after_the_others_finished(journal: Journal, graph: Tidy) -> None:
    """Branches that can go on do; answers may come one by one, in another runner; the rest stays suspended."""
    run = await Runner(FunctionModel(wants_to_delete), journal=journal).run(graph, ["a", "fine", "b"], run_id="r")
    assert run.status == "suspended"
    assert sorted(call.status for call in run.calls()) == ["succeeded", "suspended", "suspended"]
    one, two = run.pending
    assert (one.tool, one.args, one.kind) == ("delete", {"path": "a"}, "approval")
    other = Runner(FunctionModel(wants_to_delete), journal=journal)
    with pytest.raises(ReplayError, match="several calls ask `same`"):
        await other.resume("r", graph=graph, answers={"same": True})
    with pytest.raises(ReplayError, match="no call asks `x`"):
        await other.resume("r", graph=graph, answers={"x": True})
    run = await other.resume("r", graph=graph, answers={one.id: True})
    assert (run.status, [pending.id for pending in run.pending]) == ("suspended", [two.id])
    run = await other.resume("r", graph=graph, answers={two.id: ToolDenied("no")})
    assert run.output == ["a: a is gone", "fine", "b: no"]


async def test_without_a_journal_a_question_is_an_error() -> None:
    """Nobody could answer later: the error says what to do."""
    with pytest.raises(RunError, match="journal"):
        await Runner(FunctionModel(wants_to_delete)).run(Tidy(), ["a"])
    with pytest.raises(DeclarationError, match="journal"):
        await Runner().resume("r")


async def test_scores_are_stored_with_the_run(journal: Journal, model: Model) -> None:
    """Feedback for a run or a call; the same name replaces; runs are found by it; mistakes are named."""
    runner = Runner(FunctionModel(model), journal=journal)
    await runner.run(Flow(), ["a"], run_id="r")
    await runner.run(Flow(), ["b"], run_id="other")
    await feedback("r", "helpful", 0.5, runner=runner)
    await feedback("r", "helpful", 0.75, comment="better", runner=runner)
    await feedback("r", "right", True, key="shout[0]", runner=runner)
    run = await runner.resume("r")
    assert [(f.name, f.value, f.key, f.comment) for f in run.feedback] == [
        ("helpful", 0.75, None, "better"),
        ("right", True, "shout[0]", None),
    ]
    found = await journal.runs(RunFilter(feedback="helpful", min_score=0.7))
    assert [row.run_id for row in found] == ["r"]
    assert await journal.runs(RunFilter(feedback="helpful", min_score=0.8)) == []
    for name, key in (("nope", None), ("r", "shout[9]")):
        with pytest.raises(JournalError, match=r"there is no run|has no call"):
            await feedback(name, "x", 1, key=key, runner=runner)
    with pytest.raises(DeclarationError, match="finite"):
        await feedback("r", "x", float("nan"), runner=runner)


LISTED = [
    ("one", "Flow", "succeeded", {"user_id": "ann", "tags": ("a", "b"), "metadata": {"odd": float("nan")}}),
    ("two", "Flow", "failed", {"user_id": 'q"\\', "session_id": "s", "tags": ("b",)}),
    ("three", "Other", "running", {"metadata": {EXPERIMENT: {"name": "e"}}}),
    ("four", "Flow", "running", {}),
]


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, "four three two one"),
        ({"limit": 2}, "four three"),
        ({"limit": None, "graph": "Flow"}, "four two one"),
        ({"status": "failed"}, "two"),
        ({"status": "running"}, "four"),
        ({"status": "interrupted"}, "three"),
        ({"since": 2.0, "until": 3.0}, "three two"),
        ({"before": (3.0, "three")}, "two one"),
        ({"before": (3.0, "zz")}, "three two one"),
        ({"user": "ann"}, "one"),
        ({"user": 'q"\\'}, "two"),
        ({"session": "s"}, "two"),
        ({"tags": ("b",)}, "two one"),
        ({"tags": ("a", "b")}, "one"),
        ({"experiments": False}, "four two one"),
        ({"feedback": "good"}, "two one"),
        ({"feedback": "good", "min_score": 1}, "one"),
        ({"feedback": "correction", "max_score": 9.0}, "two"),
        ({"min_score": 0.5}, "one"),
        ({"max_score": 0.5}, "three two"),
        ({"feedback": "word", "min_score": 0}, ""),
    ],
    ids=str,
)
async def test_runs_are_found(journal: Journal, wanted: dict[str, Any], found: str) -> None:
    """By what a run is, by its labels and by its scores: the newest first, and the same in every journal."""
    for place, (name, graph, status, labels) in enumerate(LISTED, 1):
        own, text = journal.owner if name == "four" else None, Labels(**labels).to_json()
        row = RunRow(run_id=name, graph=graph, status=status, started=place, input="1", labels=text, owner=own)
        await journal.put(row)
    for place, (run, name, value) in enumerate(
        [
            ("one", "good", "true"),
            ("two", "good", "0.25"),
            ("two", "correction", "7"),
            ("three", "bad", "false"),
            ("four", "word", '"5"'),
        ]
    ):
        score = FeedbackRow(id=str(place), run_id=run, key=None, name=name, value=value, comment=None, time=1.0)
        await journal.put(score)
    assert [row.run_id for row in await journal.runs(RunFilter(**wanted))] == found.split()


async def test_a_run_id_is_taken_once(journal: Journal, model: Model) -> None:
    """Two runs cannot share an id, and a run that goes on cannot be resumed beside itself."""
    runner = Runner(FunctionModel(model), journal=journal)
    await runner.run(Flow(), ["a"], run_id="r")
    with pytest.raises(JournalError, match="is taken"):
        await runner.run(Flow(), ["a"], run_id="r")
    gate = asyncio.Event()

    async def waits(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        await gate.wait()
        return ModelResponse([TextPart("x")])

    slow = Runner(FunctionModel(waits), journal=journal)
    live = slow.start(Flow(), ["a"], run_id="live")
    async for event in live.events():
        if event.type == "call_started" and event.key == "first[0]":
            break
    with pytest.raises(JournalError, match="already running in this process"):
        await slow.resume("live")
    gate.set()
    await live.result()


async def test_nothing_secret_reaches_the_file(tmp_path: Path) -> None:
    """Redacted values and secret settings are nowhere in the file or its log, and only its owner may read it."""
    path = tmp_path / "runs.db"

    def redact(value: Any) -> Any:
        return json.loads(json.dumps(value).replace("hunter2", "***"))

    journal = SqliteJournal(path, redact=redact)
    stage = Stage(str, Agent(instructions="hunter2"), model_settings={"extra_headers": {"authorization": "sk-secret"}})

    class Secret(Graph[str, str]):
        ask = stage

        async def flow(self, text: str) -> str:
            return await self.ask(text)

    await Runner(FunctionModel(Model()), journal=journal).run(Secret(), "my password is hunter2")
    found = b"".join(file.read_bytes() for file in list(tmp_path.iterdir()))  # noqa: ASYNC240
    await journal.aclose()
    assert b"my password is ***" in found
    assert b"hunter2" not in found
    assert b"sk-secret" not in found
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_locked_file_fails_the_run_and_keeps_its_record(tmp_path: Path, model: Model) -> None:
    """Another program that holds the file: a clear error, the answers are in the error's run, and later ones work."""
    path = tmp_path / "runs.db"
    journal = SqliteJournal(path, timeout=0.2)
    runner = Runner(FunctionModel(model), journal=journal)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(RunError, match="another program holds the file") as caught:
        await runner.run(Flow(), ["a"])
    assert caught.value.run.calls()
    other.execute("ROLLBACK")
    other.close()
    run = await runner.run(Flow(), ["a"])
    assert run.status == "succeeded"
    await journal.aclose()


async def test_a_full_disk_fails_the_run_and_loses_nothing(tmp_path: Path) -> None:
    """Where nothing more can be written the run ends with the reason, and what was recorded is still there."""
    code = f"""
import asyncio, resource, signal
from stagegraph import Graph, RunError, Runner, step
from stagegraph.journal import SqliteJournal
@step
async def big(size: int) -> str:
    return "x" * size
class Fill(Graph[list[int], int]):
    big = big
    async def flow(self, sizes: list[int]) -> int:
        for size in sizes:
            await self.big(size)
        return 0
async def main():
    journal = SqliteJournal({str(tmp_path / "runs.db")!r})
    runner = Runner(journal=journal)
    await runner.run(Fill(), [10], run_id="before")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
    try:
        await runner.run(Fill(), [100_000] * 9, run_id="full")
    except RunError as error:
        print(error, len(error.run.calls()))
asyncio.run(main())
"""
    done = python("-c", code)
    assert "journal failed" in done.stdout, done.stderr
    journal = SqliteJournal(tmp_path / "runs.db")
    row = await journal.run("before")
    assert row is not None
    assert row.status == "succeeded"
    await journal.aclose()


async def test_a_damaged_page_is_a_clear_error(tmp_path: Path, model: Model) -> None:
    """Flipped bytes in the file: the error names the file and how to save what is left."""
    path = tmp_path / "runs.db"
    journal = SqliteJournal(path)
    runner = Runner(FunctionModel(model), journal=journal)
    await runner.run(Flow(), ["a" * 3_000, "b" * 3_000], run_id="r")
    await journal.aclose()
    data = bytearray(path.read_bytes())
    for start in range(4096, len(data), 4096):
        data[start : start + 200] = os.urandom(200)
    path.write_bytes(data)
    with pytest.raises(JournalError, match=r"damaged|no journal"):
        await SqliteJournal(path).calls("r")


async def test_a_truncated_log_loses_only_what_was_cut(tmp_path: Path, model: Model) -> None:
    """A write-ahead log that ends in the middle: what was whole before the cut is there."""
    path = tmp_path / "runs.db"
    journal = SqliteJournal(path)
    runner = Runner(FunctionModel(model), journal=journal)
    await runner.run(Flow(), ["a"], run_id="one")
    log = tmp_path / "runs.db-wal"
    whole = log.stat().st_size
    await runner.run(Flow(), ["b"], run_id="two")
    copy = tmp_path / "copy.db"
    copy.write_bytes(path.read_bytes())
    (tmp_path / "copy.db-wal").write_bytes(log.read_bytes()[: whole + 100])
    await journal.aclose()
    saved = SqliteJournal(copy)
    assert [row.status for row in await saved.runs(RunFilter())] == ["succeeded"]
    assert len(await saved.calls("one")) == 4
    await saved.aclose()


async def test_two_processes_share_a_file_and_one_of_them_wins_a_run(tmp_path: Path) -> None:
    """Two processes resume the same interrupted run at once: one finishes it, the other is told."""
    path = tmp_path / "runs.db"
    code = """
import asyncio, os, sys
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel
from stagegraph import Graph, JournalError, Runner, Stage
from stagegraph.journal import SqliteJournal
class One(Graph[str, str]):
    ask = Stage(str, Agent())
    async def flow(self, text: str) -> str:
        return await self.ask(text)
async def model(messages, info):
    print("asked", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    return ModelResponse([TextPart("x")])
async def main():
    journal = SqliteJournal(sys.argv[1])
    runner = Runner(FunctionModel(model), journal=journal)
    try:
        if sys.argv[2] == "run":
            await runner.run(One(), "?", run_id="r")
        else:
            print((await runner.resume("r", graph=One())).output, flush=True)
    except JournalError as error:
        print("refused:", error, flush=True)
    await journal.aclose()
asyncio.run(main())
"""

    def start(what: str) -> Process:
        return Process("-c", code, path, what, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    first = start("run")
    assert first.stdout is not None
    assert first.stdout.readline() == "asked\n"
    first.kill()
    first.communicate()
    winner = start("resume")
    assert winner.stdout is not None
    assert winner.stdout.readline() == "asked\n"
    loser = start("resume")
    said, _ = loser.communicate(timeout=60)
    assert "refused: run 'r' is already running" in said
    said, _ = winner.communicate("\n", timeout=60)
    assert said == "x\n"
