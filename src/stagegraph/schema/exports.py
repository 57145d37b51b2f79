"""Public names of a package that are loaded when they are asked for."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from typing import Any

from .docs import document


def lazy_exports(
    package: str,
    files: Mapping[str, Sequence[str]],
    around: Callable[[str], AbstractContextManager[object]] = nullcontext,
) -> Callable[[str], Any]:
    """The `__getattr__` of a package, which loads a file when one of its names is asked for.

    Args:
        package: The package's name.
        files: File -> its public names.
        around: Given the name that is asked for, it makes a context for the import.
    """
    homes = {name: file for file, names in files.items() for name in names}

    def load(name: str) -> Any:
        if name not in homes:
            msg = f"module {package!r} has no attribute {name!r}"
            raise AttributeError(msg)
        with around(name):
            value = getattr(import_module(f".{homes[name]}", package), name)
        document([value])
        setattr(sys.modules[package], name, value)
        return value

    return load
