"""Any Pydantic AI model as a `dspy.LM`."""

import asyncio
from decimal import Decimal
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy import lm15
from dspy.utils.exceptions import LMAuthError, LMRateLimitError
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import (
    ImageUrl,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    SystemPromptPart,
    TextPart,
    ThinkingPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage
from words import says

from stagegraph import DeclarationError, NotRunningError, TuningError
from stagegraph.agent.models import Models
from stagegraph.optimize import lm
from stagegraph.optimize.lms.lm import model_behind
from stagegraph.optimize.lms.loop import submit


class Recorder:
    """A model that keeps what it was sent."""

    def __init__(self, *parts: Any, cost: str | None = None) -> None:
        self.parts = parts or (TextPart("ok"),)
        self.cost = cost
        self.messages: list[list[ModelMessage]] = []
        self.infos: list[AgentInfo] = []
        self.model = FunctionModel(self._answer, model_name="recorder")

    async def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.messages.append(messages)
        self.infos.append(info)
        cost = None if self.cost is None else Decimal(self.cost)
        return ModelResponse(list(self.parts), usage=RequestUsage(input_tokens=7, output_tokens=3, cost=cost))


def test_a_text_goes_in_and_comes_out() -> None:
    """The simplest use, blocking and awaited, in a notebook's loop as well; `n` asks so many times."""
    one = lm(says("hello"))
    assert isinstance(one, dspy.LM)
    assert one("hi") == ["hello"]
    assert asyncio.run(one.acall("hi")) == ["hello"]

    async def notebook() -> list[Any]:
        return one("hi")

    assert asyncio.run(notebook()) == ["hello"]
    assert lm(says("a", "b", "c"))("hi", n=3, temperature=1.0) == ["a", "b", "c"]


def test_settings_reach_the_model() -> None:
    """Those of the LM, those of a call, and those of a copy."""
    recorder = Recorder()
    one = lm(recorder.model, temperature=0.2, max_tokens=50)
    one("hi")
    one("hi", temperature=0.9, stop=["x"])
    one.copy(rollout_id=4, temperature=1.0)("hi")
    found = [dict(info.model_settings or {}) for info in recorder.infos]
    assert found == [
        {"temperature": 0.2, "max_tokens": 50},
        {"temperature": 0.9, "max_tokens": 50, "stop_sequences": ["x"]},
        {"temperature": 1.0, "max_tokens": 50},
    ]


def test_usage_and_cost_are_known() -> None:
    """In the history and in a usage tracker; what has no price has no cost."""
    one = lm(Recorder(cost="0.25").model)
    with dspy.context(usage_tracker=None), dspy.track_usage() as tracker:
        one("hi", n=2, temperature=1.0)
    assert one.history[-1]["cost"] == 0.5
    assert tracker.get_total_tokens()["pydantic-ai/recorder"]["prompt_tokens"] == 14
    free = lm(Recorder().model)
    free("hi")
    assert free.history[-1]["cost"] is None


def test_adapters_work_on_it() -> None:
    """`dspy.Predict` with the chat and the JSON adapter."""
    predict = dspy.Predict("question -> answer: str")
    with dspy.context(lm=lm(says("[[ ## answer ## ]]\n42\n\n[[ ## completed ## ]]")), adapter=dspy.ChatAdapter()):
        assert predict(question="?").answer == "42"
    with dspy.context(lm=lm(says('{"answer": "42"}')), adapter=dspy.JSONAdapter()):
        assert predict(question="?").answer == "42"


def test_a_conversation_is_translated_whole() -> None:
    """System text, media, tool calls and their results, each as Pydantic AI has them."""
    recorder = Recorder(ThinkingPart("hm"), ToolCallPart("look", {"at": "it"}, tool_call_id="2"))
    one = lm(recorder.model)
    request = lm15.Request(
        model=one.model,
        system="Be brief.",
        messages=(
            lm15.Message.user([lm15.TextPart("What is it?"), lm15.ImagePart(url="https://x.test/a.png")]),
            lm15.Message(role="assistant", parts=(lm15.ToolCallPart(id="1", name="look", input={"at": "x"}),)),
            lm15.Message(role="tool", parts=(lm15.ToolResultPart(id="1", content=(lm15.TextPart("a cat"),)),)),
        ),
        tools=(lm15.FunctionTool(name="look", description="Look.", parameters={"type": "object", "properties": {}}),),
    )
    response = one(request)
    asked, called, returned = recorder.messages[0]
    assert isinstance(asked, ModelRequest)
    assert isinstance(returned, ModelRequest)
    assert [type(part) for part in asked.parts] == [SystemPromptPart, UserPromptPart]
    assert isinstance(asked.parts[1], UserPromptPart)
    assert asked.parts[1].content == ["What is it?", ImageUrl("https://x.test/a.png")]
    assert called.parts[0] == ToolCallPart("look", {"at": "x"}, tool_call_id="1")
    part = returned.parts[0]
    assert isinstance(part, ToolReturnPart)
    assert (part.tool_name, part.content, part.tool_call_id) == ("look", "a cat", "1")
    assert [tool.name for tool in recorder.infos[0].function_tools] == ["look"]
    assert response.finish_reason == "tool_call"
    assert [part.type for part in response.message.parts] == ["thinking", "tool_call"]


@pytest.mark.parametrize(("status", "kind"), [(429, LMRateLimitError), (401, LMAuthError)])
def test_errors_are_dspys_own(status: int, kind: type[Exception]) -> None:
    """So that DSPy retries what can be retried, and says what cannot."""

    def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        raise ModelHTTPError(status, "m")

    with pytest.raises(kind):
        lm(FunctionModel(answer), num_retries=0)("hi")


def test_a_model_object_is_not_cached_by_its_name() -> None:
    """DSPy's cache knows an LM by its name; two scripted models would answer for each other."""
    assert lm(says("one"))("the same") == ["one"]
    assert lm(says("two"))("the same") == ["two"]
    assert lm("openai:gpt-5-mini").cache


def test_a_named_model_is_saved_and_an_object_is_not(tmp_path: Path) -> None:
    """`dump_state` keeps the name, also within a program; no key is needed until the model is asked."""
    state = lm("openai:gpt-5-mini", temperature=1.0).dump_state()
    again = dspy.LM.load_state(state, allow_custom_lm_class=True)
    assert again.model == "pydantic-ai/openai:gpt-5-mini"
    with pytest.raises(TypeError, match="give its name"):
        lm(says("x")).dump_state()
    predict = dspy.Predict("question -> answer")
    predict.lm = lm("openai:gpt-5-mini")
    predict.save(tmp_path / "p.json")


def test_the_model_behind_an_lm() -> None:
    """Stages run with it; a plain `dspy.LM` is known by its name; anything else is refused."""
    model = says("x")
    assert model_behind(lm(model), Models()) is model
    plain = model_behind(dspy.LM("openai/gpt-5-mini", api_version="1"), _NoModels())
    assert plain.model_name == "openai:gpt-5-mini"
    with pytest.raises(TuningError, match=r"optimize\.lm\(model\)"):
        model_behind(dspy.utils.DummyLM([{"answer": "x"}]), Models())
    with pytest.raises(DeclarationError, match="takes a Pydantic AI model"):
        lm(42)  # type: ignore[arg-type]


class _NoModels(Models):
    """Names instead of providers."""

    def get(self, model: Any) -> Any:
        return FunctionModel(lambda *_: ModelResponse([]), model_name=model)


def test_a_blocking_call_on_the_background_loop_is_refused() -> None:
    """It would wait for itself."""
    one = lm(says("x"), num_retries=0)

    async def inside() -> str:
        with pytest.raises(Exception, match=r"acall") as caught:
            one("hi")
        cause: BaseException | None = caught.value
        while cause is not None and not isinstance(cause, NotRunningError):
            cause = cause.__cause__ or cause.__context__
        assert isinstance(cause, NotRunningError)
        return (await one.acall("hi"))[0]

    assert submit(inside()).result(timeout=20) == "x"
