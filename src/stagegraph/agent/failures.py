"""What a failure of a stage's agent means: whether waiting may help, how long to wait, and the error for the user."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

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
    ModelRequestRejectedError,
    UnexpectedModelBehavior,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart

from stagegraph.schema.errors import StageError, leaves, problems_of

from .call import AttemptTimeoutError

if TYPE_CHECKING:
    from stagegraph.record.run import Run

    from .call import AgentCall

_BACKOFF = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_MAX_TEXT = 600
_MAX_VALUE = 80


# -- what an error means


def provider_error_in(error: BaseException) -> Exception | None:
    """The provider's error that caused *error* (or a mistake in the agent's set-up), if one did; no invalid answer."""
    for cause in _causes(error):
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, ModelAPIError) and not _is_about_the_prompt(cause):
            return cause
        if isinstance(cause, OSError) and not isinstance(cause, (TimeoutError, FileNotFoundError, PermissionError)):
            return cause
    return None


def is_lasting(error: Exception) -> bool:
    """Whether waiting cannot help: a bad key, an unknown model, a used-up account, an agent that is set up wrongly."""
    if isinstance(error, (UserError, ModelRequestRejectedError, ModelQuotaExceededError)):
        return True
    status = error.status_code if isinstance(error, ModelHTTPError) else None
    return status is not None and status < 500 and status not in {408, 409, 425, 429}  # noqa: PLR2004


def is_transient(error: BaseException) -> bool:
    """Whether a provider or the network caused *error* and waiting may help."""
    cause = provider_error_in(error)
    return cause is not None and not is_lasting(cause)


def is_retryable(error: Exception) -> bool:
    """Whether another attempt of the agent may succeed; of a group (each model of a `FallbackModel`), one suffices."""
    return any(
        isinstance(one, (AgentRunError, TimeoutError, OSError))
        and not isinstance(one, UsageLimitExceeded)
        and not is_lasting(one)
        for one in leaves(error)
    )


def wait_before(error: Exception, attempt: int) -> float:
    """Seconds to wait after failed attempt number *attempt*: what the provider asked for, else longer each time."""
    usual = _BACKOFF[min(attempt, len(_BACKOFF)) - 1]
    asked = [one.retry_after if isinstance(one, ModelAPIError) else None for one in leaves(error)]
    return min(usual if seconds is None else seconds for seconds in asked)


def retry_after(error: Exception) -> float:
    """Seconds that the provider asked for; 0 when it did not ask."""
    return (error.retry_after or 0.0) if isinstance(error, ModelAPIError) else 0.0


def has_transient_failures(run: Run[Any, Any]) -> bool:
    """Whether a run lacks a call that failed for a transient reason, as `settle` and `except` allow.

    The output of such a run says little about the program. A call that was repeated and then succeeded is not lacking.
    """
    succeeded = {_REPEAT.sub("", call.key) for call in run.root.walk() if call.ok}
    return any(
        call.error is not None and call.error.transient and _REPEAT.sub("", call.key) not in succeeded
        for call in run.failures()
    )


_REPEAT = re.compile(r"#\d+$")


def _causes(error: BaseException) -> Iterator[BaseException]:
    pending, seen = [error], set[int]()
    while pending:
        current = pending.pop(0)
        if id(current) in seen:
            continue
        seen.add(id(current))
        yield current
        pending.extend(leaves(current))
        if current.__cause__ is not None:
            pending.append(current.__cause__)


def _is_about_the_prompt(error: ModelAPIError) -> bool:
    """Whether this very request was refused: it is too long, or against the provider's rules."""
    refused = isinstance(error, ModelRequestRejectedError) and not isinstance(
        error, (ModelAuthenticationError, ModelNotFoundError, ModelQuotaExceededError)
    )
    return refused or (isinstance(error, ModelHTTPError) and error.status_code in {400, 413, 422})


# -- the errors of a stage


def unanswered(call: AgentCall) -> StageError:
    return _error(
        call,
        ": the agent asks for an approval or an external tool result, "
        "and a run without a journal cannot wait for it: use Runner(journal=SqliteJournal(...)), "
        "or answer inside the agent (HandleDeferredToolCalls)",
    )


def bad_render(content: object, call: AgentCall) -> StageError:
    if inspect.iscoroutine(content):
        content.close()  # Python would warn that it was never awaited; the message says the same
        gave, remedy = "a coroutine", "make it an ordinary function, without `async`"
    else:
        gave, remedy = repr(content)[:_MAX_VALUE], "return one of these"
    return _error(call, f": its `render=` must give text or a list of content parts, and gave {gave}: {remedy}")


def bad_deps(error: Exception, call: AgentCall, deps: object) -> StageError:
    if deps is None:
        given = "the run was given no deps: pass `deps=` where you run the graph"
    else:
        given = f"the run's deps are of type {type(deps).__name__}: pass what the selector expects, or change it"
    return _error(call, f": its `deps=` selector failed ({type(error).__name__}: {_one_line(str(error))}); {given}")


def stage_error(error: Exception, call: AgentCall, messages: list[ModelMessage]) -> StageError:
    """The error of a stage whose agent failed; *messages* are those of the last attempt."""
    what, remedy = _explained(error, messages)
    attempts = call.use.attempts
    tried = f" after {attempts} attempts" if attempts > 1 else ""
    return _error(call, f" failed{tried}: {what}; {remedy}")


def _error(call: AgentCall, text: str) -> StageError:
    return StageError(f"stage `{call.key}`{text}", key=call.key, path=call.path)


def _explained(error: Exception, messages: list[ModelMessage]) -> tuple[str, str]:
    """What happened, and what the user can do about it."""
    text, name, members = str(error), type(error).__name__, leaves(error)
    if isinstance(error, UnexpectedModelBehavior):
        raw = _last_answer(messages)
        cause = error.__cause__
        reason = problems_of(cause, whole="output", most=3) if isinstance(cause, ValidationError) else text
        answered = f"; the model last answered: {raw}" if raw else ""
        remedy = "make the instructions or the output type easier to satisfy, or give the agent more `retries`"
        return f"the model gave no valid output: {reason}{answered}", remedy
    if isinstance(error, ModelAPIError):
        return _one_line(text), _provider_remedy(error)
    if isinstance(error, ExceptionGroup):
        inner = [_explained(one, messages) for one in members if isinstance(one, Exception)]
        return f"{error.message}: {'; '.join(what for what, _ in inner)}", inner[-1][1]
    if isinstance(error, UserError) and text.startswith("`model` must"):
        return "no model is set", "say which: Runner(model='openai:gpt-5-mini'), `run(..., model=)` or Stage(model=)"
    for kind, remedy in _REMEDIES:
        if isinstance(error, kind):
            return text, remedy
    return f"{name}: {_one_line(text)}", "a tool, a validator or the renderer of the stage raised this"


_REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (AttemptTimeoutError, "raise `Stage(timeout=)`, or try again with `Stage(retries=)`"),
    (UsageLimitExceeded, "the agent made too many requests in one call; look at its messages"),
    (UserError, "this is a mistake in how the agent is set up"),
)


def _provider_remedy(error: ModelAPIError) -> str:
    status = error.status_code if isinstance(error, ModelHTTPError) else 0
    if isinstance(error, ModelAuthenticationError) or status in {401, 403}:
        return "check the provider's API key"
    if isinstance(error, ModelNotFoundError) or status == 404:  # noqa: PLR2004
        return "check the model's name"
    if isinstance(error, ModelQuotaExceededError):
        return "the account's quota is used up"
    if isinstance(error, ModelRateLimitError) or status == 429:  # noqa: PLR2004
        return "lower `Runner(max_concurrency=)`, or try again with `Stage(retries=)`"
    if isinstance(error, ModelConnectionError) or status >= 500:  # noqa: PLR2004
        return "the provider is in trouble; try again with `Stage(retries=)`"
    return "the provider refused the request"


def _last_answer(messages: list[ModelMessage]) -> str:
    for message in reversed(messages):
        if isinstance(message, ModelResponse):
            calls = [
                (part.args if isinstance(part.args, str) else part.args_as_json_str())
                for part in message.parts
                if isinstance(part, ToolCallPart)
            ]
            return _one_line(message.text or " ".join(calls))
    return ""


def _one_line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= _MAX_TEXT else line[:_MAX_TEXT] + " ..."
