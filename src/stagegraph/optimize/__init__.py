"""Optimization: a graph as a DSPy program, one metric for every optimizer, data from and to DSPy."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._lm import lm
    from .module import GraphModule

__all__ = ["GraphModule", "lm"]

_HOMES = {"GraphModule": "module", "lm": "_lm"}
"""Public name -> the file it is in, which is read when it is asked for: DSPy takes seconds to load."""


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
