"""`eval`, `compare` and `tune` as a shell user and a CI job meet them."""

import json
import os
import pty
import re
from pathlib import Path

import pytest

from forked import Process, cli

GRAPH = """
from pydantic_ai import Agent
from pydantic_ai.messages import ModelResponse, TextPart
from pydantic_ai.models.function import FunctionModel
from stagegraph import Graph, Score, Stage

def answer(messages, info):
    text = str(messages[-1].parts[-1].content)
    return ModelResponse([TextPart(text.upper() if "in capitals" in info.instructions else text)])

class Loud(Graph[str, str]):
    say = Stage(str, Agent(instructions="Say it."), model=FunctionModel(answer))
    async def flow(self, text: str) -> str:
        return await self.say(text)

def exact(example, run):
    good = run.output == example.expected
    return Score(float(good), [] if good else [run.calls()[0].note("Answer in capitals.")])

def broken(example, run):
    raise ValueError("no")
"""

JUDGE = """
from pydantic_ai.messages import ModelResponse, ToolCallPart
from pydantic_ai.models.function import FunctionModel
from stagegraph.optimize import judge

def verdict(messages, info):
    given = {"reason": "odd", "notes": [{"target": "say", "text": "louder"}], "score": 0.25}
    return ModelResponse([ToolCallPart(info.output_tools[0].name, given)])

loud = judge(FunctionModel(verdict), "It is in capitals.", name="loud")
"""


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    (tmp_path / "graph.py").write_text(GRAPH, encoding="utf-8")
    for name, count in (("train", 4), ("val", 3), ("test", 7)):
        rows = [
            {"id": f"{name}{n}", "input": f"{name} {n}", "expected": f"{name} {n}".upper(), "split": "odd" if n % 2 else "even"}
            for n in range(count)
        ]  # fmt: skip
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def test_an_evaluation_is_tuned_compared_and_guarded(folder: Path) -> None:
    """The whole way: evaluate, tune, evaluate again, compare, and exit codes that a CI job understands."""
    first = cli(folder, "eval", "graph.py", "graph.py:exact", "test.jsonl", "--out", "before.json")
    assert first.returncode == 0, first.stderr
    assert "| mean score | 0.000" in first.stdout
    assert "| notes for say | 7 |" in first.stdout

    words = (*WORDS, "--test", "test.jsonl", "--runs", "40", "--out", "best.yaml", "--run-dir", "dir")
    tuned = cli(folder, *words, "--yes")
    assert tuned.returncode == 0, tuned.stderr
    assert "up to 40 runs" in tuned.stdout
    assert "better by 1.00 to 1.00; 7 won" in tuned.stdout
    assert "Answer in capitals." in (folder / "best.yaml").read_text("utf-8")
    again = cli(folder, *words)
    assert again.returncode == 0, again.stderr

    second = cli(
        folder, "eval", "graph.py", "graph:exact", "test.jsonl", "--prompts", "best.yaml", "--out", "after.json",
        "--min-score", "0.9", "--no-worse-than", "before.json",
    )  # fmt: skip
    assert second.returncode == 0, second.stderr
    assert "against before.json: better by" in second.stdout

    better = cli(folder, "compare", "before.json", "after.json", "--html", "page.html")
    assert better.returncode == 0, better.stderr
    assert "<h1>Loud</h1>" in (folder / "page.html").read_text("utf-8")
    worse = cli(folder, "compare", "after.json", "before.json")
    assert worse.returncode == 3
    assert "worse by" in worse.stdout
    fell = cli(folder, "eval", "graph.py", "graph.py:exact", "test.jsonl", "--no-worse-than", "after.json")
    assert fell.returncode == 3
    low = cli(folder, "eval", "graph.py", "graph.py:exact", "test.jsonl", "--min-score", "0.5")
    assert low.returncode == 3
    assert "0.000 is below 0.5" in low.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("eval", "graph.py", "graph.py:exact", "none.jsonl"), "none.jsonl"),
        (("eval", "graph.py", "graph.py", "test.jsonl"), "say which function"),
        (("eval", "graph.py", "graph.py:exacd", "test.jsonl"), "there is no 'exacd' here"),
        (("eval", "graph.py", "gone.py:exact", "test.jsonl"), "there is no such file"),
        (("eval", "graph.py", "graph.py:broken", "test.jsonl"), "raised ValueError: no"),
        (("eval", "graph.py", "graph.py:exact", "test.jsonl", "--split", "old"), "there are: even, odd"),
        (("compare", "test.jsonl", "test.jsonl"), "no report of an evaluation"),
        (("tune", "graph.py", "graph.py:exact", "--train", "val.jsonl", "--val", "val.jsonl", "--runs", "9", "--yes",
          "--proposer", "notes"), "(in `train`)"),
        (("tune", "graph.py", "graph.py:exact", "--train", "train.jsonl", "--val", "val.jsonl", "--runs", "9", "--yes"),
         "say who writes new texts"),
    ],
)  # fmt: skip
def test_mistakes_are_errors_without_a_traceback(folder: Path, words: tuple[str, ...], message: str) -> None:
    """One line that says what is wrong, and exit code 1."""
    done = cli(folder, *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_metric_a_split_and_repeats_can_be_chosen(folder: Path) -> None:
    """A judge in a file is named like a function; only these rows are run, each as often as asked for."""
    (folder / "judges.py").write_text(JUDGE, encoding="utf-8")
    done = cli(folder, "eval", "graph.py", "judges.py:loud", "test.jsonl")
    assert done.returncode == 0, done.stderr
    for said in ("| Loud, loud | |", "| mean score | 0.250", "| notes for say | 7 |"):
        assert said in done.stdout
    done = cli(folder, "eval", "graph.py", "graph.py:exact", "test.jsonl", "--split", "odd", "--repeats", "2")
    assert "| examples | 3, 6 runs, 0 failed |" in done.stdout


WORDS = ("tune", "graph.py", "graph.py:exact", "--train", "train.jsonl", "--val", "val.jsonl", "--proposer", "notes")


def on_a_terminal(folder: Path, *words: str, answer: bytes = b"") -> str:
    """What a person sees, without colours and movements of the cursor."""
    ours, theirs = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "100", "PYDANTIC_AI_NO_BANNER": "1"}
    pipes = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    process = Process("-m", "stagegraph", *words, cwd=folder, env=environment, **pipes)
    os.close(theirs)
    os.write(ours, answer)
    seen = b""
    while True:
        try:
            piece = os.read(ours, 65_536)
        except OSError:  # the other side is closed
            break
        seen += piece
    os.close(ours)
    assert process.wait(60) == 0, seen
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", seen.decode())


def test_a_terminal_shows_what_goes_on_and_a_file_does_not(folder: Path) -> None:
    """What is being written and tried, the best score, the money; where nobody looks there are results alone."""
    seen = on_a_terminal(folder, *WORDS, "--runs", "40", answer=b"y\n")
    question, _, after = seen.partition("Begin? [y/N]:")
    assert "up to 40 runs" in question
    assert "1 texts to change: say" in question
    assert "the texts to start from" not in question
    places = [
        after.index(text) for text in ("best 0.000", "writing `say`", "trying `say`", "best 1.000", "the verdict")
    ]
    assert places == sorted(places)
    assert "cost unknown" in after
    quiet = cli(folder, *WORDS, "--runs", "40", "--yes")
    assert quiet.returncode == 0
    assert quiet.stderr == ""
    assert "writing" not in quiet.stdout
    assert "\x1b" not in quiet.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--val", "train.jsonl"), "(in `train`)"),
        (("--runs", "2"), "does not even pay for the seed"),
        (("--component", "texts"), "it has one or more of 'instructions', 'tools', 'fields'"),
        (("--component", "tools"), "no stage of Loud has tools to tune"),
    ],
)
def test_nothing_is_run_for_a_tuning_that_cannot_begin(folder: Path, words: tuple[str, ...], message: str) -> None:
    """Not even the runs that measure what it may cost."""
    source = (folder / "graph.py").read_text("utf-8")
    told = source.replace("def answer(messages, info):", "def answer(messages, info):\n    open('asked', 'w').close()")
    (folder / "graph.py").write_text(told, encoding="utf-8")
    done = cli(folder, *WORDS, "--runs", "20", "--yes", *words)
    assert done.returncode == 1
    assert message in done.stderr
    assert done.stdout == ""
    assert not (folder / "asked").exists()


def test_a_tuning_asks_before_it_spends(folder: Path) -> None:
    """After the preview, no is no."""
    done = cli(folder, *WORDS, "--runs", "20", stdin="n\n")
    assert done.returncode == 1
    assert "up to 20 runs" in done.stdout
    assert not (folder / "prompts.tuned.yaml").exists()


def test_a_gate_says_before_it_pays_what_it_cannot_show(folder: Path) -> None:
    """Nothing in common is a mistake, and a few examples never show that something is worse."""
    words = ("eval", "graph.py", "graph.py:exact")
    assert cli(folder, *words, "val.jsonl", "--out", "val.json").returncode == 0
    source = (folder / "graph.py").read_text("utf-8")
    told = source.replace("def answer(messages, info):", "def answer(messages, info):\n    open('asked', 'w').close()")
    (folder / "graph.py").write_text(told, encoding="utf-8")
    other = cli(folder, *words, "test.jsonl", "--no-worse-than", "val.json")
    assert other.returncode == 1
    assert "val.json has none of these examples" in other.stderr
    nan = cli(folder, *words, "test.jsonl", "--min-score", "nan")
    assert nan.returncode == 2
    assert "nan is no score" in nan.stderr
    assert not (folder / "asked").exists()
    few = cli(folder, *words, "val.jsonl", "--no-worse-than", "val.json")
    assert few.returncode == 0
    assert "has 3 of these examples: fewer than 6 never show that it is worse" in few.stderr
    assert "at least 6 examples" in " ".join(cli(folder, "eval", "--help").stdout.replace("│", " ").split())
