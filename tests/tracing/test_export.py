"""The command line over recorded runs of a journal and of Langfuse: listed, shown, and exported as data."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from langfuse_server import LangfuseServer

from stagegraph.cli import main

GRAPH = """
import asyncio, sys
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel
from stagegraph import Graph, RunError, Runner, Stage, fan_out, feedback, step
from stagegraph.journal import SqliteJournal

class Words(BaseModel):
    text: str

def answer(messages, info):
    text = str(messages[0].parts[0].content)
    if "bad" in text:
        raise ValueError("no")
    return ModelResponse([TextPart("even" if len(text) % 2 == 0 else "odd")])

@step
async def cut(words: Words) -> list[str]:
    return words.text.split()

class Parity(Graph[Words, list[str]]):
    cut = cut
    say = Stage(str, Agent(), model=FunctionModel(answer))
    async def flow(self, words: Words) -> list[str]:
        return await fan_out(self.say, await self.cut(words))

async def main():
    runner = Runner(journal=SqliteJournal("runs.db"))
    for name, text in (("r1", "a bb ccc dddd"), ("r2", "bad"), ("r3", "eeeee f\\u2028 a")):
        try:
            await runner.run(Parity(), Words(text=text), run_id=name, tags=(name,), user_id="u", session_id="s")
        except RunError:
            pass
    await runner.run(Parity.say, "alone", run_id="r4")
    await feedback("r1", "good", 0.9, runner=runner)
    await feedback("r1", "good", 0.1, key="say[0]", runner=runner)
    await feedback("r1", "correction", '"ODD"', key="say[0]", runner=runner)
    if runner.tracing is not None:
        assert await runner.tracing.flush(30)
    await runner.journal.aclose()

if __name__ == "__main__":
    asyncio.run(main())
"""


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


Cli = Callable[..., Done]


@pytest.fixture(name="recorded", scope="module")
def _recorded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, LangfuseServer]]:
    """A folder with a graph and a journal, and a server with the same runs."""
    folder = tmp_path_factory.mktemp("recorded")
    (folder / "graph.py").write_text(GRAPH, encoding="utf-8")
    with LangfuseServer() as server:
        environment = {**os.environ, **server.variables}
        subprocess.run([sys.executable, "graph.py"], cwd=folder, env=environment, check=True, timeout=60)
        yield folder, server


@pytest.fixture(name="folder")
def _folder(tmp_path: Path, recorded: tuple[Path, LangfuseServer], monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the folder, to work in."""
    for name in ("graph.py", "runs.db"):
        shutil.copy(recorded[0] / name, tmp_path)
    monkeypatch.chdir(tmp_path)
    for name, value in {**recorded[1].variables, "NO_COLOR": "1", "STAGEGRAPH_JOURNAL": "runs.db"}.items():
        monkeypatch.setenv(name, value)
    return tmp_path


@pytest.fixture(name="cli")
def _cli(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    """The command line in this folder."""

    def cli(*words: str, check: bool = True) -> Done:
        monkeypatch.setattr(sys, "argv", ["stagegraph", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        code = ended.value.code
        assert isinstance(code, int)
        done = Done(code, *capsys.readouterr())
        assert done.returncode == 0 or not check, done.stderr
        return done

    return cli


def rows(name: str = "out.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(name).read_text("utf-8").split("\n") if line]


def test_both_sources_give_the_same_files(cli: Cli) -> None:
    """Whole runs, one stage, and what was chosen of them, from the journal or from Langfuse."""
    for options, count in (
        ((), 2),
        (("--stage", "say"), 6),
        (("--stage", "cut", "--since", "1h", "--user", "u", "--session", "s"), 3),
        (("--stage", "say", "--score", "good", "--max-score", "0.5"), 1),
        (("--score", "good", "--min-score", "0.5"), 1),
        (("--stage", "say", "--score", "correction"), 1),
        (("--tag", "r3"), 1),
        (("--tag", "r3", "--tag", "r1"), 0),
        (("--stage", "say", "--limit", "3"), 3),
        (("--limit", "0"), 0),
        (("--until", "1h"), 0),
    ):
        done = [
            cli("export", "graph.py", "--out", f"{name}.jsonl", *options, *more)
            for name, more in (("journal", ()), ("langfuse", ("--langfuse",)))
        ]
        assert f"wrote {count} examples to journal.jsonl" in done[0].stderr
        assert rows("journal.jsonl") == rows("langfuse.jsonl")
        assert len(rows("journal.jsonl")) == count
        assert not done[0].stdout


def test_what_is_left_out_is_said(cli: Cli) -> None:
    """Corrections are what is expected, and nothing disappears without a word."""
    done = cli("export", "graph.py", "--out", "out.jsonl", "--stage", "say", "--langfuse")
    expected = {row["input"]: row["expected"] for row in rows()}
    assert expected == {"a": "ODD", "bb": "even", "ccc": "odd", "dddd": "even", "eeeee": "odd", "f": "odd"}
    assert "left out 1: the same input again" in done.stderr
    assert "left out 1: it failed, and nobody corrected it" in done.stderr


def test_examples_are_dealt_out(cli: Cli) -> None:
    """Into one file a part, each with its share of each kind, the same way each time."""
    options = ("--stage", "say", "--split", "train=0.5, test=0.5", "--split-by", "corrected", "--out", "data/out.jsonl")
    Path("data").mkdir()
    done = cli("export", "graph.py", *options)
    assert not (Path("data") / "out.jsonl").exists()
    parts = {name: rows(f"data/out.{name}.jsonl") for name in ("train", "test")}
    assert sorted(len(part) for part in parts.values()) == [3, 3]
    assert "wrote 3 examples to data/out.train.jsonl" in done.stderr
    kinds = [Counter(row["metadata"]["corrected"] for row in part) for part in parts.values()]
    assert sorted(kind[False] for kind in kinds) == [2, 3]
    cli("export", "graph.py", *options, "--langfuse")
    assert parts == {name: rows(f"data/out.{name}.jsonl") for name in ("train", "test")}
    cli("export", "graph.py", *options, "--seed", "5")
    assert parts != {name: rows(f"data/out.{name}.jsonl") for name in ("train", "test")}


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["export", "graph.py"], 2, "Missing option"),
        (["export", "graph.py", "--out", "o", "--stage", "sya"], 1, "did you mean `say`"),
        (["export", "nowhere", "--out", "o"], 1, "no folder, file or module"),
        (["export", "graph.py", "--out", "no/o"], 2, "there is no folder no"),
        (["export", "graph.py", "--out", "o", "--journal", "none.db"], 1, "there is no journal"),
        (["export", "graph.py", "--out", "o", "--since", "yesterday"], 2, "is no time"),
        (["export", "graph.py", "--out", "o", "--since", "9999999d"], 2, "is no time"),
        (["export", "graph.py", "--out", "o", "--until", "9" * 400 + "d", "--langfuse"], 2, "is no time"),
        (["export", "graph.py", "--out", "o", "--limit", "-1"], 2, "--limit"),
        (["export", "graph.py", "--out", "o", "--min-score", "much"], 2, "--min-score"),
        (["export", "graph.py", "--out", "o", "--environment", "e"], 1, "does not know"),
        (["export", "graph.py", "--out", "o", "--split-by", "team"], 2, "--split"),
        *(
            (["export", "graph.py", "--out", "o", "--split", split], 2, "is no split")
            for split in ("", "train", "train=x", "train=0", "=1", "a=1,a=2", "a=nan", "a=inf", "a=1,", "../a=1")
        ),
        (["runs", "--langfuse", "--since", "9999999d"], 2, "is no time"),
        (["runs", "--langfuse", "--status", "odd"], 2, "is no status"),
        (["show", "nope", "--langfuse"], 1, "has no run 'nope'"),
        (["show", "r1", "--langfuse", "--call", "sya[0]"], 1, "did you mean `say[0]`"),
    ],
)
def test_a_mistake_is_explained(folder: Path, cli: Cli, words: list[str], code: int, said: str) -> None:
    """Exit code 1 for what failed and 2 for how it was asked, in a line on standard error; nothing is written."""
    done = cli(*words, check=False)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    assert not (folder / "o").exists()


def test_a_server_that_cannot_be_read_is_explained(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """Wrong keys and none are named, and so is the server that is away; the keys are not told."""
    words = ("export", "graph.py", "--out", "o", "--langfuse")
    monkeypatch.setenv("LANGFUSE_SECRET_KEY", "sk-lf-wrong")
    for command in (words, ("runs", "--langfuse"), ("show", "last", "--langfuse")):
        done = cli(*command, check=False)
        assert (done.returncode, "check LANGFUSE_PUBLIC_KEY" in done.stderr) == (1, True)
        assert "sk-lf-wrong" not in done.stderr
        assert "Traceback" not in done.stderr
    monkeypatch.delenv("LANGFUSE_SECRET_KEY")
    done = cli(*words, check=False)
    assert (done.returncode, "set LANGFUSE_PUBLIC_KEY" in done.stderr) == (1, True)


def test_runs_of_langfuse_are_listed_and_shown(cli: Cli) -> None:
    """The same commands as for a journal give the same, without one."""
    for options in (
        (),
        ("--status", "failed"),
        ("--graph", "Parity"),
        ("--graph", "say"),
        ("--limit", "2"),
        ("--score", "good", "--min-score", "0.5"),
        ("--since", "1h", "--graph", "Nothing"),
    ):
        journal, langfuse = (
            [json.loads(line) for line in cli("runs", "--json", *options, *more).stdout.splitlines()]
            for more in ((), ("--langfuse",))
        )
        kept = ("run_id", "graph", "status", "requests", "error", "feedback", "cost")
        assert [{name: row[name] for name in kept} for row in journal] == [
            {name: row[name] for name in kept} for row in langfuse
        ]
    Path("runs.db").unlink()
    assert "r4" in cli("show", "last", "--langfuse").stdout
    shown = cli("show", "r1", "--langfuse").stdout
    assert "say[3]" in shown
    assert "feedback good=0.9" in shown
    assert "dddd" in cli("show", "r1", "--langfuse", "--call", "say[3]").stdout
    assert json.loads(cli("show", "r2", "--langfuse", "--json").stdout)["run"]["status"] == "failed"
    cli("show", "r1", "--langfuse", "--html", "page.html")
    assert "say[2]" in Path("page.html").read_text("utf-8")


def test_an_empty_project_has_no_runs(cli: Cli, server: LangfuseServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is said, not shown as an error of ours."""
    monkeypatch.setenv("LANGFUSE_BASE_URL", server.url)
    assert "no runs" in cli("runs", "--langfuse").stdout
    done = cli("show", "last", "--langfuse", check=False)
    assert (done.returncode, "there are no runs" in done.stderr) == (1, True)
