"""What is public is listed, sorted and documented."""

import importlib
import inspect
import pydoc
import tomllib
from pathlib import Path

import pytest

from stagegraph.cli.options import DEFAULT_JOURNAL
from stagegraph.journal import SqliteJournal

PACKAGES = [
    "stagegraph",
    "stagegraph.journal",
    "stagegraph.draw",
    "stagegraph.errors",
    "stagegraph.local",
    "stagegraph.optimize",
    "stagegraph.service",
    "stagegraph.tracing",
]


@pytest.mark.parametrize("name", PACKAGES)
def test_all_lists_the_public_names_in_order(name: str) -> None:
    """`__all__` is sorted, complete, and everything in it is there."""
    module = importlib.import_module(name)
    assert list(module.__all__) == sorted(set(module.__all__))
    own = {
        key
        for key, value in vars(module).items()
        if not key.startswith("_")
        and getattr(value, "__module__", "").startswith("stagegraph")
        and not inspect.ismodule(value)
    }
    assert own <= set(module.__all__)
    assert all(hasattr(module, key) for key in module.__all__)


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module in PACKAGES for name in importlib.import_module(module).__all__]
)
def test_public_things_say_what_they_are(module: str, name: str) -> None:
    """Each public class and function has a docstring whose first paragraph is a sentence, and so have its methods."""
    thing = getattr(importlib.import_module(module), name)
    if not (inspect.isclass(thing) or inspect.isfunction(thing)):
        return
    assert _is_said(thing), f"{name} has no docstring that is a sentence"
    if inspect.isclass(thing) and not issubclass(thing, BaseException):
        for method, value in vars(thing).items():
            if not method.startswith("_") and inspect.isfunction(value) and thing.__module__.startswith("stagegraph"):
                if method in {
                    "put",
                    "put_soon",
                    "claim",
                    "run",
                    "runs",
                    "calls",
                    "ops",
                    "feedback",
                    "cancels",
                    "prune",
                    "aclose",
                }:
                    continue  # journals are documented by their protocol
                assert _is_said(value) or method == "flow", f"{name}.{method} has no docstring that is a sentence"


def _is_said(thing: object) -> bool:
    first = (inspect.getdoc(thing) or "").split("\n\n")[0].strip()
    return first.endswith((".", ".)", ":", "`."))


@pytest.mark.parametrize(
    ("module", "name", "field", "told"),
    [
        ("stagegraph", "Run", "rerun", "Key -> what changed"),
        ("stagegraph", "RunOptions", "override", "Key of a stage or step call"),
        ("stagegraph", "StageError", "key", "Where it ran"),
        ("stagegraph", "Call", "attempts", ""),
        ("stagegraph", "Outcome", "index", "The item's index, from 0."),
        ("stagegraph.journal", "RunRow", "", ""),
        ("stagegraph.optimize", "Budget", "", ""),
    ],
)
def test_help_shows_the_docs_of_fields(module: str, name: str, field: str, told: str) -> None:
    """What stands below a field in the source is in the class's docstring, also for data classes and typed dicts."""
    thing = getattr(importlib.import_module(module), name)
    doc = pydoc.render_doc(thing, renderer=pydoc.plaintext)
    assert "Attributes:" in doc
    assert f"{field}: {told}" in doc
    assert inspect.getdoc(thing).count("Attributes:") == 1


@pytest.mark.parametrize("name", ["DepsOf", "ResumeOptions", "RunOptions"])
def test_types_of_signatures_can_be_imported(name: str) -> None:
    """Whoever writes a function around `Runner.run` can name the types of its options."""
    assert getattr(importlib.import_module("stagegraph"), name)
    assert importlib.import_module("stagegraph.service").Hook


def test_the_journal_of_the_command_line_is_that_of_the_library() -> None:
    """What a program records with `SqliteJournal()`, `stagegraph runs` lists."""
    assert inspect.signature(SqliteJournal).parameters["path"].default == DEFAULT_JOURNAL


def test_the_licence_is_the_one_that_is_declared() -> None:
    """The file is there, and a wheel takes it along."""
    root = Path(__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    assert (project["license"], project["license-files"]) == ("MIT", ["LICENSE"])
    assert (root / "LICENSE").read_text("utf-8").startswith("MIT License")
