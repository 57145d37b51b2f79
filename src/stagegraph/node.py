"""A named, typed, async callable: what stages, steps and graphs have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import cached_property
from typing import TYPE_CHECKING, Any, ClassVar, Generic

from typing_extensions import TypeVar

from .errors import NotRunningError
from .frame import current
from .schema import Schema

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from .call import Kind

__all__ = ["Node"]

In_contra = TypeVar("In_contra", contravariant=True, default=Any)
Out_co = TypeVar("Out_co", covariant=True, default=Any)


class Node(ABC, Generic[In_contra, Out_co]):
    """A named, typed, async callable: a `Stage`, a `Step` or a `Graph`.

    Inside the `flow` of a graph that declares it, a node is called like a function: `await self.plan(spec)`.
    Nodes are told apart by identity and never change once they are declared.
    """

    kind: ClassVar[Kind]

    @cached_property
    def takes(self) -> Schema:
        """The input type."""
        raise NotImplementedError

    @cached_property
    def gives(self) -> Schema:
        """The output type."""
        raise NotImplementedError

    @property
    @abstractmethod
    def label(self) -> str:
        """What to call the node where nothing declares it."""

    def __call__(self, value: In_contra, /) -> Coroutine[Any, Any, Out_co]:
        """Run the node in the graph that is running.

        Raises:
            NotRunningError: outside a run.
            DeclarationError: in a graph that does not declare the node.
            StageError: the value has the wrong type, or the call failed.
        """
        try:
            frame = current.get()
        except LookupError:
            raise NotRunningError(self._outside_message()) from None
        return frame.call(self, value)

    def _outside_message(self) -> str:
        return (
            f"{self.kind} `{self.label}` was called outside a run. Call it in the `flow` of a graph that declares it, "
            f"or run it by itself: `await Runner(model=...).run({self.label}, value)`"
        )
