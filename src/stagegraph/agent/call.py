"""What one call of a stage gives to its agent; the runner implements the protocol."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import anyio

if TYPE_CHECKING:
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.messages import ModelResponse
    from pydantic_ai.models import Model
    from pydantic_ai.usage import RequestUsage, RunUsage

    from stagegraph.data.prompt import Prompt
    from stagegraph.data.usage import ModelUse


class AttemptTimeoutError(TimeoutError):
    """An attempt took longer than its stage allows."""


class LimitReached(Exception):  # noqa: N818 - never leaves the runner, which turns it into a LimitError
    """A limit of the run does not allow another model request."""


class AgentCall(Protocol):
    """One call of a stage: what its agent is given, what it reports to the run, and how the run limits its requests."""

    key: str
    path: str
    input: Any
    deps: object
    """The run's deps."""
    model: Model[Any] | None
    """The model for this call; `None` leaves the agent's own."""
    prompt: Prompt | None
    answers: Mapping[str, object]
    """Tool call id -> answer, for a call that was suspended."""
    observing: Sequence[AbstractCapability[Any]]
    """Capabilities that observe the agent and change nothing."""
    use: ModelUse
    """Usage and messages so far; the agent adds to them."""
    streams: bool
    """Whether the model streams, so that `text_received` gets each piece of text."""

    def text_received(self, text: str) -> None: ...

    def tool_called(self, tool: str) -> None: ...

    def retrying(self, attempt: int, error: Exception, wait: float) -> None:
        """Attempt number *attempt* failed; the next one begins after *wait* seconds."""
        ...

    def attempt_began(self, usage: RunUsage) -> None:
        """An attempt begins; Pydantic AI counts its usage in *usage*."""
        ...

    def attempt_ended(self) -> None: ...

    async def request(
        self, ask: Callable[[], Awaitable[ModelResponse]], waiting: Callable[[], AbstractContextManager[None]]
    ) -> ModelResponse:
        """Make a model request as soon as the limits allow it; *waiting* surrounds the time until then.

        Raises:
            LimitReached: a limit of the run does not allow it.
        """
        ...

    def request_recalled(self, usage: RequestUsage) -> None:
        """A recorded answer was used; the attempt counts its usage as if the request had been made."""
        ...

    async def sleep(self, seconds: float) -> None:
        """Wait before the next attempt."""
        ...


class Deadline:
    """The time limit of one attempt (`Stage(timeout=)`); it stands still while a request waits for the run's limits.

    The agent's own `timeout` would count that time, too.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._scope: anyio.CancelScope | None = None

    @contextmanager
    def running(self) -> Generator[None]:
        """Around one attempt.

        Raises:
            AttemptTimeoutError: the attempt took longer.
        """
        if self._seconds is None:
            yield
            return
        with anyio.CancelScope(deadline=anyio.current_time() + self._seconds) as self._scope:
            yield
            return
        msg = f"it took longer than {self._seconds} s"
        raise AttemptTimeoutError(msg)

    @contextmanager
    def paused(self) -> Generator[None]:
        """Around the time that a request waits: a busy runner is no slow model."""
        scope = self._scope
        if scope is None:
            yield
            return
        left, scope.deadline = scope.deadline - anyio.current_time(), math.inf
        try:
            yield
        finally:
            scope.deadline = anyio.current_time() + left
