"""The README is a promise: everything in it runs, and prints what it says."""

import ast
import importlib
import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from forked import python

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
BLOCKS = [(match[1], match[2]) for match in BLOCK.finditer(README)]


def run(code: str, folder: Path) -> str:
    done = python("-c", code, cwd=folder)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.local
def test_the_first_example_prints_what_the_readme_says(tmp_path: Path) -> None:
    """The example at the top gives the output that is printed below it."""
    (first, code), (second, output), *_ = BLOCKS
    assert (first, second) == ("python", "text")
    assert run(code, tmp_path) == output


def test_the_other_examples_run_one_after_the_other(tmp_path: Path) -> None:
    """The remaining Python blocks are one program, and its last line is the one that is printed."""
    code = "\n".join(text for language, text in BLOCKS[2:] if language == "python")
    outputs = [text for language, text in BLOCKS[2:] if language == "text"]
    printed = run(code, tmp_path)
    for output in outputs:
        assert output in printed


@pytest.mark.parametrize("name", sorted(path.stem for path in (ROOT / "examples").glob("*.py")))
def test_every_example_runs(name: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    """Each file of `examples/` runs to its end and prints something."""
    code = (ROOT / "examples" / f"{name}.py").read_text("utf-8")
    if "local:" in code and "not local" in str(request.config.getoption("-m")):
        pytest.skip("needs the embedded model")
    if name == "langfuse_roundtrip":
        return  # needs a server: tests/tracing runs it
    assert run(code, tmp_path)


@pytest.mark.parametrize("code", [text for language, text in BLOCKS if language == "py"])
def test_what_needs_a_server_or_a_provider_at_least_fits(code: str) -> None:
    """It compiles, and every name that it imports from this package is there."""
    compile(code, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    for module, names in re.findall(r"^from (stagegraph[\w.]*) import (.+)$", code, re.MULTILINE):
        for name in names.split(", "):
            assert getattr(importlib.import_module(module), name)


GIVEN = """
from collections.abc import Callable
from datetime import timedelta
from stagegraph import Example, Run, Score

def my_function(value: object) -> object:
    return value

train: list[Example[str]] = []
val: list[Example[str]] = []
test: list[Example[str]] = []
"""
"""What the snippets that are not run expect their reader to have."""

TYPED = "\ntyped: Callable[[Example[str], Run[str, list[Built]]], Score] = grade\n"
"""The metric of the README takes runs of the graph that it tunes; `tune` itself takes any metric."""


@pytest.mark.types
def test_the_examples_type_check(tmp_path: Path) -> None:
    """A type checker has nothing to say about what people copy: the first example, and the rest as one program."""
    (tmp_path / "first.py").write_text(BLOCKS[0][1])
    parts = [GIVEN]
    for number, (language, text) in enumerate(BLOCKS[2:]):
        typed = TYPED if "def grade(" in text else ""
        body = f"async def _{number}() -> None:\n{textwrap.indent(text + typed, '    ')}"
        parts += [text] if language == "python" else [body] if language == "py" else []
    (tmp_path / "rest.py").write_text("\n\n".join(parts))
    settings = {"typeCheckingMode": "standard", "pythonVersion": "3.11", "extraPaths": [str(ROOT / "src")]}
    settings |= {"venvPath": str(ROOT), "venv": ".venv", "reportRedeclaration": False}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    checker = Path(sys.executable).with_name("basedpyright")
    command = [str(checker), "--outputjson", "--level", "error", "--project", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    found = json.loads(done.stdout)
    assert found["summary"]["filesAnalyzed"] == 2
    lines = {name: (tmp_path / name).read_text().splitlines() for name in ("first.py", "rest.py")}
    problems = [
        (lines[Path(one["file"]).name][one["range"]["start"]["line"]], one["message"])
        for one in found["generalDiagnostics"]
    ]
    assert problems == []


def test_the_commands_of_the_readme_exist() -> None:
    """Every `stagegraph` command and every `make` target in the README is a real one."""
    shell = "\n".join(text for language, text in BLOCKS if language == "sh")
    helped = python("-m", "stagegraph", "--help", check=True).stdout
    for command in set(re.findall(r"^stagegraph (\w+)", shell, re.MULTILINE)):
        assert re.search(rf"^\s+{command}\s", helped, re.MULTILINE), command
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE))
    assert set(re.findall(r"^make ([\w-]+)", shell, re.MULTILINE)) <= targets
