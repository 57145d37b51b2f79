"""Field docs for `help()`: what stands below a field in the source becomes a part of the docstring of its class."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterable
from itertools import pairwise

from typing_extensions import is_typeddict

_HEAD = "\n\nAttributes:\n"


def document(things: Iterable[object]) -> None:
    """Let the docstring of each class end with the docs of its fields, which are read when somebody asks for it."""
    for thing in things:
        if inspect.isclass(thing) and thing.__module__.startswith("stagegraph") and "__doc__" in vars(thing):
            text = vars(thing)["__doc__"]
            if isinstance(text, str) and _HEAD not in text:
                doc = _Docstring(text)
                type.__setattr__(thing, "__doc__", doc.__get__(None, thing) if is_typeddict(thing) else doc)


class _Docstring:
    """The value of `__doc__` of one class."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._whole: str | None = None

    def __get__(self, instance: object, owner: type) -> str:
        if self._whole is None:
            self._whole = self._text + _section(owner)
        return self._whole


def _section(owner: type) -> str:
    try:
        [tree] = ast.parse(textwrap.dedent(inspect.getsource(owner))).body
    except (OSError, TypeError, SyntaxError, ValueError):
        return ""  # there is no source here
    inits = [one for one in ast.walk(tree) if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
    bodies = [one.body for one in (tree, *inits) if isinstance(one, (ast.ClassDef, ast.FunctionDef))]
    found = [entry for body in bodies for pair in pairwise(body) for entry in _entry(*pair)]
    return _HEAD + "\n".join(found) if found else ""


def _entry(statement: ast.stmt, below: ast.stmt) -> list[str]:
    """The line for a field, if *statement* is one and its doc is *below*."""
    if isinstance(statement, ast.AnnAssign):
        target = statement.target
    elif isinstance(statement, ast.Assign):
        [target, *_] = statement.targets
    else:
        return []
    name = target.id if isinstance(target, ast.Name) else target.attr if isinstance(target, ast.Attribute) else "_"
    if name.startswith("_") or not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant)):
        return []
    return [f"    {name}: {' '.join(str(below.value.value).split())}"]
