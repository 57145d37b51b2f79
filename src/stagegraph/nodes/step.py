"""A plain async function as a node: recorded and replayed, never tuned."""

from __future__ import annotations

import inspect
from functools import cached_property, update_wrapper
from typing import TYPE_CHECKING, Any, Generic, cast, get_type_hints, overload

from typing_extensions import TypeVar

from stagegraph.schema.errors import DeclarationError
from stagegraph.schema.schema import Schema

from .node import Declaration, Node

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

In_contra = TypeVar("In_contra", contravariant=True)
Out_co = TypeVar("Out_co", covariant=True)
A = TypeVar("A")
B = TypeVar("B")


class Step(Node[In_contra, Out_co], Generic[In_contra, Out_co]):
    """A plain async function as a leaf of a graph; the place for side effects.

    Exceptions of the function keep their type, so a flow may catch them. A step runs at least once: after a crash it
    may run again. `current_call()` has its idempotency key: `run_id` and `key`.
    """

    def __init__(self, fn: Callable[[In_contra], Awaitable[Out_co]], *, version: int | str = 1) -> None:
        name = getattr(fn, "__qualname__", repr(fn))
        if not inspect.iscoroutinefunction(fn):
            msg = (
                f"@step needs an async function, and `{name}` is not one: write `async def {name}`, "
                "with `await anyio.to_thread.run_sync(...)` around blocking code"
            )
            raise DeclarationError(msg)
        if not hasattr(fn, "__name__"):
            msg = f"@step needs a function with a name and types, not {name}: write an `async def` that calls it"
            raise DeclarationError(msg)
        self._parameter = _only_parameter(fn, name)
        self.fn = fn
        """The function itself, for calling it outside a run."""
        self.version = version
        update_wrapper(cast("Any", self), fn)

    @cached_property
    def __node__(self) -> Declaration:
        return Declaration(
            self,
            "step",
            self.fn.__name__,
            lambda: Schema(self._hints[self._parameter]),
            lambda: Schema(self._hints["return"]),
        )

    @cached_property
    def _hints(self) -> dict[str, Any]:
        try:
            hints = get_type_hints(self.fn, include_extras=True)
        except NameError as error:
            msg = (
                f"step `{self.fn.__name__}`: a type in its signature is not known where it is defined ({error}); "
                "import it outside `if TYPE_CHECKING` or define it at module level"
            )
            raise DeclarationError(msg) from error
        for what in (self._parameter, "return"):
            if what not in hints:
                msg = f"step `{self.fn.__name__}` has no type for `{what}`: a step declares its input and output types"
                raise DeclarationError(msg)
        return hints

    def __repr__(self) -> str:
        return f"<step {self.fn.__name__}>"


def _only_parameter(fn: Callable[..., object], name: str) -> str:
    required = [
        parameter
        for parameter in inspect.signature(fn).parameters.values()
        if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_KEYWORD
    ]
    if len(required) == 1 and required[0].kind in (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
    ):
        return required[0].name
    msg = (
        f"step `{name}` must take exactly one value, but takes ({', '.join(p.name for p in required)}): "
        "put several values into one model; a method cannot be a step, write it as a function outside the class"
    )
    raise DeclarationError(msg)


@overload
def step(fn: Callable[[A], Awaitable[B]], /) -> Step[A, B]: ...
@overload
def step(*, version: int | str) -> Callable[[Callable[[A], Awaitable[B]]], Step[A, B]]: ...
def step(
    fn: Callable[[A], Awaitable[B]] | None = None, /, *, version: int | str = 1
) -> Step[A, B] | Callable[[Callable[[A], Awaitable[B]]], Step[A, B]]:
    """Make an async function of one typed value a node: `@step`, or `@step(version=2)`.

    *version* is part of the identity of a recorded call: increase it when old outputs must not be reused.

    Raises:
        DeclarationError: the function is not async, or does not take exactly one typed value.
    """
    if fn is not None:
        return Step(fn, version=version)
    return lambda fn: Step(fn, version=version)
