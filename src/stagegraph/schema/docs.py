"""The public names of a package: loaded when they are asked for, with the docs of their fields for `help()`."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module

_HEAD = "\n\nAttributes:\n"
_FIELD = re.compile(r'^ +(?:self\.)?([a-z]\w*)(?:: | = )[^\n]+\n +"""(\S.*?)"""', re.MULTILINE | re.DOTALL)
"""A field of a class, or an attribute that its `__init__` sets, and the text below it."""


def lazy_names(
    package: str,
    files: Mapping[str, Sequence[str]],
    around: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> tuple[Callable[[str], object], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package that loads a file when one of its names is asked for.

    Args:
        package: Its name.
        files: File -> its public names.
        around: Makes the context in which a name is imported.
    """
    homes = {name: file for file, names in files.items() for name in names}

    def load(name: str) -> object:
        if name not in homes:
            msg = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(msg)
        with around(name):
            value = getattr(import_module(f".{homes[name]}", package), name)
        document([value])
        setattr(sys.modules[package], name, value)
        return value

    def names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *homes})

    return load, names, sorted(homes)


def document(things: Iterable[object]) -> None:
    """Let the docstring of each class end with the docs of its fields: what stands below a field in the source.

    The source is read when the docstring is asked for.
    """
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
