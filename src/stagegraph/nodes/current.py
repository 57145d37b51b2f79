"""The running call: the only context variable, and the protocol of its value.

Nodes use this protocol and the runner implements it. So `await self.plan(spec)` reaches its run, although nodes do not
depend on the runner.
"""

from __future__ import annotations

import re
from collections.abc import Generator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, Protocol

from stagegraph.schema.errors import NotRunningError

if TYPE_CHECKING:
    from collections.abc import Coroutine

    from stagegraph.data.call import CallInfo
    from stagegraph.schema.errors import StageError

_NOT_IN_KEYS = re.compile(r"[^\w:-]")
_LONGEST = 80


class Suspended(BaseException):
    """Raised when an agent waits for an approval or an external result: siblings finish, then the run is suspended.

    It is not an `Exception`, so that a flow does not catch it by accident.
    """


class OpenCall(Protocol):
    """One open call of a run, or one branch of a fan-out in it."""

    @property
    def info(self) -> CallInfo: ...

    @property
    def fan_out_limit(self) -> int:
        """The default number of branches of one fan-out that run at once."""
        ...

    def run(self, node: Any, value: Any) -> Coroutine[Any, Any, Any]:
        """Call a node inside this call; returns its output."""
        ...

    watch: tuple[Any, Any] | None
    """What sees the cancellations of the task that it was opened in (`group.watched`), and that task."""

    def branch(self, label: str, index: int, size: int | None) -> OpenCall:
        """The branch for item *index* of a fan-out of *size*; its calls have `[label]` in their key."""
        ...

    def branch_key(self, target: object, label: str) -> str:
        """The key of the call that this branch made."""
        ...

    def lost(self) -> StageError:
        """The error of this call, or a branch of it, that awaited something cancelled but was not cancelled itself."""
        ...

    def fanned_out(self, target: object, size: int) -> None:
        """Record the event that a fan-out over *size* items starts."""
        ...


current: ContextVar[OpenCall] = ContextVar("stagegraph_call")


def key_part(name: str) -> str:
    """A name that a model may have chosen, such as the id of a tool call, as a part of a key."""
    return _NOT_IN_KEYS.sub("_", name)[:_LONGEST]


@contextmanager
def branched(label: str) -> Generator[None]:
    """Around a part of the running call: what is called in it has `[label]` in its key."""
    token = current.set(current.get().branch(label, 0, None))
    try:
        yield
    finally:
        current.reset(token)


def current_call() -> CallInfo:
    """The path, key, run id and deps of the call that is running.

    For steps, tools and flows. The key stays the same when a run is resumed: with the run's id it is the idempotency
    key of a step's side effect. A tool adds its `ctx.tool_call_id`, since all tools of one agent run share its call.

    Raises:
        NotRunningError: outside a run.
    """
    try:
        return current.get().info
    except LookupError:
        msg = "current_call() was called outside a run; only steps, flows and agents' tools of a run have a call"
        raise NotRunningError(msg) from None
