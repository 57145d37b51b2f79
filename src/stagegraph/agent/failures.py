"""Why a stage's agent failed: what an attempt's error means, whether another may help, and what the user is told."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, cast

from pydantic import ValidationError
from pydantic_ai.exceptions import (
    AgentRunError,
    ModelAPIError,
    ModelAuthenticationError,
    ModelConnectionError,
    ModelHTTPError,
    ModelNotFoundError,
    ModelQuotaExceededError,
    ModelRateLimitError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart

from stagegraph.schema.errors import StageError

from .faults import is_lasting

if TYPE_CHECKING:
    from typing import Any

    from stagegraph.nodes.stage import Stage
    from stagegraph.runner.state import Entry

__all__ = [
    "AttemptTimeoutError",
    "bad_deps",
    "bad_render",
    "stage_error",
    "unanswered",
    "wait_before",
    "worth_repeating",
]

_BACKOFF = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_RAW_TEXT = 600
_SHOWN = 80


class AttemptTimeoutError(TimeoutError):
    """An attempt took longer than its stage allows."""


def worth_repeating(error: Exception) -> bool:
    """Whether the same question may get an answer next time."""
    if isinstance(error, UsageLimitExceeded) or is_lasting(error):
        return False
    if isinstance(error, ExceptionGroup):  # every model of a `FallbackModel` failed
        return any(worth_repeating(inner) for inner in cast("ExceptionGroup[Exception]", error).exceptions)
    return isinstance(error, (AgentRunError, TimeoutError, OSError))


def wait_before(error: Exception, attempt: int) -> float:
    if isinstance(error, ExceptionGroup):
        return min(wait_before(inner, attempt) for inner in cast("ExceptionGroup[Exception]", error).exceptions)
    asked = error.retry_after if isinstance(error, ModelAPIError) else None
    return asked if asked is not None else _BACKOFF[min(attempt, len(_BACKOFF)) - 1]


def unanswered(entry: Entry) -> StageError:
    msg = (
        f"stage `{entry.key}`: the agent asks for an approval or an external tool result, "
        "and a run without a journal cannot wait for it: use Runner(journal=SqliteJournal(...)), "
        "or answer inside the agent (HandleDeferredToolCalls)"
    )
    return StageError(msg, key=entry.key, path=entry.path)


def bad_render(content: object, entry: Entry) -> StageError:
    if inspect.iscoroutine(content):
        content.close()  # the message says what Python would warn of
        gave, remedy = "a coroutine", "make it an ordinary function, without `async`"
    else:
        gave, remedy = repr(content)[:_SHOWN], "return one of these"
    msg = f"stage `{entry.key}`: its `render=` must give text or a list of content parts, and gave {gave}: {remedy}"
    return StageError(msg, key=entry.key, path=entry.path)


def bad_deps(error: Exception, entry: Entry, deps: object) -> StageError:
    if deps is None:
        given = "the run was given no deps: pass `deps=` where you run the graph"
    else:
        given = f"the run's deps are of type {type(deps).__name__}: pass what the selector expects, or change it"
    told = f"{type(error).__name__}: {_one_line(error)}"
    msg = f"stage `{entry.key}`: its `deps=` selector failed ({told}); {given}"
    return StageError(msg, key=entry.key, path=entry.path)


def stage_error(error: Exception, stage: Stage[Any, Any], entry: Entry, messages: list[ModelMessage]) -> StageError:
    what, remedy = _explained(error, stage, messages)
    tried = f" after {entry.use.attempts} attempts" if entry.use.attempts > 1 else ""
    return StageError(f"stage `{entry.key}` failed{tried}: {what}; {remedy}", key=entry.key, path=entry.path)


def _explained(error: Exception, stage: Stage[Any, Any], messages: list[ModelMessage]) -> tuple[str, str]:
    if isinstance(error, AttemptTimeoutError):
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
