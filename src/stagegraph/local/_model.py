"""The Pydantic AI model that runs inside the process."""

from __future__ import annotations

from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from pydantic_ai.exceptions import UserError
from pydantic_ai.models import Model, ModelRequestParameters, StreamedResponse
from pydantic_ai.profiles import ModelProfile
from pydantic_ai.usage import RequestUsage

from stagegraph.schema.errors import DeclarationError

from ._answer import Question, answer, count
from ._engine import EngineConfig
from ._messages import NO_TOOLS, read_turns
from ._stream import LocalStream
from ._weights import KNOWN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Mapping

    from pydantic_ai import RunContext
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.settings import ModelSettings

__all__ = ["LocalModel", "model"]


def model(name: str) -> LocalModel:
    """The local model with a name, as in `local:smollm2`; nothing is loaded before its first request.

    Raises:
        DeclarationError: there is no local model with this name.
    """
    return LocalModel(name)


class LocalModel(Model):
    """A small language model inside the process, for trying things out and for tests, not for production.

    It is free, needs no key and no network, and answers the same prompt with the same text on the same machine. With an
    `output_type` it always writes JSON of that type, of a length that fits `max_tokens`; what it writes there is
    seldom good. It reads text and has no tools.

    Of the model settings it honours `max_tokens` (512 where unset), `temperature` (0), `top_p`, `top_k`, `seed`,
    `presence_penalty`, `frequency_penalty` and, where the output is text, `stop_sequences`; Pydantic AI adds
    `request_timeout`.

    Args:
        name: Which model; `smollm2` is SmolLM2-135M-Instruct.
        path: Its weights, where the package that carries them is not installed. They have to be the same file.
        slots: Requests that are answered at the same time; others wait.
        context: Tokens of a prompt and its answer together; at most the 8192 that this model was trained on.
        threads: Threads that compute. More than one is much slower as soon as anything else runs on the machine.
        settings: Model settings for every request.

    Raises:
        DeclarationError: there is no local model with this name. At the first request: the weights or the package
            that runs them is missing, or the weights are not the expected ones.
    """

    # Requests do not leave the process, so `pydantic_ai.models.ALLOW_MODEL_REQUESTS`, which keeps tests away from
    # providers that cost money, is not asked; Pydantic AI's own `TestModel` and `FunctionModel` do not ask it either.

    unsupported_settings = frozenset(
        {
            "extra_body",
            "extra_headers",
            "logit_bias",
            "max_retries",
            "parallel_tool_calls",
            "service_tier",
            "timeout",
        }
    )

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
            msg = f"there is no local model {name!r}; known: {', '.join(sorted(KNOWN))}"
            raise DeclarationError(msg)
        if min(slots, context, threads) < 1 or context > KNOWN[name].context:
            msg = (
                f"a local model cannot have {slots=}, {context=}, {threads=}: each is at least 1, and {name} was "
                f"trained on {KNOWN[name].context} tokens of context"
            )
            raise DeclarationError(msg)
        profile = ModelProfile(
            supports_tools=False,
            supports_json_schema_output=True,
            default_structured_output_mode="native",
            supports_image_input=False,
            supports_document_input=False,
            supports_audio_file_input=False,
            supports_video_input=False,
            # A prompt is rendered as a whole before it is cut into tokens, so `<|im_end|>` in it would end its turn.
            may_tokenize_special_tokens_in_content=True,
            supported_native_tools=frozenset(),
            context_window=context,
        )
        super().__init__(settings=settings, profile=profile)
        where = None if path is None else Path(path).absolute()
        self._config = EngineConfig(name, where, slots, context, threads)

    def __repr__(self) -> str:
        return f"LocalModel({self.model_name!r})"

    @property
    def model_name(self) -> str:
        """The name after `local:`."""
        return self._config.name

    @property
    def system(self) -> str:
        """The provider's name, `local`."""
        return "local"

    def prepare_request(
        self, model_settings: ModelSettings | None, model_request_parameters: ModelRequestParameters
    ) -> tuple[ModelSettings | None, ModelRequestParameters]:
        """The usual preparation, after refusing in plain words what would need tools."""
        if model_request_parameters.function_tools or model_request_parameters.native_tools:
            msg = f"this agent has tools, but {NO_TOOLS}"
            raise UserError(msg)
        if model_request_parameters.output_mode == "tool":
            msg = (
                "local models have no tools, so they cannot give output through one either: declare the output type "
                "itself instead of `ToolOutput`, and do not mix `str` with other output types"
            )
            raise UserError(msg)
        return super().prepare_request(model_settings, model_request_parameters)

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Answer in one piece; being cancelled stops the model at its next token."""
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
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        async with aclosing(answer(self._question(messages, settings, parameters))) as chunks:
            yield LocalStream(parameters, self.model_name, chunks, await anext(chunks))

    async def count_tokens(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> RequestUsage:
        """The tokens of a prompt, exactly, without answering it."""
        settings, parameters = self.prepare_request(model_settings, model_request_parameters)
        return RequestUsage(input_tokens=await count(self._question(messages, settings, parameters)))

    def _question(
        self, messages: list[ModelMessage], settings: ModelSettings | None, parameters: ModelRequestParameters
    ) -> Question:
        turns = read_turns(messages, parameters.instruction_parts)
        schema = None if parameters.output_object is None else parameters.output_object.json_schema
        return Question(self._config, turns, schema, cast("Mapping[str, Any] | None", settings))
