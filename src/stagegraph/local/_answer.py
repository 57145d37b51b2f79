"""One question to the model: how long its answer may be, and what can go wrong on the way."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pydantic_ai.exceptions import (
    ModelAPIError,
    ModelContextWindowExceededError,
    ModelRequestRejectedError,
    ModelServerError,
    UserError,
)

from ._engine import Chunk, EngineConfig, Problem, engine
from ._grammar import write_grammar
from ._weights import KNOWN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping, Sequence

    from ._messages import Turn
    from ._pieces import Json

__all__ = ["MAX_TOKENS", "Question", "answer", "count"]

MAX_TOKENS = 512
"""Tokens of an answer at most, where the settings do not say; some seconds of work on a quiet core."""
_SAMPLING = ("top_p", "top_k", "seed", "presence_penalty", "frequency_penalty")


@dataclass(frozen=True, slots=True)
class Question:
    """All that decides an answer."""

    config: EngineConfig
    turns: Sequence[Turn]
    schema: Json | None = None
    """Of the JSON to answer with; plain text where it is `None`."""
    settings: Mapping[str, Any] | None = None

    def body(self, **more: object) -> dict[str, object]:
        """The request to llama.cpp's server."""
        return {"messages": [turn._asdict() for turn in self.turns], **more}


async def answer(question: Question) -> AsyncGenerator[Chunk]:
    """The answer in chunks, the last of which says how it ended and what it took."""
    settings = question.settings or {}
    wanted = settings.get("max_tokens") or MAX_TOKENS
    body = question.body(
        max_tokens=wanted, temperature=settings.get("temperature", 0), stream_options={"include_usage": True}
    )
    body |= {name: settings[name] for name in _SAMPLING if settings.get(name) is not None}
    if question.schema is not None:
        body |= await _bounded(question, question.schema, wanted)
    elif stop := settings.get("stop_sequences"):
        body["stop"] = stop
    ended, started = False, False
    async with aclosing(engine(question.config).stream(body)) as chunks:
        async for chunk in chunks:
            if chunk.error is not None:
                raise _failed(question.config, chunk.error)
            for choice in chunk.choices:
                if question.schema is not None and choice.delta.content and not started:
                    started = True
                    if not choice.delta.content.startswith("{"):
                        msg = "the output type's JSON schema could not be made into a grammar; declare a simpler type"
                        raise UserError(msg)
                ended = ended or choice.finish_reason is not None
            yield chunk
    if not ended:  # pragma: no cover - llama.cpp says how an answer ended
        raise ModelServerError(question.config.name, "the local model stopped in the middle of an answer; try again")


async def count(question: Question) -> int:
    """The tokens of the prompt, exactly."""
    # The server says how long a prompt is when it starts to read it, and this leaves at that point. What has been
    # read by then stays in the server's cache for the request that follows.
    body = question.body(max_tokens=1, return_progress=True)
    async with aclosing(engine(question.config).stream(body)) as chunks:
        async for chunk in chunks:
            if chunk.error is not None:
                raise _failed(question.config, chunk.error)
            if chunk.prompt_progress is not None:  # pragma: no branch - it comes first
                return chunk.prompt_progress.total
    msg = "the local model did not say how long the prompt is; try again"  # pragma: no cover - llama.cpp does
    raise ModelServerError(question.config.name, msg)  # pragma: no cover


async def _bounded(question: Question, schema: Json, wanted: int) -> dict[str, object]:
    room = await _room(question, wanted)
    grammar = write_grammar(schema, room)
    if room < min(wanted, grammar.tokens):
        used = question.config.context - room
        raise _too_long(question.config, used, f"which leaves {room} of the {grammar.tokens} that this type may take")
    return {"grammar": grammar.text, "max_tokens": room}


async def _room(question: Question, wanted: int) -> int:
    """Tokens that an answer may have; the prompt is counted only where that could matter."""
    # A token has one byte at least; the template puts some tokens around each turn, and perhaps a sentence in front.
    longest = 64 + sum(8 + len(turn.content.encode()) for turn in question.turns)
    if longest + wanted <= question.config.context:
        return wanted
    return min(wanted, question.config.context - await count(question))


def _failed(config: EngineConfig, problem: Problem) -> ModelAPIError:
    if problem.type == "exceed_context_size_error":
        return _too_long(config, problem.n_prompt_tokens or config.context, "which leaves none for an answer")
    category = ModelRequestRejectedError if problem.code < 500 else ModelServerError  # noqa: PLR2004 - as in HTTP
    return category(config.name, f"the local model failed: {problem.message}", body=problem.model_dump())


def _too_long(config: EngineConfig, tokens: int, consequence: str) -> ModelContextWindowExceededError:
    wider = next((size for size in (4096, 8192) if tokens + MAX_TOKENS <= size <= KNOWN[config.name].context), None)
    remedy = "" if wider is None else f", or use LocalModel({config.name!r}, context={wider})"
    msg = (
        f"the prompt has {tokens} tokens and {config.name} takes {config.context}, prompt and answer together, "
        f"{consequence}. Shorten or split the input{remedy}"
    )
    return ModelContextWindowExceededError(config.name, msg)
