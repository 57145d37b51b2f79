"""Field docs for `help()`: what stands below a field in the source becomes a part of the docstring of its class."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable

_HEAD = "\n\nAttributes:\n"
_FIELD = re.compile(r'^ +(?:self\.)?([a-z]\w*)(?:: | = )[^\n]+\n +"""(\S.*?)"""', re.MULTILINE | re.DOTALL)
"""A field of a class, or an attribute that its `__init__` sets, and the text below it."""


def document(things: Iterable[object]) -> None:
    """Let the docstring of each class end with the docs of its fields, which are read when somebody asks for it."""
    for thing in things:
        if inspect.isclass(thing) and thing.__module__.startswith("stagegraph") and "__doc__" in vars(thing):
            text = vars(thing)["__doc__"]
            if isinstance(text, str) and _HEAD not in text:
                doc = _Docstring(text)
                type.__setattr__(thing, "__doc__", doc.__get__(None, thing) if hasattr(thing, "__total__") else doc)


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
        fields = _FIELD.findall(inspect.getsource(owner))
    except (OSError, TypeError):
        return ""  # there is no source here
    return _HEAD + "\n".join(f"    {name}: {' '.join(doc.split())}" for name, doc in fields) if fields else ""
