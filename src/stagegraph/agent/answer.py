"""How a stage's agent is run: the user's own agent, one attempt after another, each with its own usage."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
from pydantic_ai import DeferredToolRequests, DeferredToolResults, capture_run_messages
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
from pydantic_ai.usage import RunUsage

from stagegraph.data.usage import ModelUse
from stagegraph.nodes.current import Suspended
from stagegraph.record import deferred as asking
from stagegraph.runner.limits import LimitReached
from stagegraph.runner.state import Entry
from stagegraph.schema.errors import JournalError

from .deferred import Question
from .failures import AttemptTimeoutError, bad_deps, bad_render, stage_error, unanswered, wait_before, worth_repeating
from .inject import Injection, RequestGate

if TYPE_CHECKING:
    from pydantic_ai import RunContext
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.models import Model

    from stagegraph.data.prompts import Prompt
    from stagegraph.nodes.stage import Stage
    from stagegraph.record.rows import Recorded

    from .durable import OpMemory

__all__ = ["Setting", "call_agent", "picked_deps"]


@dataclass(frozen=True, slots=True)
class Setting:
    """What the run decides for one stage call."""

    model: Model[Any] | None
    """`None` leaves the agent's own."""
    prompt: Prompt | None
    deps: object
    gate: RequestGate
    on_text: Callable[[str], None] | None
    """Told every piece of text; asking for it makes the model stream."""
    on_retry: Callable[[int, Exception, float], None]
    answers: Mapping[str, object]
    """Tool call id -> answer, for a call that was suspended."""
    watching: Sequence[AbstractCapability[Any]] = ()
    """Who looks on; they change nothing."""


async def call_agent(
    stage: Stage[Any, Any], entry: Entry, setting: Setting, memory: OpMemory | None, found: Recorded | None
) -> Any:
    """Run the agent until it answers, as often as `Stage(retries=)` allows; the entry keeps usage and messages.

    *memory* keeps its requests and tool calls, *found* is what a journal knows of this very call. With it an attempt
    goes on where the last one failed, unless the answers on record are what it failed of.

    Raises:
        StageError: the last attempt failed.
        LimitReached: a limit of the run does not let it ask again.
        Suspended: the agent asks somebody.
    """
    injection = Injection(stage, setting.prompt, setting.gate, memory)
    use = entry.use = ModelUse()
    content, history, answers = await _opening(stage, entry, setting, memory, found)
    while True:
        usage = RunUsage()
        setting.gate.began(usage)
        if memory is not None:
            memory.begin()
        with capture_run_messages() as messages:
            try:
                with _deadline(stage, setting.gate):
                    result = await stage.agent.run(
                        content,
                        message_history=history,
                        deferred_tool_results=answers,
                        model=setting.model,
                        deps=setting.deps,
                        model_settings=stage.model_settings,
                        usage=usage,
                        capabilities=[*setting.watching, injection],
                        event_stream_handler=_listener(setting.on_text),
                        infer_name=False,
                    )
            except (LimitReached, JournalError):
                raise
            except Exception as error:
                if memory is not None and memory.only_recalled and not isinstance(error, UserError):
                    memory.ask_anew()
                    continue  # nothing was tried yet but what is known to fail
                if memory is not None and isinstance(error, UnexpectedModelBehavior):
                    memory.ask_anew()
                if use.attempts > stage.retries or not worth_repeating(error):
                    raise stage_error(error, stage, entry, messages) from error
                wait = wait_before(error, use.attempts)
                setting.on_retry(use.attempts, error, wait)
            else:
                if not isinstance(result.output, DeferredToolRequests):
                    return result.output
                if memory is None:
                    raise unanswered(entry)
                use.pending = asking.dump(asking.pending_of(entry.key, entry.path, result.output))
                raise Suspended
            finally:
                use.usage.incr(usage if memory is None else usage - memory.miscounted)
                setting.gate.ended()
                use.messages = tuple(messages)
        await setting.gate.rest(wait)
        use.attempts += 1


def picked_deps(stage: Stage[Any, Any], entry: Entry, deps: object) -> object:
    """What of the run's *deps* the stage's agent gets.

    Raises:
        StageError: the stage's selector does not fit them.
    """
    if stage.deps is None:
        return deps
    try:
        return stage.deps(deps)
    except Exception as error:
        raise bad_deps(error, entry, deps) from error


async def _opening(
    stage: Stage[Any, Any], entry: Entry, setting: Setting, memory: OpMemory | None, found: Recorded | None
) -> tuple[str | list[UserContent] | None, list[ModelMessage] | None, DeferredToolResults | None]:
    """What the agent is told first: its input, or the answers to what it asked when its run was suspended."""
    question = Question.last(found) if memory is not None and found is not None else None
    if memory is None or question is None:
        try:
            content = stage.render(entry.input)
        except Exception as error:
            raise stage_error(error, stage, entry, []) from error
        if isinstance(content, str):
            return content, None, None
        if not isinstance(content, Sequence) or isinstance(content, bytes):  # pyright: ignore[reportUnnecessaryIsInstance]
            raise bad_render(content, entry)
        return list(content), None, None
    use = entry.use
    use.usage, use.messages = question.usage, tuple(question.history)
    still_open = await question.answered(setting.answers, memory)
    if still_open:
        use.pending = asking.dump(still_open)
        raise Suspended
    return None, question.history, question.answers


def _listener(on_text: Callable[[str], None] | None) -> Any:
    if on_text is None:
        return None

    async def listen(_ctx: RunContext[Any], events: AsyncIterable[AgentStreamEvent]) -> None:
        async for event in events:
            if isinstance(event, PartStartEvent) and isinstance(event.part, TextPart) and event.part.content:
                on_text(event.part.content)
            elif isinstance(event, PartDeltaEvent) and isinstance(event.delta, TextPartDelta):
                on_text(event.delta.content_delta)

    return listen


@contextmanager
def _deadline(stage: Stage[Any, Any], gate: RequestGate) -> Generator[None]:
    """What `Stage(timeout=)` means; the agent's own `timeout` would count the time that the runner holds it back, too.

    Raises:
        AttemptTimeoutError: the attempt took longer.
    """
    if stage.timeout is None:
        yield
        return
    with anyio.CancelScope(deadline=anyio.current_time() + stage.timeout) as gate.attempt:
        yield
        return
    msg = f"it took longer than {stage.timeout} s"
    raise AttemptTimeoutError(msg)
