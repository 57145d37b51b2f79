"""Requests to the embedded model: prompts, settings, streams, cancellation, and refusals that say what to do."""

from __future__ import annotations

import asyncio
import copy
import pickle
import traceback
from typing import Any, Literal, cast

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ToolOutput, UsageLimits
from pydantic_ai.exceptions import (
    ModelContextWindowExceededError,
    ModelRequestRejectedError,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.messages import (
    BinaryContent,
    CachePoint,
    FilePart,
    ImageUrl,
    ModelRequest,
    ModelResponse,
    RetryFeedbackPart,
    RetryInfo,
    RetryPromptPart,
    SystemPromptPart,
    TextContent,
    TextPart,
    ThinkingPart,
    ToolAvailabilityDeltaPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models import ModelRequestParameters

from stagegraph import DeclarationError
from stagegraph.local import LocalModel, model

PLAIN = ModelRequestParameters()
SHORT = {"max_tokens": 12}


class Cat(BaseModel):
    kind: Literal["cat"]
    lives: int = Field(ge=1, le=9)


def test_names() -> None:
    """A model knows the name it is asked for by, and shows it."""
    local = model("smollm2")
    assert local.model_id == "local:smollm2"
    assert repr(local) == "LocalModel(model_name='smollm2')"


def test_copies() -> None:
    """A model can be copied, also into another process, and used as a key."""
    local = LocalModel(context=1024, settings={"max_tokens": 3})
    for other in (copy.copy(local), copy.deepcopy(local), pickle.loads(pickle.dumps(local))):  # noqa: S301 - our own
        assert other.model_id == local.model_id
        assert other.context_window == 1024
        assert other.settings == {"max_tokens": 3}
    assert {local: 1}[local] == 1


def test_unknown_name() -> None:
    """An unknown name is refused with the known ones."""
    with pytest.raises(DeclarationError, match="no local model is named 'smollm9'; known: smollm2"):
        model("smollm9")


@pytest.mark.parametrize("size", [{"slots": 0}, {"context": 0}, {"threads": 0}, {"context": 8193}], ids=str)
def test_impossible_size(size: dict[str, int]) -> None:
    """A model without any room, or with more than it was trained on, is refused where it is made."""
    with pytest.raises(DeclarationError, match=str(*size) + r"=\d.* at least 1, and smollm2 was trained on 8192"):
        LocalModel(**size)


async def ask_once(local: LocalModel, *parts: Any) -> ModelResponse:
    return await local.request([ModelRequest(list(parts or [UserPromptPart("Hello")]))], {"max_tokens": 5}, PLAIN)


def test_tools_are_refused() -> None:
    """An agent with tools is told that local models have none."""
    with pytest.raises(UserError, match="local models have no tools: remove the tools or use a provider's model"):
        asyncio.run(Agent(LocalModel(), tools=[len]).run("Hello"))


@pytest.mark.parametrize("output_type", [ToolOutput(Cat), [str, Cat]])
def test_output_through_a_tool_is_refused(output_type: Any) -> None:
    """An output type that needs an output tool is refused with what to declare instead."""
    with pytest.raises(UserError, match="declare the output type itself"):
        asyncio.run(Agent(LocalModel(), output_type=output_type).run("Hello"))


@pytest.mark.parametrize(
    "content", [ImageUrl("https://example.com/cat.png"), BinaryContent(b"%PDF", media_type="application/pdf")]
)
def test_media_is_refused(content: Any) -> None:
    """Images and files are refused by kind."""
    with pytest.raises(UserError, match=f"read text only, but the prompt has {type(content).__name__}"):
        asyncio.run(Agent(LocalModel()).run(["What is this?", content]))


@pytest.mark.parametrize(
    "part",
    [
        ToolReturnPart("find", "42", tool_call_id="1"),
        ToolCallPart("find", {}, tool_call_id="1"),
        FilePart(BinaryContent(b"GIF", media_type="image/gif")),
    ],
    ids=type,
)
@pytest.mark.anyio
async def test_what_is_no_text_in_the_history_is_refused(part: Any) -> None:
    """A history in which a tool was used or a file was made cannot be continued."""
    message = ModelRequest([part]) if isinstance(part, ToolReturnPart) else ModelResponse([part])
    with pytest.raises(UserError, match=f"history has a {part.part_kind} part, but local models have no tools"):
        await LocalModel().request([message], None, PLAIN)


@pytest.mark.local
def test_text_that_is_cut() -> None:
    """Text that reaches the limit says so; its tokens and its cost of nothing are counted, each time the same."""
    agent = Agent(LocalModel(), model_settings={"max_tokens": 6})
    result = asyncio.run(agent.run("Tell a long story."))
    assert asyncio.run(agent.run("Tell a long story.")).usage == result.usage
    assert result.response.finish_reason == "length"
    assert result.usage.output_tokens == 6
    assert result.usage.input_tokens > 6
    assert result.usage.cost == 0
    assert (result.response.provider_name, result.response.model_name) == ("local", "smollm2")


@pytest.mark.local
def test_stop_sequences_and_seed() -> None:
    """Text stops before a stop sequence, and a seed repeats what a temperature makes random."""
    agent = Agent(LocalModel(), model_settings={"temperature": 1.2, "seed": 3, "top_p": 0.9, **SHORT})
    assert asyncio.run(agent.run("Tell a joke.")).output == asyncio.run(agent.run("Tell a joke.")).output
    first = asyncio.run(Agent(LocalModel()).run("Say hello.", model_settings=SHORT))
    word = first.output.split()[2]
    stopped = asyncio.run(Agent(LocalModel()).run("Say hello.", model_settings={"stop_sequences": [word], **SHORT}))
    assert word not in stopped.output
    assert stopped.response.finish_reason == "stop"


@pytest.mark.local
def test_prompts_of_every_textual_kind() -> None:
    """Empty prompts, instructions alone, several system prompts and an earlier conversation are all answered."""
    agent = Agent(LocalModel(), system_prompt=("Be brief.", "Be kind."), instructions="Be clear.", model_settings=SHORT)
    history = [
        ModelRequest([SystemPromptPart("Be old."), UserPromptPart("Hello")]),
        ModelResponse([ThinkingPart("Hm."), TextPart("Hello!")]),
    ]
    assert asyncio.run(agent.run("")).output
    assert asyncio.run(agent.run()).output
    assert asyncio.run(agent.run(["One", TextContent("Two"), CachePoint()], message_history=history)).output


@pytest.mark.local
@pytest.mark.anyio
async def test_retries_in_a_history_made_by_hand() -> None:
    """Requests without an agent may hold either kind of retry part, among several parts."""
    feedback = RetryFeedbackPart("Try again.", retry=RetryInfo(cause="model_retry"))
    with pytest.warns(UserWarning, match="RetryPromptPart"):
        old = RetryPromptPart("Try again.")
    for retry in (feedback, old):
        assert (await ask_once(LocalModel(), UserPromptPart("Hello"), retry)).usage.input_tokens > 35


@pytest.mark.anyio
async def test_parts_that_are_no_text_yet() -> None:
    """A request without an agent that skipped the preparation is told of it."""
    with pytest.raises(UserError, match=r"model\.prepare_messages"):
        await ask_once(LocalModel(), ToolAvailabilityDeltaPart(tools_added=["find"]))


@pytest.mark.local
@pytest.mark.anyio
async def test_wrong_setting() -> None:
    """What llama.cpp refuses becomes Pydantic AI's error for a rejected request, which says why and holds no key."""
    with pytest.raises(ModelRequestRejectedError, match=r"'temperature': .* type must be number") as caught:
        await Agent(LocalModel()).run("Hello", model_settings=cast("Any", {"temperature": "hot"}))
    assert "Bearer" not in "".join(traceback.format_exception(caught.value)) + repr(vars(caught.value))


@pytest.mark.local
@pytest.mark.anyio
async def test_direct_request() -> None:
    """A request without an agent takes its instructions from the message."""
    message = ModelRequest([UserPromptPart("Hello")], instructions="Answer in one word.")
    response = await LocalModel().request([message], {"max_tokens": 5}, PLAIN)
    assert isinstance(response.parts[0], TextPart)


@pytest.mark.local
def test_special_tokens_stay_text() -> None:
    """A chat template's own marks in a prompt are read as text, not obeyed."""
    agent = Agent(LocalModel(), model_settings=SHORT)
    plain = asyncio.run(agent.run("x")).usage.input_tokens
    marked = asyncio.run(agent.run("x<|im_end|>")).usage.input_tokens
    assert marked > plain + 1


@pytest.mark.local
@pytest.mark.anyio
async def test_stream_joins_to_the_text() -> None:
    """Streamed pieces arrive token by token and join to what the same request returns whole."""
    agent = Agent(LocalModel(), model_settings={"max_tokens": 20})
    async with agent.run_stream("Name three colors.") as stream:
        pieces = [piece async for piece in stream.stream_text(delta=True, debounce_by=None)]
    assert len(pieces) > 5
    assert "".join(pieces) == (await agent.run("Name three colors.")).output
    assert stream.usage.output_tokens > 5
    assert stream.usage.cost == 0


@pytest.mark.local
@pytest.mark.anyio
async def test_left_and_cancelled_requests_free_the_model() -> None:
    """Streams that are left or cancelled, and requests that are cancelled, stop; the next one is answered."""
    agent = Agent(LocalModel(slots=1, context=1024), model_settings={"max_tokens": 900})
    for cancel in (False, True):
        async with agent.run_stream("Write a very long story about a dragon.") as stream:
            async for _ in stream.stream_text(delta=True, debounce_by=None):
                if cancel:
                    await stream.cancel()
                break
    started = asyncio.Event()

    async def watch(_: Any, events: Any) -> None:
        async for _ in events:
            started.set()

    task = asyncio.create_task(agent.run("Write a very long story about a cow.", event_stream_handler=watch))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await agent.run("Say hello.", model_settings=SHORT)).output


@pytest.mark.local
@pytest.mark.anyio
async def test_concurrent_requests_get_their_own_answers() -> None:
    """More requests than slots at once: each gets the answer it gets alone."""
    agent = Agent(LocalModel(), model_settings=SHORT)
    prompts = [f"Repeat this number: {number}" for number in range(10, 17)]
    together = await asyncio.gather(*(agent.run(prompt) for prompt in prompts))
    alone = [await agent.run(prompt) for prompt in prompts]
    assert [result.output for result in together] == [result.output for result in alone]


@pytest.mark.local
@pytest.mark.anyio
async def test_prompts_are_counted() -> None:
    """Tokens are counted before a request, so a limit on them holds without one."""
    agent = Agent(LocalModel())
    limits = UsageLimits(input_tokens_limit=20, count_tokens_before_request=True)
    with pytest.raises(UsageLimitExceeded, match="input_tokens_limit"):
        await agent.run("hello " * 50, usage_limits=limits)
    message = ModelRequest([UserPromptPart("Say hello.")])
    counted = await LocalModel().count_tokens([message], None, PLAIN)
    assert counted.input_tokens == (await agent.run("Say hello.", model_settings=SHORT)).usage.input_tokens


@pytest.mark.local
@pytest.mark.parametrize("output_type", [str, Cat])
@pytest.mark.parametrize(
    ("words", "text"),
    [
        (3000, r"has 30\d\d tokens and smollm2 takes 2048.*Shorten .* or use LocalModel\('smollm2', context=4096\)"),
        (9000, r"has 90\d\d tokens and smollm2 takes 2048.*Shorten or split the input$"),
    ],
)
def test_too_long_a_prompt(output_type: Any, words: int, text: str) -> None:
    """A prompt that does not fit is refused with its length, the limit and a way out, if there is one."""
    with pytest.raises(ModelContextWindowExceededError, match=text):
        asyncio.run(Agent(LocalModel(), output_type=output_type).run("hello " * words))
