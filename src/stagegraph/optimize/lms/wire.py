"""DSPy's requests and answers as Pydantic AI's messages, and back."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping, Sequence
from http import HTTPStatus
from typing import Any, cast

import pydantic_ai as pai
from dspy import lm15
from pydantic_ai.models import Model, ModelRequestParameters
from pydantic_ai.output import OutputObjectDefinition

_URLS = {"image": pai.ImageUrl, "audio": pai.AudioUrl, "video": pai.VideoUrl, "document": pai.DocumentUrl}
_COST = "stagegraph_cost_usd"
_SAME = ("max_tokens", "temperature", "top_p", "top_k", "seed", "presence_penalty", "frequency_penalty", "service_tier")


def messages_of(request: Any) -> list[pai.ModelMessage]:
    """The conversation of a request, with the system text first."""
    messages: list[pai.ModelMessage] = []
    tools: dict[str, str] = {}
    if request.system is not None:
        texts = [request.system] if isinstance(request.system, str) else [part.text for part in request.system]
        messages.append(pai.ModelRequest([pai.SystemPromptPart("\n\n".join(texts))]))
    for message in request.messages:
        if message.role == "assistant":
            parts = [part for raw in message.parts for part in _answer_part(raw)]
            tools |= {part.tool_call_id: part.tool_name for part in parts if isinstance(part, pai.ToolCallPart)}
            messages.append(pai.ModelResponse(parts))
        else:
            asked = _request_parts(message, tools)
            if messages and isinstance(messages[-1], pai.ModelRequest):
                messages[-1] = pai.ModelRequest([*messages[-1].parts, *asked])
            else:
                messages.append(pai.ModelRequest(asked))
    return messages


def _request_parts(message: Any, tools: Mapping[str, str]) -> Sequence[pai.ModelRequestPart]:
    if message.role == "developer":
        return [pai.SystemPromptPart(message.text or "")]
    returns = [
        pai.ToolReturnPart(tools.get(part.id, "tool"), _texts(part.content), tool_call_id=part.id)
        for part in message.parts
        if isinstance(part, lm15.ToolResultPart)
    ]
    content = [_content(part) for part in message.parts if not isinstance(part, lm15.ToolResultPart)]
    if not content:
        return returns
    texts = [item for item in content if isinstance(item, str)]
    return [*returns, pai.UserPromptPart("\n".join(texts) if len(texts) == len(content) else content)]


def _texts(parts: Iterable[Any]) -> str:
    return "\n".join(part.text for part in parts if isinstance(part, lm15.TextPart))


def _content(part: Any) -> pai.UserContent:
    if isinstance(part, lm15.TextPart):
        return part.text
    if getattr(part, "data", None) is not None:
        data = part.data if isinstance(part.data, bytes) else base64.b64decode(part.data)
        return pai.BinaryContent(data, media_type=part.media_type)
    if getattr(part, "url", None) and part.type in _URLS:
        return _URLS[part.type](part.url)
    if getattr(part, "path", None):
        return pai.BinaryContent.from_path(part.path)
    msg = f"a Pydantic AI model cannot be sent a part of type {part.type!r}"
    raise lm15.UnsupportedFeatureError(msg)


def _answer_part(part: Any) -> list[pai.ModelResponsePart]:
    if isinstance(part, lm15.TextPart):
        return [pai.TextPart(part.text)]
    if isinstance(part, lm15.ToolCallPart):
        return [pai.ToolCallPart(part.name, dict(part.input), tool_call_id=part.id)]
    return []  # a provider accepts only its own thoughts


def settings_of(request: Any) -> pai.ModelSettings:
    """The sampling settings of a request."""
    return settings_in({name: getattr(request.config, name, None) for name in (*_SAME, "stop")})


def settings_in(kwargs: Mapping[str, Any]) -> pai.ModelSettings:
    """The sampling settings in the keyword arguments of a `dspy.LM`, without those that only DSPy knows."""
    found = {name: kwargs[name] for name in _SAME if kwargs.get(name) is not None}
    if kwargs.get("max_completion_tokens") is not None:
        found["max_tokens"] = kwargs["max_completion_tokens"]
    if stop := kwargs.get("stop"):
        found["stop_sequences"] = [stop] if isinstance(stop, str) else list(stop)
    return cast("pai.ModelSettings", found)


def parameters_of(request: Any, model: Model[Any]) -> ModelRequestParameters:
    """The tools and the output format of a request, as far as the model supports them."""
    tools = [
        pai.ToolDefinition(
            name=tool.name, description=tool.description, parameters_json_schema=dict(tool.parameters or {})
        )
        for tool in request.tools
        if isinstance(tool, lm15.FunctionTool)
    ]
    wanted: Mapping[str, Any] = request.config.response_format or {}
    wanted = wanted.get("json_schema") or wanted
    schema: Mapping[str, Any] | None = wanted.get("schema")
    if schema and model.profile.get("supports_json_schema_output"):
        answer = OutputObjectDefinition(json_schema=dict(schema), name=wanted.get("name"))
        return ModelRequestParameters(function_tools=tools, output_mode="native", output_object=answer)
    return ModelRequestParameters(function_tools=tools)


def response_of(response: pai.ModelResponse, model: str) -> Any:
    """The answer of a Pydantic AI model as DSPy's."""
    parts: list[Any] = []
    for part in response.parts:
        if isinstance(part, pai.TextPart) and part.content:
            parts.append(lm15.TextPart(part.content))
        elif isinstance(part, pai.ThinkingPart) and part.content:
            parts.append(lm15.ThinkingPart(part.content))
        elif isinstance(part, pai.ToolCallPart):
            parts.append(lm15.ToolCallPart(id=part.tool_call_id, name=part.tool_name, input=part.args_as_dict()))
    called = any(isinstance(part, pai.ToolCallPart) for part in response.parts)
    reasons = {"length": "length", "content_filter": "content_filter", "error": "error"}
    cost = _cost(response)
    make = cast("Any", lm15.Response)
    return make(
        id=response.provider_response_id or None,
        model=response.model_name or model,
        message=lm15.Message(role="assistant", parts=tuple(parts or [lm15.TextPart("")])),
        finish_reason="tool_call" if called else reasons.get(response.finish_reason or "", "stop"),
        usage=lm15.Usage(
            input_tokens=response.usage.input_tokens,
            output_tokens=response.usage.output_tokens,
            cache_read_tokens=response.usage.cache_read_tokens or None,
            cache_write_tokens=response.usage.cache_write_tokens or None,
        ),
        provider_data=None if cost is None else {_COST: cost},
    )


def _cost(response: pai.ModelResponse) -> float | None:
    if response.usage.cost is not None:
        return float(response.usage.cost)
    try:
        return float(response.cost().total_price)
    except (LookupError, ValueError, AssertionError):
        return None  # the price of the model is not known


def cost_in(responses: object) -> float | None:
    """US dollars of one or more answers that `response_of` made; `None` when the cost of one is not known."""
    several = cast("Sequence[Any]", responses if isinstance(responses, (list, tuple)) else [responses])
    known: list[Mapping[str, float]] = [getattr(one, "provider_data", None) or {} for one in several]
    return sum(one[_COST] for one in known) if known and all(_COST in one for one in known) else None


_BY_STATUS: dict[int | None, Any] = {429: lm15.RateLimitError, 401: lm15.AuthError, 403: lm15.AuthError}
_BY_KIND: tuple[tuple[Any, Any], ...] = (
    (pai.ModelRateLimitError, lm15.RateLimitError),
    ((pai.ModelTimeoutError, pai.ModelRequestTimeout), lm15.TimeoutError),
    (pai.ModelConnectionError, lm15.TransportError),
    ((pai.ModelServerError, pai.ModelUnavailableError), lm15.ServerError),
    (pai.ModelContextWindowExceededError, lm15.ContextLengthError),
    (pai.ModelAuthenticationError, lm15.AuthError),
    (pai.ModelNotFoundError, lm15.UnsupportedModelError),
    (pai.ModelQuotaExceededError, lm15.BillingError),
)


def translated(error: pai.ModelAPIError) -> Exception:
    """An error of a Pydantic AI model as the error that DSPy retries or reports in its own way."""
    status: int | None = getattr(error, "status_code", None)
    other = lm15.ServerError if (status or 0) >= HTTPStatus.INTERNAL_SERVER_ERROR else lm15.InvalidRequestError
    found = _BY_STATUS.get(status) or next((found for kind, found in _BY_KIND if isinstance(error, kind)), other)
    return found(str(error), status=status, retry_after=error.retry_after)
