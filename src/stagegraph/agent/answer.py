"""How a stage's agent is run: the user's own agent, one attempt after another, each with its own usage."""

from __future__ import annotations

from collections.abc import AsyncIterable, Awaitable, Callable, Sequence
from contextvars import copy_context
from functools import cache, partial
from typing import TYPE_CHECKING, Any

from pydantic_ai import (
    Agent,
    DeferredToolRequests,
    DeferredToolResults,
    FunctionToolset,
    RunContext,
)
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import UnexpectedModelBehavior, UserError
from pydantic_ai.messages import (
    AgentStreamEvent,
    ModelMessage,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    UserContent,
)
from pydantic_ai.models.instrumented import InstrumentedModel

from stagegraph.data.events import CallRetried, TextDelta
from stagegraph.data.prompt import Prompt
from stagegraph.nodes.current import Suspended
from stagegraph.record.deferred import pending_of
from stagegraph.schema.errors import JournalError

from .attempt import Attempt, StageModel
from .call import LimitReached
from .durable import Deferral
from .failures import (
    bad_deps,
    bad_render,
    bad_renderer,
    is_retryable,
    source_of,
    stage_error,
    unanswered,
    wait_before,
)
from .injection import Injection

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.nodes.stage import Stage

    from .call import AgentCall
    from .durable import DurableOperations


async def answer(stage: Stage[Any, Any], call: AgentCall, durable: DurableOperations | None) -> Any:
    """Run the stage's agent until it answers, as often as `Stage(retries=)` allows; `call.use` gets usage and messages.

    With *durable*, requests and tool calls are recorded, and an attempt continues where the last one failed, unless the
    recorded answers are what made it fail.

    Raises:
        StageError: the last attempt failed.
        LimitReached: a limit of the run does not allow another request.
        Suspended: the agent waits for an approval or an external result.
    """
    use = call.use
    deps = _deps_for(stage, call)
    content, history, answers = await _opening(stage, call, durable)
    may_wait = stage.timeout
    while True:
        attempt = Attempt(call, stage.timeout, durable)
        try:
            async with attempt.running():
                model, capabilities = _equipped(stage, call, attempt)
                result = await stage.agent.run(
                    content,
                    message_history=history,
                    deferred_tool_results=answers,
                    model=model,
                    deps=deps,
                    model_settings=stage.model_settings,
                    usage=attempt.usage,
                    capabilities=capabilities,
                    event_stream_handler=_listener(call) if call.streams else None,
                    infer_name=False,
                )
        except (LimitReached, JournalError):
            raise
        except Exception as error:
            if durable is not None and _starts_afresh(durable, error):
                continue
            if use.attempts > stage.retries or not is_retryable(error):
                part = partial(source_of, raised=attempt.raised, stage=stage, deps=deps)
                raise stage_error(error, call, part) from error
            wait = wait_before(error, use.attempts, may_wait)
            call.emit(CallRetried, attempt=use.attempts, error=str(error), wait=wait)
        else:
            if not isinstance(result.output, DeferredToolRequests):
                return result.output
            if durable is None:
                raise unanswered(call)
            use.pending = pending_of(call.key, call.path, result.output)
            raise Suspended
        may_wait = None if may_wait is None else may_wait - wait
        await call.sleep(wait)
        use.attempts += 1


def _equipped(
    stage: Stage[Any, Any], call: AgentCall, attempt: Attempt
) -> tuple[Model[Any] | None, list[AbstractCapability[Any]] | None]:
    """The model and the capabilities with which an attempt sees what the agent does."""
    more = call.prompt is not None or call.observing or call.streams
    if more or call.model is None or isinstance(call.model, InstrumentedModel) or not _only_asks(stage.agent):
        return call.model, [*call.observing, Injection(stage, call.prompt or Prompt(), attempt)]
    return StageModel(call.model, attempt), None


def _only_asks(agent: AbstractAgent[Any, Any]) -> bool:
    """Whether an agent has no tools, and nothing that may exchange its model or come between the two."""
    if type(agent) is not Agent:
        return False  # a class of the user's own may give its runs more than the agent says
    if any(variable.name.startswith("_override") and value for variable, value in copy_context().items()):
        return False  # Pydantic AI's `Agent.override`, which goes before what a run is given
    return all(type(one) in _given() for one in agent.root_capability.capabilities) and all(
        isinstance(one, FunctionToolset) and not one.tools for one in agent.toolsets
    )


@cache
def _given() -> frozenset[type[AbstractCapability[Any]]]:
    """The capabilities that Pydantic AI gives to every agent."""
    return frozenset(map(type, Agent().root_capability.capabilities))


def _starts_afresh(durable: DurableOperations, error: Exception) -> bool:
    """Whether to repeat the attempt at once with new requests: it has only repeated what is recorded as failing."""
    only_recalled = durable.only_recalled and not isinstance(error, UserError)
    if only_recalled or isinstance(error, UnexpectedModelBehavior):
        durable.start_afresh()
    return only_recalled


def _deps_for(stage: Stage[Any, Any], call: AgentCall) -> object:
    """The part of the run's deps that the stage's agent gets.

    Raises:
        StageError: the stage's selector raised an exception.
    """
    if stage.deps is None:
        return call.deps
    try:
        return stage.deps(call.deps)
    except Exception as error:
        raise bad_deps(error, call, call.deps) from error


async def _opening(
    stage: Stage[Any, Any], call: AgentCall, durable: DurableOperations | None
) -> tuple[str | list[UserContent] | None, list[ModelMessage] | None, DeferredToolResults | None]:
    """How the agent begins: with its input, or with the answers to what it asked when its run was suspended."""
    asked = Deferral.last(durable.recorded) if durable is not None else None
    if durable is None or asked is None:
        return content_of(stage, call) if call.content is None else call.content, None, None
    use = call.use
    use.usage, use.messages = asked.usage, tuple(asked.history)
    use.pending = await asked.answered(call.answers, durable)
    if use.pending:
        raise Suspended
    return None, asked.history, asked.answers


def content_of(stage: Stage[Any, Any], call: AgentCall) -> str | list[UserContent]:
    """The user prompt that the stage's renderer makes of the input.

    Raises:
        StageError: the renderer failed, or made none.
    """
    try:
        content = stage.render(call.input)
    except Exception as error:
        raise bad_renderer(error, call) from error
    if isinstance(content, str):
        return content
    if not isinstance(content, Sequence) or isinstance(content, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise bad_render(content, call)
    return list(content)


def _listener(call: AgentCall) -> Callable[[RunContext[Any], AsyncIterable[AgentStreamEvent]], Awaitable[None]]:
    async def listen(_ctx: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart) and event.part.content:
                call.emit(TextDelta, text=event.part.content)
            elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                call.emit(TextDelta, text=event.delta.content_delta)

    return listen
