"""Mistakes at the command line, and what a user's own code prints: places that cannot be written, files that are odd."""

import json
from pathlib import Path

import pytest

from forked import cli

GRAPH = """
import subprocess
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from stagegraph import Graph, Stage, step

print("loading")

@step
async def inc(number: int) -> int:
    print("in the step")
    subprocess.run(["echo", "from a program"], check=True)
    return number + 1

class Adds(Graph[int, int]):
    inc = inc
    say = Stage(str, Agent(TestModel(), instructions="Say it."))
    async def flow(self, number: int) -> int:
        return await self.inc(number)

def good(example, run):
    return 1.0
"""

SEVERAL = """
from stagegraph import Graph

class Needy(Graph[int, int]):
    def __init__(self, most: int) -> None:
        self.most = most
    async def flow(self, number: int) -> int:
        return number

class Plain(Graph[int, int]):
    async def flow(self, number: int) -> int:
        return number
"""


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    (tmp_path / "g.py").write_text(GRAPH, encoding="utf-8")
    (tmp_path / "several.py").write_text(SEVERAL, encoding="utf-8")
    (tmp_path / "broken.py").write_text("x = 1\ndef f(:\n", encoding="utf-8")
    (tmp_path / "more.jsonl").write_text('{"input": 2}\n', encoding="utf-8")
    (tmp_path / "rows.jsonl").write_text('{"input": 1}\n', encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    "words",
    [
        ("show", "last", "--html"),
        ("draw", "g.py", "--out"),
        ("export", "g.py", "--out"),
        ("eval", "g.py", "g.py:good", "rows.jsonl", "--out"),
        ("compare", "a.json", "b.json", "--html"),
        ("tune", "g.py", "g.py:good", "--train", "rows.jsonl", "--val", "rows.jsonl", "--runs", "3", "--out"),
    ],
)
def test_a_place_that_cannot_be_written_is_named_before_anything_is_done(folder: Path, words: tuple[str, ...]) -> None:
    """No traceback, no work that is lost at the end: the option, the path, and what to do."""
    for place, said in (
        ("none/x", "none/x: there is no folder none; make it"),
        (".", ".: this is a folder; name a file"),
    ):
        done = cli(folder, *words, place)
        assert done.returncode == 2, done.stderr
        assert f"Invalid value for '{words[-1]}': {said}" in done.stderr
        assert "Traceback" not in done.stderr
        assert "loading" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("run", "g.py", "1", "--journal", "g.py/runs.db"),
        ("tune", "g.py", "g.py:good", "--train", "rows.jsonl", "--val", "more.jsonl", "--runs", "9", "--run-dir", "g.py", "--yes"),
    ],
)  # fmt: skip
def test_a_path_that_the_system_refuses_is_one_line(folder: Path, words: tuple[str, ...]) -> None:
    """Whatever else is wrong with a path, its name and the system's reason are said."""
    done = cli(folder, *words)
    assert done.returncode == 1
    assert "error: g.py" in done.stderr
    assert "check the path and who may read or write it" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("command", ["run", "resume"])
def test_with_json_standard_output_is_json_whatever_is_printed(folder: Path, command: str) -> None:
    """What the graph's file, its steps and programs that they start print is on the error output."""
    if command == "resume":
        cut = GRAPH.replace("return number + 1", "raise ValueError(number)")
        (folder / "g.py").write_text(cut, encoding="utf-8")
        assert cli(folder, "run", "g.py", "1").returncode == 1
        (folder / "g.py").write_text(GRAPH, encoding="utf-8")
    done = cli(folder, *(("run", "g.py", "1") if command == "run" else ("resume", "last")), "--json")
    assert json.loads(done.stdout)["output"] == 2, done.stderr
    for line in ("loading", "in the step", "from a program"):
        assert line in done.stderr.splitlines()


def test_a_file_with_a_syntax_error_is_named_alone(folder: Path) -> None:
    """The place is the line of the user's file, and none of ours."""
    done = cli(folder, "run", "broken.py", "1")
    assert done.stderr == "error: broken.py: importing it failed: SyntaxError: invalid syntax (broken.py, line 2)\n"


def test_several_graphs_are_listed_also_when_one_needs_arguments(folder: Path) -> None:
    """That one cannot be made is only said of the one that was chosen."""
    done = cli(folder, "run", "several.py", "1")
    assert "there are several graphs, Needy, Plain: say which" in done.stderr
    unknown = cli(folder, "run", "several.py:Plane", "1").stderr
    assert "no 'Plane' here; did you mean `Plain`?; graphs here: Needy, Plain" in unknown
    assert cli(folder, "run", "several.py:Plain", "1").stdout == "1\n"
    assert "Needy cannot be made without arguments" in cli(folder, "run", "several.py:Needy", "1").stderr


@pytest.mark.parametrize("pair", ["say=", "say"])
def test_a_model_for_a_stage_needs_a_name(folder: Path, pair: str) -> None:
    """An empty name is a mistake in the option, not in the model."""
    done = cli(folder, "run", "g.py", "1", "--set", pair)
    assert done.returncode == 2
    assert f"--set {pair}: write PATH=MODEL; the stages are: say\n" in done.stderr


def test_a_typo_in_a_step_is_shown_with_its_line(folder: Path) -> None:
    """Without a traceback: the file, the number and the text of the line that raised."""
    code = """
from stagegraph import Graph, step

@step
async def shout(text: str) -> str:
    return text.uper()

class Shouts(Graph[str, str]):
    shout = shout
    async def flow(self, text: str) -> str:
        return await self.shout(text)
"""
    (folder / "typo.py").write_text(code)
    done = cli(folder, "run", "typo.py", "hello")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].endswith("typo.py, line 6: return text.uper()")
