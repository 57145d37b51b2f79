"""The Pydantic AI model that runs inside the process: OpenAI's, on the port of the engine, with our own grammar."""

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import replace
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx2
from openai import AsyncOpenAI, AsyncStream
from openai.types.chat import ChatCompletionChunk
from openai.types.responses.input_token_count_response import InputTokenCountResponse
from pydantic_ai import RunContext
from pydantic_ai.exceptions import ModelContextWindowExceededError, UserError
from pydantic_ai.messages import CachePoint, ModelMessage, ModelResponse, RetryFeedbackPart, TextContent, UserPromptPart
from pydantic_ai.models import ModelRequestParameters, StreamedResponse
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIChatModelSettings, OpenAIStreamedResponse
from pydantic_ai.profiles.openai import OpenAIModelProfile
from pydantic_ai.providers.openai_compatible import OpenAICompatibleProvider
from pydantic_ai.settings import ModelSettings
from pydantic_ai.usage import RequestUsage

from stagegraph.schema.errors import DeclarationError

from .engine import ENGINES, KNOWN, Engine
from .grammar import write_grammar

MAX_TOKENS = 512
"""Default maximum of an answer's tokens; some seconds of work on an idle core."""
NO_TOOLS = (
    "local models have no tools: remove the tools or use a provider's model, and declare the output type itself, not "
    "`ToolOutput` or a mix of `str` and other types"
)


def model(name: str) -> "LocalModel":
    """The local model with a name, as in `local:smollm2`; its first request loads the weights."""
    return LocalModel(name)


class LocalModel(OpenAIChatModel):
    """A small language model inside the process, for trying things out and for tests, not for production.

    It is free, needs no key and no network, and answers the same prompt with the same text on the same machine. With an
    `output_type` it always writes JSON of that type, of a length that fits `max_tokens`, but seldom a good answer. It
    reads text and has no tools. By default, `max_tokens` is 512 and `temperature` is 0.

    Args:
        name: The model's name; `smollm2` is SmolLM2-135M-Instruct.
        path: The file with the weights, if their package is not installed. It has to be the same file.
        slots: Number of requests that are answered at the same time, on two cores; others wait.
        context: Tokens of a prompt and its answer together; at most the 8192 that this model was trained on.
        threads: Number of threads that compute one answer. More than one is much slower if anything else runs on the
            machine.
        settings: Model settings for every request.

    Raises:
        DeclarationError: no local model has this name. At the first request: the weights or the package that runs them
            is missing, or the weights are not the expected ones.
    """

    unsupported_settings = frozenset({"extra_body", "parallel_tool_calls", "service_tier"})

    def __init__(
        self,
        name: str = "smollm2",
        *,
        path: str | Path | None = None,
        slots: int = 4,
        context: int = 2048,
        threads: int = 1,
        settings: ModelSettings | None = None,
    ) -> None:
        if name not in KNOWN:
            msg = f"no local model is named {name!r}; known: {', '.join(sorted(KNOWN))}"
            raise DeclarationError(msg)
        if min(slots, context, threads) < 1 or context > KNOWN[name][2]:
            sizes, most = f"{slots=}, {context=}, {threads=}", KNOWN[name][2]
            msg = f"no local model has {sizes}: each is at least 1, and {name} was trained on {most} tokens of context"
            raise DeclarationError(msg)
        engine = Engine(name, None if path is None else str(Path(path).absolute()), slots, context, threads)
        self._engine = ENGINES.setdefault(engine, engine)
        http = httpx2.AsyncClient(transport=self._engine, trust_env=False)
        client = AsyncOpenAI(base_url="http://127.0.0.1/v1", api_key="-", http_client=http, timeout=None, max_retries=0)
        profile = OpenAIModelProfile(
            supports_tools=False,
            supports_json_schema_output=True,
            default_structured_output_mode="native",
            supports_image_input=False,
            supports_document_input=False,
            supports_audio_file_input=False,
            # A prompt is rendered as a whole before it is split into tokens, so `<|im_end|>` in it would end its turn.
            may_tokenize_special_tokens_in_content=True,
            context_window=context,
            openai_chat_supports_max_completion_tokens=False,
            openai_chat_supports_multiple_system_messages=False,
            openai_chat_send_back_thinking_parts=False,
        )
        provider = OpenAICompatibleProvider("local", openai_client=client, profile=lambda _: profile)
        super().__init__(name, provider=provider, settings=settings)

    def __hash__(self) -> int:
        return id(self)

    def __reduce__(self) -> tuple[partial["LocalModel"], tuple[()]]:
        """A copy, also in another process, is a model with an equal engine."""
        of = self._engine
        sizes = {"path": of.path, "slots": of.slots, "context": of.context, "threads": of.threads}
        return partial(LocalModel, of.name, **sizes, settings=self.settings), ()

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Answer in one piece; cancellation stops the model at its next token."""
        async with self.request_stream(messages, model_settings, model_request_parameters) as stream:
            async for _ in stream:
                pass
        return stream.get()

    @asynccontextmanager
    async def request_stream(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
        run_context: RunContext[Any] | None = None,
    ) -> AsyncGenerator[StreamedResponse]:
        """Answer token by token; leaving the context stops the model at its next token."""
        used = (await self.count_tokens(messages, model_settings, model_request_parameters)).input_tokens
        texts, prepared, parameters = self._prepare(messages, model_settings, model_request_parameters)
        settings = self._bounded(prepared, parameters, used)
        # OpenAI's `request_stream` obeys `pydantic_ai.models.ALLOW_MODEL_REQUESTS`, which keeps tests away from
        # providers that cost money. Like `TestModel`, this method ignores it: nothing leaves the process.
        response = await self._completions_create(texts, True, settings, parameters)
        async with cast("AsyncStream[ChatCompletionChunk]", response) as chunks:
            yield await self._process_streamed_response(chunks, parameters, settings)

    async def count_tokens(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> RequestUsage:
        """The exact number of a prompt's tokens, without answering the prompt."""
        texts, _, parameters = self._prepare(messages, model_settings, model_request_parameters)
        await self._engine.start()
        path, body = "/chat/completions/input_tokens", {"messages": await self._map_messages(texts, parameters)}
        counted = await self.client.post(path, body=body, cast_to=InputTokenCountResponse)
        return RequestUsage(input_tokens=counted.input_tokens)

    def _prepare(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> tuple[list[ModelMessage], ModelSettings, ModelRequestParameters]:
        if parameters.function_tools or parameters.native_tools or parameters.output_mode == "tool":
            raise UserError(NO_TOOLS)
        prepared, parameters = self.prepare_request(settings, parameters)
        return [_as_text(message) for message in messages], prepared or {}, parameters

    def _bounded(
        self, prepared: ModelSettings, parameters: ModelRequestParameters, used: int
    ) -> OpenAIChatModelSettings:
        settings, name, context = OpenAIChatModelSettings(**prepared), self._engine.name, self._engine.context
        wanted, output = settings.get("max_tokens") or MAX_TOKENS, parameters.output_object
        room = min(wanted, context - used)
        grammar = None if output is None else write_grammar(output.json_schema, room)
        if room < (1 if grammar is None else min(wanted, grammar.tokens)):
            wider = [size for size in (4096, 8192) if used + MAX_TOKENS <= size <= KNOWN[name][2]]
            remedy = f", or use LocalModel({name!r}, context={wider[0]})" if wider else ""
            msg = (
                f"the prompt has {used} tokens and {name} takes {context}, prompt and answer together, which leaves "
                f"{max(room, 0)} of the {grammar.tokens if grammar else wanted} that the answer may take. Shorten or "
                f"split the input{remedy}"
            )
            raise ModelContextWindowExceededError(name, msg)
        top_k = settings.get("top_k")
        body: dict[str, object] = {} if top_k is None else {"top_k": top_k}
        if grammar is not None:
            # With the schema itself, the model would choose its own blanks and answer worse.
            body |= {"grammar": grammar.text, "response_format": {"type": "text"}}
            settings.pop("stop_sequences", None)
        return settings | {"max_tokens": room, "temperature": settings.get("temperature", 0), "extra_body": body}

    @property
    def _streamed_response_cls(self) -> type[OpenAIStreamedResponse]:
        return LocalAnswer


class LocalAnswer(OpenAIStreamedResponse):
    """A streamed answer."""

    def _map_usage(self, response: ChatCompletionChunk) -> RequestUsage:
        # The cost is zero, not unknown. The number of cached tokens depends on other requests.
        return replace(super()._map_usage(response), cost=Decimal(0), cache_read_tokens=0)

    async def _validate_response(self) -> AsyncGenerator[ChatCompletionChunk]:
        # llama.cpp ignores a grammar that it cannot read, and the model then writes free text.
        checked = self.model_request_parameters.output_object is None
        async for chunk in self._response:
            text = chunk.choices[0].delta.content if chunk.choices else None
            if text and not checked and not text.startswith("{"):
                msg = "the output type's JSON schema could not be made into a grammar; declare a simpler type"
                raise UserError(msg)
            checked = checked or bool(text)
            yield chunk


def _as_text(message: ModelMessage) -> ModelMessage:
    for part in message.parts:
        if part.part_kind == "file" or getattr(part, "tool_name", None) is not None:
            msg = f"the message history has a {part.part_kind} part, but {NO_TOOLS}"
            raise UserError(msg)
        content = part.content if isinstance(part, UserPromptPart) else ""
        for item in () if isinstance(content, str) else content:
            if not isinstance(item, (str, TextContent, CachePoint)):
                kind = type(item).__name__
                msg = f"local models read text only, but the prompt has {kind} content: describe it in words"
                raise UserError(msg)
    if isinstance(message, ModelResponse):
        return message
    # An agent has turned these parts into prompts; a request without an agent may still have them.
    parts = [UserPromptPart(p.model_response()) if isinstance(p, RetryFeedbackPart) else p for p in message.parts]
    return replace(message, parts=parts)
