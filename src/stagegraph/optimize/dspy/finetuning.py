"""Fine-tuning on what a graph's stages were really sent and really answered."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import dspy
from dspy.clients.utils_finetune import TrainDataFormat
from pydantic_ai.messages import (
    ModelMessage,
    ModelRequestPart,
    ModelResponse,
    ModelResponsePart,
    RetryFeedbackPart,
    SystemPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)

from stagegraph.agent.models import Models
from stagegraph.optimize.lms.lm import model_behind

from .predictors import StagePredict, StagePrediction

if TYPE_CHECKING:
    from pydantic_ai.models import Model

Message = dict[str, Any]
"""One message of OpenAI's chat format: `role`, `content`, `tool_calls`, `tool_call_id`."""


class BootstrapFinetune(dspy.BootstrapFinetune):
    """`dspy.BootstrapFinetune` for a `GraphModule`, with its arguments: the training data equals what is served.

    DSPy would train on its own adapter's wording of the fields, which no stage ever sends. Here a row is the
    conversation of one call: its instructions, input, tool calls and their results, and the answer. With
    `multitask=False` each stage has a model of its own, trained on all its calls, however wide the fan-out was.

    Rows have what was recorded: demos inside the instructions, but none that were sent as messages, and no definitions
    of tools. To serve a model without demos, bootstrap from a module without demos. The LM that was set on the module
    is trained; DSPy must be able to train it: `module.set_lm(dspy.LM("openai/..."))`.
    """

    metric: Any

    def compile(self, student: Any, trainset: Any, teacher: Any = None) -> Any:
        """Train, and return the student with the trained models."""
        self._paths = [one.path for one in student.predictors() if isinstance(one, StagePredict)]
        return super().compile(student, trainset, teacher)

    def _prepare_finetune_data(
        self, trace_data: list[dict[str, Any]], lm: Any, pred_ind: int | None = None
    ) -> tuple[list[dict[str, Any]], TrainDataFormat]:
        model = model_behind(lm, Models())
        paths = set(self._paths) if pred_ind is None else {self._paths[pred_ind]}
        rows: list[dict[str, Any]] = []
        for item in trace_data:
            if self.metric is not None and not item["score"]:
                continue
            for _, _, prediction in item["trace"]:
                call = prediction.stage_call if isinstance(prediction, StagePrediction) else None
                if call is not None and call.ok and call.path in paths:
                    rows += chat_rows(call.messages, model)
        random.Random(0).shuffle(rows)  # noqa: S311 - nothing secret
        return rows, TrainDataFormat.CHAT


def chat_rows(messages: Sequence[ModelMessage], model: Model[Any]) -> list[dict[str, Any]]:
    """A conversation as a row of training data, in the form in which *model* receives it; no row without an answer.

    An answer that was refused has `weight: 0`, so that it is not learned.
    """
    found: list[Message] = []
    for message in messages:
        if isinstance(message, ModelResponse):
            found.append(_answer(message))
            continue
        if not found and message.instructions:
            found.append({"role": "system", "content": message.instructions})
        if found and any(map(_refuses, message.parts)):
            found[-1]["weight"] = 0
        (sent,) = model.prepare_messages([message])
        found += [turn for part in sent.parts for turn in _asked(part)]
    while found and found[-1]["role"] != "assistant":
        found.pop()  # what followed the last answer, such as a tool's return
    return [{"messages": found}] if found else []


def _refuses(part: ModelRequestPart) -> bool:
    return isinstance(part, RetryFeedbackPart) or (isinstance(part, ToolReturnPart) and part.outcome == "retried")


def _answer(message: ModelResponse) -> Message:
    text = "".join(part.content for part in message.parts if isinstance(part, TextPart))
    calls = [
        {
            "id": part.tool_call_id,
            "type": "function",
            "function": {"name": part.tool_name, "arguments": part.args_as_json_str()},
        }
        for part in message.parts
        if isinstance(part, ToolCallPart)
    ]
    return {"role": "assistant", "content": text or None, **({"tool_calls": calls} if calls else {})}


def _asked(part: ModelRequestPart | ModelResponsePart) -> list[Message]:
    if isinstance(part, SystemPromptPart):
        return [{"role": "system", "content": part.content}]
    if isinstance(part, UserPromptPart):
        given = [part.content] if isinstance(part.content, str) else part.content
        texts = [one if isinstance(one, str) else f"[{type(one).__name__}]" for one in given]
        return [{"role": "user", "content": "\n\n".join(texts)}]
    if isinstance(part, ToolReturnPart):
        return [{"role": "tool", "tool_call_id": part.tool_call_id, "content": part.model_response_str()}]
    return []
