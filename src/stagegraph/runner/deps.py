"""The deps of interrupted runs, for which there is no request that could bring them."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any, cast

from stagegraph.record.rows import RunRow
from stagegraph.schema.errors import DeclarationError

DepsOf = Callable[[RunRow], object]
"""From the row of an interrupted run to the deps with which it is resumed: a plain function or an async one."""


def check_deps_of(deps_of: object, name: str) -> None:
    """Refuse what can make no deps when it is said, and not when a crash has interrupted runs.

    Raises:
        DeclarationError: it is no function, takes no single row, or yields.
    """
    problem = None
    if not callable(deps_of):
        problem = f"{type(deps_of).__name__} {deps_of!r} is no function"
    elif any(inspect.isgeneratorfunction(one) or inspect.isasyncgenfunction(one) for one in unwrapped(deps_of)):
        problem = "it yields, and nothing would close what it opened: return something that lives as long as the app"
    else:
        try:
            inspect.signature(deps_of).bind(None)
        except TypeError as error:
            problem = f"it cannot be called with the row of a run: {error}"
        except ValueError:  # written in C, without a signature
            return
    if problem is not None:
        msg = (
            f"the deps of interrupted runs of {name!r}: {problem}; write `async def make_deps(row)` or "
            "`def make_deps(row)`, and pass it as `router(..., resume_deps=make_deps)` or "
            '`runner.add(graph, deps_of=make_deps)`; "never" leaves interrupted runs alone'
        )
        raise DeclarationError(msg)


def unwrapped(function: Any) -> tuple[object, ...]:
    """A function as it is, what decorators and `partial` hide, and the `__call__` of an object."""
    plain = inspect.unwrap(function)
    while isinstance(plain, partial):
        plain = inspect.unwrap(cast("Any", plain.func))
    return function, plain, getattr(plain, "__call__", None)  # noqa: B004 - of an object, whose own function this is


async def deps_for(row: RunRow, deps_of: DepsOf) -> object:
    """The deps with which an interrupted run is resumed.

    Raises:
        RuntimeError: the function failed; it is the cause.
    """
    try:
        made = deps_of(row)
        return await made if inspect.isawaitable(made) else made
    except Exception as error:
        msg = f"the function that makes its deps (`resume_deps=`, `deps_of=`) failed: {type(error).__name__}: {error}"
        raise RuntimeError(msg) from error
