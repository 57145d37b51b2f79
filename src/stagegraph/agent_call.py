"""How a stage's agent is run: the user's own agent, one attempt after another, each with its own usage."""

from __future__ import annotations

from collections.abc import AsyncIterable, Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import anyio
from pydantic import ValidationError
from pydantic_ai import DeferredToolRequests, DeferredToolResults, capture_run_messages
from pydantic_ai.exceptions import (
    AgentRunError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    ModelRequestRejectedError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.messages import (
    AgentStreamEvent,
    ModelMessage,
    ModelResponse,
    PartDeltaEvent,
    PartStartEvent,
    TextPart,
    TextPartDelta,
    ToolCallPart,
    UserContent,
)
from pydantic_ai.usage import RunUsage

from . import asking
from .errors import JournalError, StageError
from .frame import Suspended
from .inject import Injection, RequestGate
from .limits import LimitReached
from .record import USAGE, Entry, ModelUse

if TYPE_CHECKING:
    from pydantic_ai import RunContext
    from pydantic_ai.capabilities import AbstractCapability
    from pydantic_ai.models import Model

    from .journal._bag import Recorded
    from .ops import OpMemory
    from .prompts import Prompt
    from .stage import Stage

__all__ = ["Setting", "call_agent"]

_BACKOFF = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_RAW_TEXT = 600


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

    *memory* keeps its requests and tool calls, *found* is what a journal knows of this very call.

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
                if use.attempts > stage.retries or not _worth_repeating(error):
                    raise _stage_error(error, stage, entry, messages) from error
                wait = _wait(error, use.attempts)
                setting.on_retry(use.attempts, error, wait)
            else:
                if not isinstance(result.output, DeferredToolRequests):
                    return result.output
                if memory is None:
                    raise _unanswered(entry)
                use.pending = asking.dump(asking.pending_of(entry.key, entry.path, result.output))
                raise Suspended
            finally:
                use.usage.incr(usage)
                use.messages = tuple(messages)
        await setting.gate.rest(wait)
        use.attempts += 1


async def _opening(
    stage: Stage[Any, Any], entry: Entry, setting: Setting, memory: OpMemory | None, found: Recorded | None
) -> tuple[str | list[UserContent] | None, list[ModelMessage] | None, DeferredToolResults | None]:
    """What the agent is told first: its input, or the answers to what it asked when its run was suspended."""
    if memory is None or found is None or found.row.status != "suspended":
        try:
            content = stage.render(entry.input)
        except Exception as error:
            raise _stage_error(error, stage, entry, []) from error
        return (content if isinstance(content, str) else list(content)), None, None
    use = entry.use
    use.usage = USAGE.validate_json(found.row.usage)
    history, given = asking.asked(found.row, setting.answers)
    answers = await memory.answers(given)
    if answers is None:
        use.messages, use.pending = tuple(history), found.row.pending
        raise Suspended
    return None, history, answers


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
        _TimeoutError: the attempt took longer.
    """
    if stage.timeout is None:
        yield
        return
    with anyio.CancelScope(deadline=anyio.current_time() + stage.timeout) as gate.attempt:
        yield
        return
    msg = f"it took longer than {stage.timeout} s"
    raise _TimeoutError(msg)


class _TimeoutError(TimeoutError):
    """An attempt took longer than its stage allows."""


def _worth_repeating(error: Exception) -> bool:
    """Whether the same question may get an answer next time."""
    permanent = (UserError, UsageLimitExceeded, ModelRequestRejectedError, ModelQuotaExceededError)
    if isinstance(error, permanent):
        return False
    if isinstance(error, ExceptionGroup):  # every model of a `FallbackModel` failed
        return any(_worth_repeating(inner) for inner in cast("ExceptionGroup[Exception]", error).exceptions)
    if isinstance(error, ModelHTTPError):
        return error.status_code in {408, 409, 425, 429} or error.status_code >= 500  # noqa: PLR2004
    return isinstance(error, (AgentRunError, TimeoutError, OSError))


def _wait(error: Exception, attempt: int) -> float:
    if isinstance(error, ExceptionGroup):
        return min(_wait(inner, attempt) for inner in cast("ExceptionGroup[Exception]", error).exceptions)
    asked = error.retry_after if isinstance(error, ModelAPIError) else None
    return asked if asked is not None else _BACKOFF[min(attempt, len(_BACKOFF)) - 1]


def _unanswered(entry: Entry) -> StageError:
    msg = (
        f"stage `{entry.key}`: the agent asks for an approval or an external tool result, "
        "and a run without a journal cannot wait for it: use Runner(journal=SqliteJournal(...)), "
        "or answer inside the agent (HandleDeferredToolCalls)"
    )
    return StageError(msg, key=entry.key, path=entry.path)


def _stage_error(error: Exception, stage: Stage[Any, Any], entry: Entry, messages: list[ModelMessage]) -> StageError:
    what, remedy = _explained(error, stage, messages)
    tried = f" after {entry.use.attempts} attempts" if entry.use.attempts > 1 else ""
    return StageError(f"stage `{entry.key}` failed{tried}: {what}; {remedy}", key=entry.key, path=entry.path)


def _explained(error: Exception, stage: Stage[Any, Any], messages: list[ModelMessage]) -> tuple[str, str]:
    if isinstance(error, _TimeoutError):
        return str(error), "raise `Stage(timeout=)`, or try again with `Stage(retries=)`"
    if isinstance(error, UnexpectedModelBehavior):
        raw = _last_answer(messages)
        cause = error.__cause__
        reason = _validation(cause) if isinstance(cause, ValidationError) else str(error)
        answered = f"; the model last answered: {raw}" if raw else ""
        remedy = "make the instructions or the output type easier to satisfy, or give the agent more `retries`"
        return f"the model gave no valid output: {reason}{answered}", remedy
    if isinstance(error, UsageLimitExceeded):
        return str(error), "the agent made too many requests in one call; look at its messages"
    if isinstance(error, UserError) and str(error).startswith("`model` must"):
        return "no model is set", "say which: Runner(model='openai:gpt-5-mini'), `run(..., model=)` or Stage(model=)"
    if isinstance(error, UserError):
        return str(error), "this is a mistake in how the agent is set up"
    if isinstance(error, ModelAPIError):
        return _one_line(error), _provider_remedy(error)
    if isinstance(error, ExceptionGroup):
        inner = [_explained(one, stage, messages) for one in cast("ExceptionGroup[Exception]", error).exceptions]
        return f"{error.message}: {'; '.join(what for what, _ in inner)}", inner[-1][1]
    return f"{type(error).__name__}: {_one_line(error)}", "a tool, a validator or the renderer of the stage raised this"


def _provider_remedy(error: ModelAPIError) -> str:
    status = error.status_code if isinstance(error, ModelHTTPError) else None
    if isinstance(error, ModelAuthenticationError) or status in {401, 403}:
        return "check the provider's API key"
    if isinstance(error, ModelNotFoundError) or status == 404:  # noqa: PLR2004
        return "check the model's name"
    if isinstance(error, ModelQuotaExceededError):
        return "the account's quota is used up"
    if isinstance(error, ModelRateLimitError) or status == 429:  # noqa: PLR2004
        return "lower `Runner(max_concurrency=)`, or try again with `Stage(retries=)`"
    if isinstance(error, ModelConnectionError) or (status or 0) >= 500:  # noqa: PLR2004
        return "the provider is in trouble; try again with `Stage(retries=)`"
    return "the provider refused the request"


def _validation(error: ValidationError) -> str:
    problems = [f"{'.'.join(map(str, e['loc'])) or 'output'}: {e['msg']}" for e in error.errors(include_url=False)]
    more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""  # noqa: PLR2004
    return "; ".join(problems[:3]) + more


def _last_answer(messages: list[ModelMessage]) -> str:
    for message in reversed(messages):
        if isinstance(message, ModelResponse):
            calls = [
                (part.args if isinstance(part.args, str) else part.args_as_json_str())
                for part in message.parts
                if isinstance(part, ToolCallPart)
            ]
            text = " ".join((message.text or " ".join(calls)).split())
            return text if len(text) <= _RAW_TEXT else text[:_RAW_TEXT] + " ..."
    return ""


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= _RAW_TEXT else text[:_RAW_TEXT] + " ..."
