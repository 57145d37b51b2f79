"""Descriptions of tools and of the answer's fields: which there are, what a model is sent, and what is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel, Field
from pydantic_ai import Agent, FunctionToolset, NativeOutput, PromptedOutput, ToolOutput
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.toolsets import DynamicToolset, ExternalToolset

from stagegraph import Graph, Prompt, PromptError, Prompts, RunError, Runner, Stage, fan_out

NATIVE: Any = {"supports_json_schema_output": True, "default_structured_output_mode": "native"}


class Item(BaseModel):
    name: str = Field(description="Its name.")


class Answer(BaseModel):
    title: str
    items: list[Item] = []


class Doubt(BaseModel):
    why: str = Field(description="The reason.")


def returned(title: str) -> Answer:
    """Make an answer."""
    return Answer(title=title)


def look(word: str) -> str:
    """Look a word up."""
    return word


class Heard(Exception):  # noqa: N818 - no error, just the end of the test's interest
    """The model was asked."""


async def sent(stage: Stage[Any, Any], prompt: Prompt, profile: Any = None) -> str:
    """The schemas, tools and instructions that a model is sent, as one text."""
    heard: list[str] = []

    def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        parameters = info.model_request_parameters
        schemas: list[Any] = [tool.parameters_json_schema for tool in info.output_tools]
        if parameters.output_object is not None:
            schemas.append(parameters.output_object.json_schema)
        tools = {tool.name: tool.description for tool in info.function_tools}
        heard.append(json.dumps([schemas, tools, info.instructions], ensure_ascii=False))
        raise Heard

    with pytest.raises(RunError) as caught:
        await Runner(FunctionModel(answer, profile=profile)).run(stage, "x", prompts=Prompts({"stage": prompt}))
    assert isinstance(caught.value.__cause__.__cause__, Heard), caught.value  # type: ignore[union-attr]
    return heard[0]


WAYS: dict[str, tuple[Any, Any, str]] = {
    "tool": (Answer, None, "title"),
    "nested": (Answer, None, "items.name"),
    "native": (Answer, NATIVE, "items.name"),
    "declared native": (NativeOutput(Answer), NATIVE, "title"),
    "prompted": (PromptedOutput(Answer), None, "items.name"),
    "named tool": (ToolOutput(Answer, name="submit"), None, "title"),
    "several": ([Answer, Doubt], None, "why"),
    "several, native": ([Answer, Doubt], NATIVE, "why"),
    "a list": (list[Item], None, "name"),
    "a list, native": (list[Item], NATIVE, "name"),
    "a function": (returned, None, "title"),
    "text or model": ([str, Doubt], None, "why"),
}


@pytest.mark.parametrize("name", WAYS)
async def test_a_field_is_described_as_the_prompt_says_in_every_mode(name: str) -> None:
    """The model is sent the new text instead of the old one; without the prompt it is sent the code's, as before."""
    output_type, profile, path = WAYS[name]
    stage = Stage(str, Agent(output_type=output_type))
    before = await sent(stage, Prompt(), profile)
    own = stage.fields[path].text
    after = await sent(stage, Prompt(fields={path: "NEW TEXT"}), profile)
    assert after.count("NEW TEXT") == (2 if name == "prompted" else 1)  # there the schema stands in the instructions
    assert not own or own not in after
    assert await sent(stage, Prompt(), profile) == before
    assert own in before
    assert "NEW TEXT" not in before


def test_the_fields_of_an_answer_are_known_before_a_run() -> None:
    """Under the paths that a prompt may name, with the code's own texts; an answer in text has none."""

    def texts(output_type: Any) -> dict[str, str]:
        return {path: field.text for path, field in Stage(str, Agent(output_type=output_type)).fields.items()}

    assert texts(Answer) == {"title": "", "items": "", "items.name": "Its name."}
    assert texts([Answer, Doubt]) == {"title": "", "items": "", "items.name": "Its name.", "why": "The reason."}
    assert texts(NativeOutput([Answer, Doubt])) == texts([Answer, Doubt])
    assert texts(list[Item]) == {"name": "Its name."}
    assert texts(str) == texts(int) == {}
    assert texts(returned) == {"title": ""}


def test_the_tools_of_an_agent_are_known_as_far_as_they_can_be() -> None:
    """Under the names that the model sees; what a function gives at run time is not known."""
    tools: FunctionToolset[Any] = FunctionToolset([look])

    def names(**options: Any) -> tuple[list[str], bool]:
        found, whole = Stage(str, WrapperAgent(Agent(**options))).tools
        assert {tool.text for tool in found.values()} <= {"Look a word up."}
        return list(found), whole

    assert names() == ([], True)
    assert names(tools=[look]) == (["look"], True)
    assert names(toolsets=[tools.prefixed("a"), tools.renamed({"see": "look"})]) == (["a_look", "see"], True)
    assert names(toolsets=[tools.filtered(lambda *_: True)]) == (["look"], True)
    assert names(toolsets=[ExternalToolset([])]) == ([], True)
    assert names(tools=[look], toolsets=[DynamicToolset(lambda _: tools)]) == (["look"], False)
    assert names(toolsets=[tools.prepared(lambda _, defs: defs)])[1] is False


class Ask(Graph[str, Answer]):
    ask = Stage(str, Agent(output_type=Answer, tools=[look]))

    async def flow(self, text: str) -> Answer:
        return await self.ask(text)


async def test_check_names_tools_and_fields_that_are_not_there() -> None:
    """Each with what is near and what there is, also before a run; where a function gives tools, all may be right."""
    with pytest.raises(PromptError) as caught:
        Prompts({"ask": Prompt(tools={"loock": "x"}, fields={"item.name": "x", "title": "y"})}).check(Ask())
    message = str(caught.value)
    assert "`ask` has no tool `loock` (did you mean `look`?); there are: `look`" in message
    assert "`ask` has no output field `item.name` (did you mean `items.name`?)" in message
    assert "there are: `title`, `items`, `items.name`" in message
    Prompts({"ask": Prompt(tools={"look": "x"}, fields={"items.name": "x"})}).check(Ask())
    with pytest.raises(PromptError, match=r"no output field `titel` \(did you mean `title`\?\)"):
        await Runner().run(Ask(), "x", prompts=Prompts({"ask": Prompt(fields={"titel": "x"})}))
    given: FunctionToolset[Any] = FunctionToolset([look])

    class Later(Ask):
        ask = Stage(str, Agent(output_type=Answer, toolsets=[DynamicToolset(lambda _: given)]))

    Prompts({"ask": Prompt(tools={"search": "x"})}).check(Later())


async def test_many_candidates_describe_one_agent_at_once() -> None:
    """Each run has its own text, and the agent's schema is as it was."""
    agent = Agent(output_type=NativeOutput(Answer))
    graph = Stage(str, agent)

    def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        given = info.model_request_parameters.output_object
        assert given is not None
        return ModelResponse([TextPart(json.dumps({"title": given.json_schema["properties"]["title"]["description"]}))])

    runner = Runner(FunctionModel(answer, profile=NATIVE))

    async def one(number: int) -> str:
        prompts = Prompts({"stage": Prompt(fields={"title": f"text {number}"})})
        return (await runner.run(graph, "x", prompts=prompts)).output.title

    assert await fan_out(one, range(20)) == [f"text {number}" for number in range(20)]
    assert graph.fields["title"].text == Stage(str, agent).fields["title"].text == ""
