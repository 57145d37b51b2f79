"""One call of a stage, as its agent is given it; the runner implements what it asks of the run."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_ai.exceptions import UnexpectedModelBehavior

if TYPE_CHECKING:
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.messages import ModelResponse, UserContent
    from pydantic_ai.models import Model
    from pydantic_ai.usage import RequestUsage, RunUsage

    from stagegraph.data.events import CallRetried, TextDelta, ToolCalled
    from stagegraph.data.prompt import Prompt
    from stagegraph.data.usage import ModelUse

MODEL = "the model"


class AnswerTooLongError(UnexpectedModelBehavior):
    """A model answered with more than is taken from one."""


class AttemptTimeoutError(TimeoutError):
    """An attempt took longer than its stage allows."""


class LimitReached(Exception):  # noqa: N818 - never leaves the runner, which turns it into a LimitError
    """A limit of the run does not allow another model request."""


@dataclass(kw_only=True, eq=False)
class AgentCall(ABC):
    """One call of a stage: what its agent is given, what it reports to the run, and how the run limits its requests."""

    key: str
    path: str
    input: Any
    deps: object
    """The run's deps."""
    use: ModelUse
    """Usage and messages so far; the agent adds to them."""
    model: Model[Any] | None
    """The model for this call; `None` leaves the agent's own."""
    prompt: Prompt | None
    answers: Mapping[str, object]
    """Tool call id -> answer, for a call that was suspended."""
    observing: Sequence[AbstractCapability[Any]]
    """Capabilities that observe the agent and change nothing."""
    streams: bool
    """Whether the model streams, so that each piece of text is an event."""
    content: str | list[UserContent] | None = None
    """The user prompt, where it was rendered already."""
    tool_recalled: Callable[[str], object] = lambda _: None
    """Is told when the recorded result of a tool is used: what was called with its label in the key is not repeated."""

    @abstractmethod
    def emit(self, event_type: type[CallRetried | TextDelta | ToolCalled], /, **fields: object) -> None:
        """Log an event of this call: a piece of text, a tool call, a retry."""

    @abstractmethod
    def attempt(self, usage: RunUsage) -> AbstractAsyncContextManager[None]:
        """Around an attempt, whose usage Pydantic AI counts in *usage*.

        It begins when a request of it may soon be in flight: agents that wait before they have begun cost little.
        """

    @abstractmethod
    def request(
        self, waiting: Callable[[], AbstractContextManager[None]], answers: list[ModelResponse]
    ) -> AbstractAsyncContextManager[None]:
        """Around a model request, which begins as soon as the limits allow it; *waiting* surrounds the time until then.

        Afterwards *answers* has the answer, if there is one.

        Raises:
            LimitReached: a limit of the run does not allow it.
        """

    @abstractmethod
    def request_recalled(self, usage: RequestUsage) -> None:
        """A recorded answer was used; the attempt counts its usage as if the request had been made."""

    @abstractmethod
    async def sleep(self, seconds: float) -> None:
        """Wait before the next attempt."""
