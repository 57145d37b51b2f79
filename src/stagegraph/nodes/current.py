"""Where the running code stands: the one context variable, and what stands behind it.

Declaration knows this protocol, the runner implements it: that is how `await self.plan(spec)` reaches
the run it belongs to without any node knowing a runner.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from stagegraph.schema.errors import NotRunningError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from stagegraph.data.call import CallInfo

    from .node import Node

__all__ = ["Frame", "Suspended", "current", "current_call"]


class Suspended(BaseException):
    """An agent asks somebody and the run has to wait: siblings finish first, then the run ends as suspended.

    No `Exception`, so that a flow does not catch it by accident.
    """


class Frame(Protocol):
    """One open call of a run, or one branch of a fan-out in it."""

    @property
    def info(self) -> CallInfo: ...

    @property
    def fan_out_limit(self) -> int:
        """How many branches of one fan-out run at once unless it says otherwise."""
        ...

    def call(self, node: Node[Any, Any], value: object) -> Coroutine[Any, Any, Any]:
        """Run a node in here and give its output."""
        ...

    def branch(self, label: str, index: int, size: int | None) -> Frame:
        """The frame of item *index* of a fan-out of *size*; calls made in it carry `[label]` in their key."""
        ...

    def branch_key(self, target: object, label: str) -> str:
        """The key of what this branch has run."""
        ...

    def fanned_out(self, target: object, size: int) -> None:
        """Tell watchers that a fan-out over so many items begins."""
        ...


current: ContextVar[Frame] = ContextVar("stagegraph_frame")


def current_call() -> CallInfo:
    """The path, key, run id and deps of the call that is running.

    For steps, tools and flows. The key stays the same when a run is resumed: with the run's id it is the idempotency
    key of a step's side effect; a tool adds its `ctx.tool_call_id`, as all tools of an agent run share its call.

    Raises:
        NotRunningError: outside a run.
    """
    try:
        return current.get().info
    except LookupError:
        msg = "current_call() was called outside a run; only steps, flows and agents' tools of a run have a call"
        raise NotRunningError(msg) from None
