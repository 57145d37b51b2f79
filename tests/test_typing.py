"""Types are tested like behaviour: a real type checker runs on files that must pass and on lines that must not."""

import importlib.util
import json
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parent / "typing"
pytestmark = pytest.mark.types


@cache
def report() -> list[dict[str, Any]]:
    """What the checker says about all files: one process, which reads the libraries once."""
    checker = Path(sys.executable).with_name("basedpyright")
    files = [str(path) for path in FOLDER.glob("*.py")]
    done = subprocess.run(
        [str(checker), "--outputjson", "--level", "error", *files],
        capture_output=True,
        text=True,
        check=False,
        cwd=FOLDER.parents[1],
    )
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == len(files), done.stdout + done.stderr
    return found["generalDiagnostics"]


def errors(path: Path) -> set[int]:
    """The numbers of the lines that the checker refuses."""
    ignored = {
        "reportUnusedExpression",
        "reportUnusedCoroutine",
        "reportUnknownMemberType",
        "reportUnknownVariableType",
    }
    return {
        diagnostic["range"]["start"]["line"] + 1
        for diagnostic in report()
        if Path(diagnostic["file"]) == path
        and diagnostic["severity"] == "error"
        and diagnostic.get("rule") not in ignored
    }


@pytest.mark.parametrize("path", sorted(FOLDER.glob("ok_*.py")), ids=lambda path: path.stem)
def test_good_code_type_checks(path: Path) -> None:
    """No error in code that users should be able to write."""
    assert errors(path) == set()


@pytest.mark.parametrize("path", sorted(FOLDER.glob("must_fail_*.py")), ids=lambda path: path.stem)
def test_wrong_code_does_not(path: Path) -> None:
    """Exactly the marked lines are refused, before anything runs."""
    marked = {number for number, line in enumerate(path.read_text("utf-8").splitlines(), 1) if line.endswith("# error")}
    assert marked
    assert errors(path) == marked


@pytest.mark.skipif(importlib.util.find_spec("mypy") is None, reason="mypy is not installed")
def test_gather_has_the_types_of_its_calls_for_mypy_too(tmp_path: Path) -> None:
    """`mypy --strict` resolves overloads otherwise than pyright."""
    command = [sys.executable, "-m", "mypy", "--config-file", "mypy.ini", "--cache-dir", str(tmp_path), "ok_gather.py"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=FOLDER)
    assert done.returncode == 0, done.stdout + done.stderr
