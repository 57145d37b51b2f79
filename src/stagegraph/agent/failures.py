"""What a failure of a stage's agent means: whether waiting may help, how long to wait, and the error for the user."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from random import SystemRandom
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

from stagegraph.schema.errors import StageError, StagegraphError, leaves, problems_of
from stagegraph.schema.types import type_name

from .call import MODEL, AnswerTooLongError, AttemptTimeoutError

if TYPE_CHECKING:
    from stagegraph.data.call import Cause
    from stagegraph.nodes.stage import Stage
    from stagegraph.record.run import Run

    from .call import AgentCall

LONGEST_WAIT = 60.0
"""Seconds: a provider that asks for a longer wait is asked again after this time."""
_BACKOFF = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
_MAX_TEXT = 600
_MAX_VALUE = 80
_RANDOM = SystemRandom()  # of the system: the same in no two workers, and a seed of the user's program stays its own
_NETWORK = frozenset(
    {
        "OSError",
        *(f"{client}.{name}" for client in ("httpx", "httpx2") for name in ("TransportError", "HTTPStatusError")),
        *(f"aiohttp.Client{name}Error" for name in ("Connection", "Payload", "Response")),
        *(f"{sdk}.API{name}Error" for sdk in ("openai", "anthropic") for name in ("Connection", "Status")),
    }
)
"""Errors of the network by name, also as a tool meets them; their libraries need not be installed."""
_LOCAL = (FileExistsError, FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)
_MISTAKES = {"UnsupportedProtocol", "LocalProtocolError"}


# -- what an error means


def provider_error_in(error: BaseException) -> Exception | None:
    """The provider's error that caused *error* (or a mistake in the agent's set-up), if one did; no invalid answer."""
    for cause in causes(error):
        if isinstance(cause, UserError):
            return cause
        if isinstance(cause, ModelAPIError) and _about(cause) != "prompt":
            return cause
        if isinstance(cause, Exception) and _is_network_trouble(cause):
            return cause
    return None


def _is_network_trouble(error: Exception) -> bool:
    """Whether a connection failed, or a server answered that it may succeed later."""
    kinds = type(error).__mro__
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}".removeprefix("builtins.") for kind in kinds}
    if not names & _NETWORK or isinstance(error, _LOCAL) or type(error).__name__ in _MISTAKES:
        return False
    if isinstance(error, TimeoutError) and error.errno is None and names & _NETWORK == {"OSError"}:
        return False  # a limit of the program's own, as of `asyncio.timeout`
    status = _status_of(error)
    return status is None or _may_pass(status)


def _status_of(error: Exception) -> int | None:
    """The HTTP status that an error of a client has, or its response."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status_code", "status", "code"):
            status = getattr(holder, name, None)
            if isinstance(status, int):
                return status
    return None


def _may_pass(status: int) -> bool:
    return status >= 500 or status in {408, 409, 425, 429}  # noqa: PLR2004


def _about(error: ModelAPIError) -> str:
    """What a provider's error is about."""
    status = error.status_code if isinstance(error, ModelHTTPError) else 0
    if isinstance(error, ModelAuthenticationError) or status in {401, 403}:
        return "key"
    if isinstance(error, ModelNotFoundError) or status == 404:  # noqa: PLR2004
        return "name"
    if isinstance(error, ModelQuotaExceededError):
        return "quota"
    if isinstance(error, ModelRateLimitError) or status == 429:  # noqa: PLR2004
        return "rate"
    if isinstance(error, ModelConnectionError) or (status and _may_pass(status)):
        return "trouble"
    if isinstance(error, ModelRequestRejectedError) or status in {400, 413, 422}:
        return "prompt"  # this very request: it is too long, or against the provider's rules
    return "status" if status else "unknown"


_ADVICE = {
    "key": "check the provider's API key",
    "name": "check the model's name",
    "quota": "the account's quota is used up",
    "rate": "lower `Runner(max_concurrency=)`, or try again with `Stage(retries=)`",
    "trouble": "the provider is in trouble; try again with `Stage(retries=)`",
}


def is_lasting(error: Exception) -> bool:
    """Whether waiting cannot help: a bad key, an unknown model, a used-up account, an agent that is set up wrongly."""
    passing = {"rate", "trouble", "unknown"}
    return isinstance(error, UserError) or (isinstance(error, ModelAPIError) and _about(error) not in passing)


def is_transient(error: BaseException) -> bool:
    """Whether a provider or the network caused *error* and waiting may help."""
    cause = provider_error_in(error)
    return cause is not None and not is_lasting(cause)


def cause_of(error: BaseException) -> Cause | None:
    """What kind of failure ended a run, if it was a limit of time or a model."""
    found = list(causes(error))
    if any(isinstance(one, TimeoutError) for one in found):
        return "timeout"
    return "model" if any(isinstance(one, AgentRunError) for one in found) else None


def is_retryable(error: Exception) -> bool:
    """Whether another attempt of the agent may succeed; of a group (each model of a `FallbackModel`), one suffices."""
    return any(
        is_transient(one)
        or (
            isinstance(one, (AgentRunError, TimeoutError, OSError))
            and not isinstance(one, UsageLimitExceeded)
            and not is_lasting(one)
        )
        for one in leaves(error)
    )


def wait_before(error: Exception, attempt: int, longest: float | None) -> float:
    """Seconds to wait after failed attempt number *attempt*: what the provider asked for, else longer each time.

    At most *longest*: what is left of `Stage(timeout=)`, which all waits of a call share. Chance makes each wait longer
    or shorter by up to a quarter, so that calls which failed together do not come back together; none is shorter than
    what the provider asked for.
    """
    usual = _BACKOFF[min(attempt, len(_BACKOFF)) - 1]
    asked = [_asked(one) for one in leaves(error)]
    low, high = min((usual * 0.75, usual * 1.25) if wait is None else (wait, wait * 1.25) for wait in asked)
    if longest is not None and high > longest:
        low, high = min(low, longest * 0.75), longest
    return _RANDOM.uniform(low, high)


def retry_after(error: Exception) -> float:
    """Seconds that the provider asked for, and at most `LONGEST_WAIT`; 0 when it did not ask."""
    return _asked(error) or 0.0


def _asked(error: BaseException) -> float | None:
    """The wait that a server asked for, if that is a number of seconds or a date."""
    if not isinstance(error, Exception):
        return None
    if not isinstance(error, ModelAPIError):
        cause = provider_error_in(error)
        headers = getattr(getattr(cause, "response", cause), "headers", None)
        try:
            error = ModelHTTPError(0, "", headers=dict(headers or {}))  # it reads both forms of the header
        except (AttributeError, TypeError, ValueError):
            return None  # of another library, in another form
    seconds = error.retry_after
    return min(seconds, LONGEST_WAIT) if seconds is not None and seconds >= 0 else None


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


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, the members of a group, and what each was raised from."""
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


def bad_renderer(error: Exception, call: AgentCall) -> StageError:
    what, remedy = _explained(error, (), lambda _: "the renderer of the stage (`render=`) raised this")
    return _error(call, f" failed: {what}; {remedy}")


def stage_error(error: Exception, call: AgentCall, source_of: Callable[[Exception], str]) -> StageError:
    """The error of a stage whose agent raised *error*; *source_of* says which part of the agent raised an error."""
    what, remedy = _explained(error, call.use.messages, source_of)
    attempts = call.use.attempts
    tried = f" after {attempts} attempts" if attempts > 1 else ""
    return _error(call, f" failed{tried}: {what}" + (f"; {remedy}" if remedy else ""))


def source_of(error: Exception, raised: list[tuple[BaseException, str]], stage: Stage[Any, Any], deps: object) -> str:
    """Which part of an agent raised *error*, by what was *raised* in its model and its tools.

    Says as well that the deps may be the reason: an agent's tools are the likeliest to need what it was not given.
    """
    known = {id(cause) for cause in causes(error)}
    found = next((part for one, part in raised if any(id(cause) in known for cause in causes(one))), None)
    if found == MODEL:
        return f"{MODEL} raised this: check the model, its settings and its provider"
    part = found or "a validator, a function of instructions or a capability of the agent"
    wanted, mistyped = stage.agent.deps_type, isinstance(error, (AttributeError, TypeError, KeyError))
    declared = f"the agent declares `deps_type={type_name(wanted)}` and "
    if _is_no(wanted, deps):
        given = "was given no deps" if deps is None else f"was given {type(deps).__name__}"
        return f"{part} raised this; {declared}{given}: pass `deps=` where you run the graph, or pick with Stage(deps=)"
    if deps is None and mistyped and "NoneType" in str(error):
        return f"{part} raised this; if it is about `ctx.deps`, pass `deps=` where you run the graph: it had none"
    return f"{part} raised this"


def _is_no(wanted: object, deps: object) -> bool:
    """Whether deps are not of the type that an agent declares, as far as that can be told."""
    try:
        return isinstance(wanted, type) and wanted is not type(None) and not isinstance(deps, wanted)
    except TypeError:  # a protocol that cannot be asked
        return False


def _error(call: AgentCall, text: str) -> StageError:
    return StageError(f"stage `{call.key}`{text}", key=call.key, path=call.path)


def _explained(
    error: Exception, messages: Sequence[ModelMessage], source_of: Callable[[Exception], str]
) -> tuple[str, str]:
    """What happened, and what the user can do about it."""
    text, name, members = str(error), type(error).__name__, leaves(error)
    if isinstance(error, StagegraphError):
        return text, ""
    if isinstance(error, UserError) and text.startswith("`model` must"):
        return "no model is set", _NO_MODEL
    for kind, remedy in _REMEDIES:
        if isinstance(error, kind):
            return text, remedy
    if isinstance(error, UnexpectedModelBehavior):
        raw = _last_answer(messages)
        cause = error.__cause__
        reason = problems_of(cause, whole="output", most=3) if isinstance(cause, ValidationError) else text
        answered = f"; the model last answered: {raw}" if raw else ""
        remedy = "make the instructions or the output type easier to satisfy, or give the agent more `retries`"
        return f"the model gave no valid output: {reason}{answered}", remedy
    if isinstance(error, ModelAPIError):
        return _one_line(text), _ADVICE.get(_about(error), "the provider refused the request")
    if isinstance(error, ExceptionGroup):
        inner = [_explained(one, messages, source_of) for one in members if isinstance(one, Exception)]
        return f"{error.message}: {'; '.join(what for what, _ in inner)}", inner[-1][1]
    return f"{name}: {_one_line(text)}" if text else name, source_of(error)


_NO_MODEL = "say which: Runner(model='openai:gpt-5-mini'), `run(..., model=)`, Stage(model=) or --model"
_REMEDIES: tuple[tuple[type[Exception], str], ...] = (
    (AnswerTooLongError, "ask for less, or set `max_tokens` in the model settings"),
    (AttemptTimeoutError, "raise `Stage(timeout=)`, or try again with `Stage(retries=)`"),
    (UsageLimitExceeded, "the agent made too many requests in one call; look at its messages"),
    (UserError, "this is a mistake in how the agent is set up"),
)


def _last_answer(messages: Sequence[ModelMessage]) -> str:
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
