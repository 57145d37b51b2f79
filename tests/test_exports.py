"""What is public is listed, sorted and documented."""

import importlib
import inspect

import pytest

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
