"""A Pydantic AI model as a `dspy.LM`, and the model behind a `dspy.LM`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self, cast

import dspy
from dspy.dsp.utils.settings import main_thread_config
from pydantic_ai.direct import model_request
from pydantic_ai.exceptions import ModelAPIError
from pydantic_ai.models import Model
from pydantic_ai.models.wrapper import WrapperModel
from pydantic_ai.settings import ModelSettings, merge_model_settings

from stagegraph.agent.models import Models
from stagegraph.schema.errors import DeclarationError, TuningError

from .loop import await_here, run_here
from .wire import cost_in, messages_of, parameters_of, response_of, settings_in, settings_of, translated

if TYPE_CHECKING:
    from pydantic_ai.messages import ModelMessage, ModelResponse
    from pydantic_ai.models import ModelRequestParameters


def lm(model: Model[Any] | str, *, cache: bool | None = None, **settings: Any) -> dspy.LM:
    """Any Pydantic AI model as a `dspy.LM`.

    Args:
        model: A model, or a name: `openai:gpt-5`, `local:smollm2`.
        cache: Whether DSPy may answer an equal request from its cache on disk. The cache identifies a model by its name
            alone, so by default only named models are cached.
        settings: Arguments of a `dspy.LM`: `temperature`, `max_tokens`, `n`, `num_retries`, `rollout_id`, ...

    Raises:
        DeclarationError: *model* is neither.
    """
    if not isinstance(model, (Model, str)):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"lm(model) takes a Pydantic AI model or its name, not {model!r}"
        raise DeclarationError(msg)
    models = Models()
    engine, async_engine = PydanticEngine(model, models), AsyncPydanticEngine(model, models)
    caches = isinstance(model, str) if cache is None else cache
    return BridgedLM(f"pydantic-ai/{engine.name}", engine=engine, async_engine=async_engine, cache=caches, **settings)


class BridgedLM(dspy.LM):
    """A `dspy.LM` that sends its requests to a Pydantic AI model; its history has their cost."""

    def update_history(self, entry: dict[str, Any]) -> None:
        """Add a request, with its cost if Pydantic AI knows the price."""
        if entry.get("cost") is None:
            entry["cost"] = cost_in(entry.get("response"))
        cast("Any", super()).update_history(entry)


class PydanticEngine:
    """What answers the requests of a `dspy.LM` that blocks; provider clients live on the background loop."""

    def __init__(self, model: Model[Any] | str, models: Models | None = None) -> None:
        self._model = model
        self._models = models or Models()

    @property
    def name(self) -> str:
        """The model's name."""
        return self._model if isinstance(self._model, str) else self._model.model_name

    @property
    def model(self) -> Model[Any]:
        """The model itself; a named one is made at its first request."""
        return self._models.get(self._model)

    def complete(self, request: Any) -> Any:
        """One request, one answer."""
        return run_here(self.ask(request), "await lm.acall(...)")

    async def ask(self, request: Any) -> Any:
        """The model's answer; to be awaited on the background loop."""
        model = self.model
        try:
            response = await model_request(
                model,
                messages_of(request),
                model_settings=settings_of(request),
                model_request_parameters=parameters_of(request, model),
            )
        except ModelAPIError as error:
            raise translated(error) from error
        return response_of(response, self.name)

    def dump_state(self) -> dict[str, Any]:
        """The model's name.

        Raises:
            TypeError: the model was given as an object, which cannot be made again from a name.
        """
        if not isinstance(self._model, str):
            msg = f"the model {self.name!r} is an object and cannot be saved: give its name, as in lm('openai:gpt-5')"
            raise TypeError(msg)
        return {"model": self._model}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Self:
        """The engine of a saved name."""
        return cls(state["model"])


class AsyncPydanticEngine(PydanticEngine):
    """The same for callers that await."""

    async def complete(self, request: Any) -> Any:
        """One request, one answer."""
        return await await_here(self.ask(request))


class Sampled(WrapperModel):
    """A model with settings that an optimizer chose; they override those of the agent."""

    def __init__(self, wrapped: Model[Any], settings: ModelSettings) -> None:
        super().__init__(wrapped)
        self._chosen = settings

    async def request(
        self,
        messages: list[ModelMessage],
        model_settings: ModelSettings | None,
        model_request_parameters: ModelRequestParameters,
    ) -> ModelResponse:
        """Send a request with the chosen settings."""
        settings = merge_model_settings(model_settings, self._chosen)
        return await self.wrapped.request(messages, settings, model_request_parameters)


def model_behind(lm: object, models: Models) -> Model[Any]:
    """The Pydantic AI model of a stage for which DSPy chose *lm*.

    Raises:
        TuningError: the LM is no Pydantic AI model, and its name stands for none.
    """
    engine = getattr(lm, "_engine_spec", None)
    kwargs: dict[str, Any] = getattr(lm, "kwargs", {})
    if isinstance(engine, PydanticEngine):
        model = engine.model
    elif (
        isinstance(lm, dspy.LM) and isinstance(engine, str) and not kwargs.keys() & {"api_base", "api_key", "base_url"}
    ):
        provider, _, rest = cast("str", cast("Any", lm).model).partition("/")
        model = models.get(f"{_PROVIDERS.get(provider, provider)}:{rest}" if rest else f"openai:{provider}")
    else:
        kind = getattr(lm, "model", "")
        msg = (
            f"the stages of a graph run Pydantic AI models, and {type(lm).__name__} {kind!r} is none: "
            "write stagegraph.optimize.lm(model) instead, or GraphModule(graph, model=...)"
        )
        raise TuningError(msg)
    settings = settings_in(kwargs)
    return Sampled(model, settings) if settings else model


def general_lm() -> tuple[Any, Any]:
    """The LM of `dspy.context(lm=)`, and the one that DSPy is configured with; `None` where there is none.

    An optimizer that samples puts copies of the configured LM into a context. The user did not choose such a copy, so
    it counts as the configured LM, with the settings of the copy.
    """
    lm, configured = cast("Any", dspy.settings).lm, cast("Any", main_thread_config)["lm"]
    return (lm, None) if configured is None or _origin(lm) != _origin(configured) else (None, lm)


def _origin(lm: Any) -> tuple[Any, ...]:
    """What an LM has in common with its copies."""
    return lm.__class__, getattr(lm, "model", None), id(getattr(lm, "_engine_spec", None))


_PROVIDERS = {"gemini": "google-gla", "vertex_ai": "google-vertex"}
