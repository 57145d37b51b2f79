"""What changes the fingerprint of a function, and what does not."""

import importlib.util
import itertools
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from stagegraph.optimize.evaluation.fingerprint import Fingerprint

SOURCE = """
import helper_module

WEIGHTS = {"a": 1, "b": [1, 2], (3, "c"): {"x", "y"}}

def half(value):
    return value / 2

def metric(example, run):
    return half(max(WEIGHTS["a"] * one for one in run)) + helper_module.more(0)
"""
HELPER = "def more(value):\n    return value + 1\n"
_numbers = itertools.count()


def text_of(folder: Path, source: str, helper: str = HELPER) -> str:
    """The fingerprint of `metric` in modules with these sources, as another process would load them."""
    found: dict[str, Any] = {}
    for name, text in (("helper_module", helper), ("metric_module", source)):
        path = folder / f"{name}{next(_numbers)}.py"
        path.write_text(text.replace("import helper_module", ""))
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        vars(found[name]).update({"helper_module": found["helper_module"]})
        spec.loader.exec_module(found[name])
    return Fingerprint(found["metric_module"].metric).text


@pytest.mark.parametrize(
    ("before", "after", "same"),
    [
        ("def half(value):\n", "def half(value):  # of it\n\n    # a comment\n", True),
        ("(max(WEIGHTS", "(\n        max(WEIGHTS", True),
        ("value / 2", "value / 3", False),
        ('"b": [1, 2]', '"b": [2, 1]', False),
        ('{"x", "y"}', '{"y", "x"}', True),
        ("more(0)", "more(1)", False),
        ("", "", True),
    ],
)
def test_code_and_constants_count_but_no_comments_and_no_layout(
    tmp_path: Path, before: str, after: str, same: bool
) -> None:
    """Wherever they stand: in the function, in a helper, or in a value that is used inside a comprehension."""
    assert (text_of(tmp_path, SOURCE.replace(before, after)) == text_of(tmp_path, SOURCE)) is same


def test_a_helper_in_another_module_of_the_user_counts(tmp_path: Path) -> None:
    """It is reached through the module's name."""
    assert text_of(tmp_path, SOURCE, HELPER.replace("+ 1", "+ 2")) != text_of(tmp_path, SOURCE)


def test_what_cannot_be_read_is_named() -> None:
    """A dataclass with its generated methods can be read; a lock cannot."""

    @dataclass
    class Held:
        held: Any

        def __call__(self, _example: Any, _run: Any) -> float:
            return 1.0 if self.held else 0.0

    assert Fingerprint(Held(3)).unknown == []
    assert Fingerprint(Held(3)).text == Fingerprint(Held(3)).text
    assert Fingerprint(Held(3)).text != Fingerprint(Held(4)).text
    assert Fingerprint(Held(threading.Lock())).unknown == ["lock"]
