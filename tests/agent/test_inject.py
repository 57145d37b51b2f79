"""How a candidate reaches the model: which texts it replaces, which it leaves, and that nothing else changes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import anyio
import pytest
from pydantic import AliasChoices, BaseModel, Field, computed_field
from pydantic_ai import (
    Agent,
    BinaryContent,
    FunctionToolset,
    ImageUrl,
    NativeOutput,
    PromptedOutput,
    RunContext,
    ToolOutput,
)
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.messages import (
    InstructionPart,
    ModelMessage,
    ModelRequest,
    ModelResponse,
    RetryPromptPart,
    TextPart,
    ToolCallPart,
    ToolReturnPart,
    UserPromptPart,
)
from pydantic_ai.models.function import AgentInfo, FunctionModel
from typing_extensions import TypedDict

from stagegraph import Demo, Graph, Prompt, Prompts, Run, RunError, Runner, Stage, fan_out

NATIVE: Any = {"supports_json_schema_output": True, "default_structured_output_mode": "native"}


class Question(BaseModel):
    text: str


class Answer(BaseModel):
    text: str


class Doubt(BaseModel):
    why: str


class Titled(BaseModel):
    text: str = Field(alias="theText")
    why: str = Field("", validation_alias=AliasChoices("reason", "why"), serialization_alias="shown")

    @computed_field
    @property
    def length(self) -> int:
        return len(self.text)


class Envelope(BaseModel):
    response: int


class Row(TypedDict):
    name: str


class Listener:
    """A model that keeps what it is sent and then gives up."""

    def __init__(self, profile: Any = None) -> None:
        self.messages: list[ModelMessage] = []
        self.info: AgentInfo | None = None
        self.model = FunctionModel(self._answer, profile=profile)

    def _answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.messages, self.info = messages, info
        raise Heard

    @property
    def instructions(self) -> str:
        assert self.info is not None
        return self.info.instructions or ""


class Heard(Exception):  # noqa: N818 - no error, just the end of the test's interest
    """The model was asked."""


async def heard(
    stage: Stage[Any, Any], value: object, prompt: Prompt | None = None, *, profile: Any = None
) -> Listener:
    """What a model is sent when a stage runs with this prompt."""
    listener = Listener(profile)
    prompts = Prompts({"stage": prompt}) if prompt is not None else None
    async with Runner(listener.model) as runner:
        with pytest.raises(RunError) as caught:
            await runner.run(stage, value, prompts=prompts, deps="deps")
    assert isinstance(caught.value.__cause__.__cause__, Heard), caught.value  # type: ignore[union-attr]
    return listener


@dataclass
class Polite(AbstractCapability[Any]):
    """A capability with instructions of its own."""

    id: str | None = "polite"

    def get_instructions(self) -> Any:
        return "Be polite."


def with_everything() -> Agent[str, str]:
    tools: FunctionToolset[str] = FunctionToolset(id="tools", instructions="Use the tools.")
    agent = Agent(
        deps_type=str, instructions=["  First. ", "Second."], capabilities=[Polite()], toolsets=[tools], output_type=str
    )

    @agent.instructions
    def plain() -> str:
        return "It is Friday."

    @agent.instructions(name="named")
    async def named(ctx: RunContext[str]) -> str:
        return f"Deps are {ctx.deps}."

    return agent


OTHERS = ["It is Friday.", "Deps are deps.", "Be polite.", "Use the tools."]


async def test_without_prompts_the_model_is_sent_what_the_code_says() -> None:
    """A stage that no prompt names is the user's own agent."""
    alone = Listener()
    with pytest.raises(Heard):
        await with_everything().run("hi", model=alone.model, deps="deps")
    listener = await heard(Stage(str, with_everything()), "hi")
    assert listener.instructions == alone.instructions
    assert all(text in listener.instructions for text in ["First.\n\nSecond.", *OTHERS])


async def test_only_the_literal_part_is_replaced_and_stays_where_it_was() -> None:
    """All others survive, in the same order; an empty text removes it, `None` leaves it, examples follow it."""
    stage = Stage(str, with_everything())
    before = (await heard(stage, "hi")).instructions
    after = (await heard(stage, "hi", Prompt("Tuned."))).instructions
    assert after == before.replace("First.\n\nSecond.", "Tuned.")
    assert (await heard(stage, "hi")).instructions == before
    for empty in ("", " \n "):
        said = (await heard(stage, "hi", Prompt(empty))).instructions
        assert [text in said for text in ("First.", *OTHERS)] == [False, *[True] * len(OTHERS)]
    for text, begins in ((None, "First.\n\nSecond."), ("Tuned.", "Tuned.")):
        said = (await heard(stage, "hi", Prompt(text, (Demo("a", "b"),)))).instructions
        positions = [said.index(part) for part in (begins, "<examples>", "It is Friday.")]
        assert positions == sorted(positions)  # so that a provider can cache both
    assert (await heard(Stage(str, Agent()), "hi", Prompt("Tuned."))).instructions == "Tuned."


AGENTS = {
    "none": Agent,
    "one": lambda: Agent(instructions="One."),
    "several": lambda: Agent(instructions=["One.", "  Two.\n", "", "Three."]),
    "blank": lambda: Agent(instructions="  \n "),
    "inner space": lambda: Agent(instructions="One.\n\n\n  Two.\n\n- three"),
    "wrapped": lambda: WrapperAgent(WrapperAgent(Agent(instructions=["One.", "Two."]))),
    "unicode": lambda: Agent(instructions="Schön.\u2028漢字"),
}


@pytest.mark.parametrize("name", AGENTS)
async def test_the_seed_is_what_the_model_is_sent(name: str) -> None:
    """`Prompts.of` reads what a model really gets from the literal instructions; deploying it changes nothing."""
    stage = Stage(str, AGENTS[name]())
    seed = Prompts.of(stage)["stage"]
    assert (await heard(stage, "hi")).instructions == seed.instructions
    assert (await heard(stage, "hi", seed)).instructions == seed.instructions


async def test_the_seed_leaves_out_what_is_no_literal_text() -> None:
    """Functions are the code's business: they are no seed, and survive a candidate."""
    agent = Agent(deps_type=str, instructions=["Literal.", lambda: "Computed."])
    stage = Stage(str, agent)
    assert Prompts.of(stage)["stage"].instructions == "Literal."
    before = (await heard(stage, "hi")).instructions
    assert all(text in before for text in ("Literal.", "Computed."))
    assert (await heard(stage, "hi", Prompt("Tuned."))).instructions == before.replace("Literal.", "Tuned.")
    assert (await heard(stage, "hi", Prompts.of(stage)["stage"])).instructions == before


async def test_instruction_parts_are_literal_or_named() -> None:
    """An unnamed `InstructionPart` is literal text like any other; a named one is its author's, and stays."""
    agent = Agent(instructions=["One.", InstructionPart("Part."), InstructionPart("Named part.", name="extra"), "Two."])
    stage = Stage(str, agent)
    before = (await heard(stage, "hi")).instructions
    seed = Prompts.of(stage)["stage"]
    assert seed.instructions == "One.\n\nPart.\n\nTwo."
    tuned = (await heard(stage, "hi", Prompt("Tuned."))).instructions
    assert sorted(tuned.split("\n\n")) == ["Named part.", "Tuned."]
    seeded = (await heard(stage, "hi", seed)).instructions
    assert sorted(seeded.split("\n\n")) == sorted(before.split("\n\n"))


async def test_an_agent_is_never_changed() -> None:
    """After runs with candidates, the agent alone says what it always said, with its own tools; absent ones wait."""
    agent = Agent(instructions="Own.")

    @agent.tool_plain
    def look(word: str) -> str:
        """Look a word up."""
        return word

    stage = Stage(str, agent)
    tuned = await heard(stage, "hi", Prompt("Tuned.", (Demo("a", "b"),), {"look": "Find.", "gone": "x"}))
    assert tuned.info is not None
    assert [tool.description for tool in tuned.info.function_tools] == ["Find."]
    alone = Listener()
    with pytest.raises(Heard):
        await agent.run("hi", model=alone.model)
    assert alone.instructions == "Own."
    assert alone.info is not None
    assert [tool.description for tool in alone.info.function_tools] == ["Look a word up."]
    assert Prompts.of(stage)["stage"] == Prompt("Own.")


class Say(Graph[str, str]):
    say = Stage(str, Agent(instructions="Own."))

    async def flow(self, text: str) -> str:
        parts = await fan_out(self.say, [text] * 3)
        assert len(set(parts)) == 1
        return parts[0]


async def test_fifty_candidates_on_one_graph_do_not_mix() -> None:
    """Candidates travel with their runs, through fan-outs and interleaved requests."""

    together = anyio.Event()
    waiting: list[str] = []

    async def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        waiting.append(info.instructions or "")
        if len(waiting) == 150:
            together.set()
        await together.wait()
        return ModelResponse([TextPart(info.instructions or "")])

    graph, runs = Say(), dict[int, Run[str, str]]()
    async with Runner(FunctionModel(answer)) as runner, anyio.create_task_group() as group:

        async def one(number: int) -> None:
            prompts = Prompts({"say": Prompt(f"Candidate {number}.")}) if number else None
            runs[number] = await runner.run(graph, "hi", prompts=prompts)

        for number in range(50):
            group.start_soon(one, number)
    assert {number: run.output for number, run in runs.items()} == {
        number: f"Candidate {number}." if number else "Own." for number in range(50)
    }
    assert len({run.prompts_digest for run in runs.values()}) == 50


async def test_a_candidate_holds_for_every_request_of_a_call() -> None:
    """After a tool call and after a retry, the model is still told the candidate's text."""
    agent = Agent(output_type=Answer, instructions="Own.", retries=2)

    @agent.tool_plain
    def look(word: str) -> str:
        return word

    seen: list[str | None] = []

    def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append(info.instructions)
        part = [
            ToolCallPart("look", {"word": "x"}),
            ToolCallPart(info.output_tools[0].name, {"wrong": 1}),
            ToolCallPart(info.output_tools[0].name, {"text": "done"}),
        ][len(seen) - 1]
        return ModelResponse([part])

    async with Runner(FunctionModel(answer)) as runner:
        prompts = Prompts({"stage": Prompt("Tuned.", (Demo("a", Answer(text="b")),))})
        run = await runner.run(Stage(str, agent), "hi", prompts=prompts)
    assert run.output == Answer(text="done")
    assert len(set(seen)) == 1
    assert str(seen[0]).startswith("Tuned.\n\n<examples>")
    recorded = [message.instructions for message in run.root.messages if isinstance(message, ModelRequest)]
    assert recorded[:3] == seen


async def test_demos_stand_in_the_instructions_in_the_form_of_live_inputs() -> None:
    """`<examples>` hold what the stage's own renderer makes of each input, and the JSON of each output."""
    stage = Stage(Question, Agent(output_type=Answer, instructions="Own."), render=lambda q: f"Q: {q.text}")
    demos = (Demo(Question(text="one"), Answer(text="eins")), Demo({"text": "two"}, {"text": "zwei ä"}))
    listener = await heard(stage, Question(text="live"), Prompt("Tuned.", demos))
    assert listener.instructions == (
        "Tuned.\n\n<examples>\n"
        '<example>\n<input>\nQ: one\n</input>\n<output>\n{"text": "eins"}\n</output>\n</example>\n'
        '<example>\n<input>\nQ: two\n</input>\n<output>\n{"text": "zwei ä"}\n</output>\n</example>\n'
        "</examples>"
    )
    assert len(listener.messages) == 1
    (part,) = listener.messages[0].parts
    assert isinstance(part, UserPromptPart)
    assert part.content == "Q: live"


def turns(messages: Sequence[ModelMessage]) -> list[tuple[str, Any]]:
    """What a model is told, as pairs of who and what."""
    said: list[tuple[str, Any]] = []
    for message in messages:
        for part in message.parts:
            if isinstance(part, ToolCallPart):
                said.append((f"call {part.tool_name}", part.args_as_dict()))
            elif isinstance(part, (UserPromptPart, TextPart, ToolReturnPart, RetryPromptPart)):
                said.append((type(part).__name__, part.content))
    return said


SHAPES: list[tuple[Any, Any, Any, tuple[str, Any]]] = [
    (str, "yes", None, ("TextPart", "yes")),
    (str, "yes", NATIVE, ("TextPart", "yes")),
    (Answer, Answer(text="yes"), None, ("call final_result", {"text": "yes"})),
    (Answer, Answer(text="yes"), NATIVE, ("TextPart", '{"text": "yes"}')),
    (Titled, Titled(theText="a", reason="b"), None, ("call final_result", {"theText": "a", "reason": "b"})),
    (Titled, Titled(theText="a"), NATIVE, ("TextPart", '{"theText": "a", "reason": ""}')),
    (int, 5, None, ("call final_result", {"response": 5})),
    (int, 5, NATIVE, ("TextPart", '{"response": 5}')),
    (list[int], [5], None, ("call final_result", {"response": [5]})),
    (list[int], [5], NATIVE, ("TextPart", '{"response": [5]}')),
    (Envelope, Envelope(response=5), None, ("call final_result", {"response": 5})),
    (Envelope, Envelope(response=5), NATIVE, ("TextPart", '{"response": 5}')),
    (Row, {"name": "x"}, None, ("call final_result", {"name": "x"})),
    (Row, {"name": "x"}, NATIVE, ("TextPart", '{"name": "x"}')),
    ([Answer, Doubt], Doubt(why="x"), None, ("call final_result_Doubt", {"why": "x"})),
    ([Answer, Doubt], Answer(text="x"), None, ("call final_result_Answer", {"text": "x"})),
    ([Answer, Doubt], Doubt(why="x"), NATIVE, ("TextPart", '{"result": {"kind": "Doubt", "data": {"why": "x"}}}')),
    ([Answer, int], 3, None, ("call final_result_int", {"response": 3})),
    ([str, Answer], "plain", None, ("TextPart", "plain")),
    ([str, Answer], Answer(text="x"), None, ("call final_result", {"text": "x"})),
    (ToolOutput(Answer, name="submit"), Answer(text="x"), NATIVE, ("call submit", {"text": "x"})),
    (
        [ToolOutput(Answer, name="submit"), ToolOutput(Doubt, name="refuse")],
        Doubt(why="x"),
        None,
        ("call refuse", {"why": "x"}),
    ),
    (NativeOutput(Answer), Answer(text="x"), NATIVE, ("TextPart", '{"text": "x"}')),
    (PromptedOutput(Answer), Answer(text="ä"), None, ("TextPart", '{"text": "ä"}')),
]


@pytest.mark.parametrize(("output_type", "output", "profile", "expected"), SHAPES, ids=str)
async def test_demos_as_messages_have_the_shape_that_the_model_answers_in(
    output_type: Any, output: Any, profile: Any, expected: tuple[str, Any]
) -> None:
    """`Stage(demos="messages")`: a tool call for tools, JSON for native output, each in the right envelope."""
    stage: Stage[Any, Any] = Stage(
        Question, Agent(output_type=output_type), demos="messages", render=lambda q: f"Q: {q.text}"
    )
    demos = (Demo(Question(text="demo"), output),)
    listener = await heard(stage, Question(text="live"), Prompt("Tuned.", demos), profile=profile)
    said = turns(listener.messages)
    assert said[0] == ("UserPromptPart", "Q: demo")
    assert said[1] == expected
    assert said[-1] == ("UserPromptPart", "Q: live")
    assert len(said) == (4 if expected[0].startswith("call") else 3)
    assert "<examples>" not in listener.instructions


@pytest.mark.parametrize("profile", [None, NATIVE], ids=["tools", "native"])
async def test_what_a_demo_shows_is_an_answer_that_the_agent_would_accept(profile: Any) -> None:
    """A model that repeats the demo's answer gives that very output."""

    def parrot(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        (shown, *_) = [message for message in messages if isinstance(message, ModelResponse)]
        return ModelResponse(shown.parts)

    for output_type, output in (
        ([Answer, Doubt], Doubt(why="x")),
        (list[int], [1, 2]),
        (Answer, Answer(text="t")),
        (Titled, Titled(theText="a", reason="b")),
    ):
        stage: Stage[Any, Any] = Stage(str, Agent(output_type=output_type), demos="messages")
        async with Runner(FunctionModel(parrot, profile=profile)) as runner:
            run = await runner.run(stage, "live", prompts=Prompts({"stage": Prompt(demos=(Demo("demo", output),))}))
        assert run.output == output


async def test_message_demos_do_not_get_into_the_record() -> None:
    """The record of a call is what was really said; demos stand in the prompt."""

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(f"{len(messages)} messages")])

    async with Runner(FunctionModel(answer)) as runner:
        prompts = Prompts({"stage": Prompt(demos=(Demo("a", "b"), Demo("c", "d")))})
        run = await runner.run(Stage(str, Agent(), demos="messages"), "live", prompts=prompts)
    assert run.output == "5 messages"
    assert turns(run.root.messages) == [("UserPromptPart", "live"), ("TextPart", "5 messages")]


class Scan(BaseModel):
    page: BinaryContent | ImageUrl


PNG = BinaryContent(b"\x89PNG\xff\x00", media_type="image/png")


async def test_demos_may_hold_media() -> None:
    """As messages they are shown; in `<examples>` they are named, since instructions are text."""
    demos = (Demo(Scan(page=PNG), "a cat"), Demo({"page": {"url": "https://x/y.png", "kind": "image-url"}}, "a dog"))
    shown = turns((await heard(Stage(Scan, Agent(), demos="messages"), Scan(page=PNG), Prompt(demos=demos))).messages)
    assert shown[0][1][1] == PNG
    assert shown[2][1][1] == ImageUrl(url="https://x/y.png")
    named = (await heard(Stage(Scan, Agent()), Scan(page=PNG), Prompt(demos=demos))).instructions
    assert named.count("[attachment 1]") == 2
    assert "a dog" in named
    assert "PNG" not in named


async def test_a_demo_that_does_not_fit_fails_the_call_and_says_so() -> None:
    """Prompts that nobody checked fail where they are used, before the model is asked."""
    asked: list[int] = []

    def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        asked.append(1)
        return ModelResponse([TextPart("x")])

    async with Runner(FunctionModel(answer)) as runner:
        with pytest.raises(RunError, match="text"):
            await runner.run(
                Stage(Question, Agent()), {"text": "x"}, prompts=Prompts({"stage": Prompt(demos=(Demo({}, "y"),))})
            )
    assert not asked


def test_demos_are_the_same_as_instances_or_as_data() -> None:
    """A demo keeps JSON data, so both ways of giving it are equal and have one digest."""
    typed, plain = Demo(Question(text="a"), Answer(text="b")), Demo({"text": "a"}, {"text": "b"})
    assert typed == plain
    assert Prompts({"a": Prompt(demos=(typed,))}).digest == Prompts({"a": Prompt(demos=(plain,))}).digest
