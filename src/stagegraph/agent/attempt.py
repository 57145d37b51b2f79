"""One attempt of a stage's agent: its time, and its model requests and tool calls, recorded and within limits."""

from __future__ import annotations

import math
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import anyio
from pydantic_ai import capture_run_messages
from pydantic_ai.messages import BaseToolCallPart, FilePart, ModelMessage, ModelRequest, ModelResponse, ToolCallPart
from pydantic_ai.models import CompletedStreamedResponse
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.usage import RunUsage

from stagegraph.data.events import ToolCalled
from stagegraph.nodes.current import branched, key_part

from .call import MODEL, AnswerTooLongError, AttemptTimeoutError

if TYPE_CHECKING:
    from pydantic_ai import RunContext
    from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
    from pydantic_ai.settings import ModelSettings

    from .call import AgentCall
    from .durable import DurableOperations

LONGEST_ANSWER = 5_000_000
"""Characters of text that one answer of a model may have: a longer one would hold up every run of the process."""
LARGEST_FILES = 50_000_000
"""Bytes that the files in one answer may have."""


class Attempt:
    """One attempt; it has at most *seconds*, which stand still while a request waits for the run's limits.

    The agent's own `timeout` would count that time, too.
    """

    def __init__(self, call: AgentCall, seconds: float | None, durable: DurableOperations | None) -> None:
        self.usage = RunUsage()
        """Pydantic AI counts in it."""
        self.raised: list[tuple[BaseException, str]] = []
        """What was raised by the model and the tools, each with the words for its source."""
        self._call = call
        self._seconds = seconds
        self._durable = durable
        self._scope: anyio.CancelScope | None = None
        self._messages: list[ModelMessage] = []

    @asynccontextmanager
    async def running(self) -> AsyncGenerator[None]:
        """Around the run of the agent; afterwards `call.use` has the usage and messages of the attempt.

        Raises:
            AttemptTimeoutError: the attempt took longer.
        """
        durable, use = self._durable, self._call.use
        async with self._call.attempt(self.usage):
            if durable is not None:
                durable.attempt_began()
            with capture_run_messages() as self._messages:
                try:
                    with self._timed():
                        yield
                finally:
                    use.usage.incr(self.usage if durable is None else self.usage - durable.overcounted)
                    use.messages = tuple(self._messages)
                    answers = (one for one in self._messages if isinstance(one, ModelResponse))
                    # A stream that failed before it began leaves an answer, for which nothing is paid.
                    paid = (one.usage for one in answers if one.state != "interrupted" or one.usage.has_values())
                    use.unpriced |= any(usage.cost is None for usage in paid)

    @contextmanager
    def _timed(self) -> Generator[None]:
        if self._seconds is None:
            yield
            return
        with anyio.CancelScope(deadline=anyio.current_time() + self._seconds) as self._scope:
            yield
            return
        msg = f"it took longer than {self._seconds} s"
        raise AttemptTimeoutError(msg)

    @contextmanager
    def _paused(self) -> Generator[None]:
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

    @contextmanager
    def _watched(self, source: str) -> Generator[None]:
        try:
            yield
        except Exception as error:
            self.raised.append((error, source))
            raise

    def is_own(self, messages: list[ModelMessage]) -> bool:
        """Whether a request is the agent's own, and not one of a run that a function of it has lent `ctx.model`."""
        return _asked_in(messages) == _asked_in(self._messages)

    async def request(
        self, messages: list[ModelMessage], send: Callable[[], Awaitable[ModelResponse]]
    ) -> ModelResponse:
        """The recorded answer to a request, or the one that the model gives now."""
        async with self.asking(messages) as answers:
            if not answers:
                answers.append(await send())
        return answers[0]

    @asynccontextmanager
    async def asking(self, messages: list[ModelMessage]) -> AsyncGenerator[list[ModelResponse]]:
        """Around a request: the list has the recorded answer, or gets the one that the model gives now."""
        answers: list[ModelResponse] = []
        async with nullcontext() if self._durable is None else self._durable.request(messages, answers):
            if answers:
                self._call.request_recalled(answers[0].usage)
                yield answers
                return
            async with self._call.request(self._paused, answers):
                with self._watched(MODEL):
                    yield answers
            if answers:
                _check_length(answers[0])

    async def tool(self, call: ToolCallPart, turn: int, work: Callable[[], Awaitable[Any]]) -> Any:
        """The recorded result of a tool call, which *turn* messages came before, or the result of running it now."""
        made, label = False, key_part(call.tool_call_id)

        async def execute() -> Any:
            nonlocal made
            made = True
            self._call.emit(ToolCalled, tool=call.tool_name)
            # Graphs that the tool runs have its call in their key.
            with branched(label), self._watched(f"a tool, `{call.tool_name}`,"):
                return await work()

        if self._durable is None:
            return await execute()
        try:
            return await self._durable.tool(call, turn, execute)
        finally:
            if not made:
                self._call.tool_recalled(label)


class StageModel(WrapperModel):
    """The model of an agent that only asks it, so that its requests are all there is to see of an attempt.

    A capability would see them as well, but costs Pydantic AI a tenth of the time of a whole run.
    """

    def __init__(self, model: Model[Any], attempt: Attempt) -> None:
        # A function of the agent may have lent `ctx.model` to another stage.
        super().__init__(model.wrapped if isinstance(model, StageModel) else model)
        self._attempt = attempt

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Make a request of the attempt."""
        send = partial(self.wrapped.request, messages, model_settings, model_request_parameters)
        return await (self._attempt.request(messages, send) if self._attempt.is_own(messages) else send())

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """The same where the agent has functions that listen to events."""
        settings, parameters = model_settings, model_request_parameters
        if not self._attempt.is_own(messages):
            async with self.wrapped.request_stream(messages, settings, parameters, run_context) as stream:
                yield stream
            return
        async with self._attempt.asking(messages) as answers:
            if answers:
                yield CompletedStreamedResponse(answers[0], model_request_parameters=parameters, replay_events=True)
                return
            async with self.wrapped.request_stream(messages, settings, parameters, run_context) as stream:
                yield stream
            if (response := stream.get()).state != "incomplete":
                answers.append(response)


def _asked_in(messages: list[ModelMessage]) -> str | None:
    """The id of the run of an agent that asks."""
    return next((one.run_id for one in reversed(messages) if isinstance(one, ModelRequest)), None)


def _check_length(response: ModelResponse) -> None:
    """Refuse an answer that is too long, before it is validated, recorded and traced.

    Raises:
        AnswerTooLongError: it is.
    """
    texts, files = 0, 0
    for part in response.parts:
        if isinstance(part, FilePart):
            files += len(part.content.data)
        else:
            content = part.args if isinstance(part, BaseToolCallPart) else getattr(part, "content", None)
            texts += len(content if isinstance(content, str) else repr(content))
    for size, most, unit in ((texts, LONGEST_ANSWER, "characters"), (files, LARGEST_FILES, "bytes of files")):
        if size > most:
            msg = f"the model answered with {size:,} {unit}, and no more than {most:,} are taken"
            raise AnswerTooLongError(msg)
