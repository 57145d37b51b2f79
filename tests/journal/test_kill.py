"""Real processes, really killed: what a journal had recorded is never asked again, and never ends up elsewhere."""

import json
import random
import re
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from forked import Process

WORKER = Path(__file__).with_name("worker.py")
NAME = re.compile(r"<([^/<>]*)/([a-z0-9]+)/([a-z][0-9]+)>")
WHOLE = ["request0", "tool", "request0", "tool", "request1", "tool", "request2"]
"""What an agent of a wide workload answers with: everything that was said, the tool's results with their questions."""
KILLS = 6
"""Kills of each workload, each at another moment."""


def start(file: Path, workload: str, process: str, seed: int) -> subprocess.Popen[str]:
    """A new interpreter for the first kill of each workload, forked processes for the others."""
    words = [str(word) for word in (WORKER, file, workload, process, seed)]
    if seed % 100:
        return Process(*words, stdout=subprocess.PIPE)
    return subprocess.Popen([sys.executable, *words], stdout=subprocess.PIPE, text=True)


def finish(worker: subprocess.Popen[str]) -> tuple[list[str], str]:
    """The names of what began, and the output."""
    text, _ = worker.communicate(timeout=120)
    lines = text.splitlines()
    assert worker.returncode == 0, text
    output = next(line for line in lines if line.startswith("OUTPUT "))
    return [line for line in lines if line.startswith("<")], output


@cache
def began_by_an_uninterrupted(workload: str) -> list[str]:
    """The names of what begins when no process is killed; which they are does not depend on the seed."""
    with TemporaryDirectory() as folder:
        return finish(start(Path(folder) / "whole.db", workload, "a", 0))[0]


def recorded(file: Path) -> set[str]:
    """The names in every answer that the journal holds."""
    connection = sqlite3.connect(file)
    texts = [row[0] for row in connection.execute("SELECT payload FROM ops")]
    texts += [row[0] for row in connection.execute("SELECT output FROM calls WHERE kind = 'step' AND output NOTNULL")]
    connection.close()
    return {match.group() for text in texts for match in NAME.finditer(json.dumps(json.loads(text)))}


def place(name: str) -> tuple[str, str]:
    match = NAME.fullmatch(name)
    assert match is not None
    return match.group(1), match.group(2)


@pytest.mark.parametrize("seed", range(KILLS))
@pytest.mark.parametrize("workload", ["chain", "wide", "nested", "same"])
def test_a_killed_run_finishes_without_asking_again_and_without_crossing(
    tmp_path: Path, workload: str, seed: int
) -> None:
    """After kill -9 nothing that was recorded is asked again, and every branch has its own answers, whole."""
    whole = began_by_an_uninterrupted(workload)
    choice = random.Random(f"{workload} {seed}")
    patience = choice.randrange(1, len(whole))

    file = tmp_path / "runs.db"
    worker = start(file, workload, "a", seed)
    assert worker.stdout is not None
    for _ in range(patience):
        worker.stdout.readline()
    worker.send_signal(signal.SIGKILL)
    worker.communicate()

    kept = recorded(file)
    began, output = finish(start(file, workload, "b", seed + 100))

    # A place holds one request or step of each kind, but for the tool, which an agent calls twice.
    asked_before = Counter(place(name) for name in kept)
    asked_now = Counter(place(name) for name in began)
    needed = Counter(place(name) for name in whole)
    for spot, number in asked_now.items():
        assert number + asked_before[spot] <= needed[spot], f"{spot} was recorded and asked again"

    used = NAME.findall(output)
    assert used
    if workload in {"wide", "same"}:
        for index, branch in enumerate(output.removeprefix("OUTPUT ").split("|")):
            names = NAME.findall(branch)
            assert [what for _, what, _ in names] == WHOLE, "an answer is not whole"
            assert {key for key, _, _ in names} == {f"ask[{index}]"}, "a branch got another branch's answer"
    if workload == "nested":
        for index, branch in enumerate(output.removeprefix("OUTPUT ").split("|")):
            keys = {key.rpartition(".")[0] for key, _, _ in NAME.findall(branch)}
            assert keys == {f"branch[{index // 2}][{index % 2}]"}, "a branch got another branch's answer"
