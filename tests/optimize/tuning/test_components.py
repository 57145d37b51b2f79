"""Texts besides instructions that are tuned: tools and fields, served by the same route as they were judged by."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import rules
from pydantic import BaseModel
from pydantic_ai import Agent, FunctionToolset
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.toolsets import DynamicToolset
from words import asked

from stagegraph import Example, Graph, Prompt, Prompts, Run, Runner, Score, Stage, TuningError
from stagegraph.optimize import GEPA, Budget, Candidates, GraphModule, Proposal
from stagegraph.schema.paths import fields_in

pytestmark = pytest.mark.anyio


class Item(BaseModel):
    name: str


class Answer(BaseModel):
    title: str
    items: list[Item]


def search(word: str) -> str:
    """Search."""
    return f"found {word}"


class Ask(Graph[str, Answer]):
    """One stage with a tool, and one without."""

    draft = Stage(str, Agent(instructions="draft: begin"))
    ask = Stage(str, Agent(output_type=Answer, tools=[search], instructions="ask: answer"))

    async def flow(self, text: str) -> Answer:
        return await self.ask(await self.draft(text))


RULES = {"ask": "RULE-text", "ask:tool:search": "RULE-tool", "ask:field:items.name": "RULE-field"}
POOL = Candidates({name: [f"{rule}, and more"] for name, rule in RULES.items()})


def model() -> FunctionModel:
    """Calls the tool, then says which of its rules it read, each where it has to stand."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if not info.output_tools:
            return ModelResponse([TextPart(asked(messages))])
        [tool], [output] = info.function_tools, info.output_tools
        last = messages[-1]
        if not (isinstance(last, ModelRequest) and any(isinstance(part, ToolReturnPart) for part in last.parts)):
            return ModelResponse([ToolCallPart(tool.name, {"word": "soup"})])
        read = {
            "RULE-text": info.instructions or "",
            "RULE-tool": tool.description or "",
            "RULE-field": str(fields_in(output.parameters_json_schema)["items.name"].get("description")),
        }
        kept = [rule for rule, text in read.items() if rule in text]
        return ModelResponse([ToolCallPart(output.name, {"title": "t", "items": [{"name": rule} for rule in kept]})])

    return FunctionModel(answer, model_name="reader")


def grade(_example: Example[str], run: Run[str, Answer]) -> Score:
    """A third for each rule that was read."""
    read = {item.name for item in run.output.items}
    missing = [rule for rule in RULES.values() if rule not in read]
    return Score(1 - len(missing) / 3, [run.call("ask").note(f"missing {rule}") for rule in missing])


KNOWN: dict[str, Any] = {"budget": Budget(runs=160), "components": ("instructions", "tools", "fields")}


async def tuned(graph: Graph[Any, Any] | None = None, **options: Any) -> Any:
    return await rules.tuned(grade, graph or Ask(), **{"model": model(), "proposer": POOL, **KNOWN, **options})


async def test_instructions_tools_and_fields_are_tuned_and_served_alike(tmp_path: Path) -> None:
    """What won in the search wins when it is deployed from the file, and the summary says what was changed."""
    result = await tuned()
    assert result.found.candidates[0].mean == 0
    assert result.report.mean == 1
    assert set(result.found.changed) == set(RULES)
    assert "changed: ask, ask:tool:search, ask:field:items.name" in str(result)
    result.save(tmp_path / "best.yaml")
    assert '"ask:tool:search"' in (tmp_path / "best.tuning.json").read_text("utf-8")
    prompts = Prompts.load(tmp_path / "best.yaml")
    assert prompts["ask"] == Prompt(
        "RULE-text, and more", (), {"search": "RULE-tool, and more"}, {"items.name": "RULE-field, and more"}
    )
    prompts = prompts.replace({"draft": Prompt()})
    prompts.check(Ask())
    run = await Runner(model(), prompts=prompts).run(Ask(), "x")
    assert [item.name for item in run.output.items] == list(RULES.values())


async def test_only_what_was_asked_for_is_changed() -> None:
    """Without `components`, instructions alone; a name for one kind, that kind alone."""
    changed: set[str] = set()

    def propose(proposal: Proposal) -> str | None:
        changed.add(proposal.component)
        return None

    await tuned(proposer=propose, components=("instructions",), stagnation=4)
    assert changed == {"ask"}
    changed.clear()
    await tuned(proposer=propose, components="fields", stagnation=4)
    assert changed == {"ask:field:title", "ask:field:items", "ask:field:items.name"}
    changed.clear()
    await tuned(proposer=propose, components=["tools"], stagnation=4)
    assert changed == {"ask:tool:search"}


async def test_the_texts_of_a_stage_take_turns() -> None:
    """None is tried a second time before each was tried once."""
    order: list[str] = []

    def propose(proposal: Proposal) -> None:
        order.append(proposal.component)

    await tuned(proposer=propose, stagnation=12)
    assert len(order) >= 10
    assert len(set(order[:5])) == len(set(order[5:10])) == 5


async def test_a_proposer_is_told_what_kind_of_text_it_writes() -> None:
    """For a tool its parameters and what was done with it, for a field its schema, and the instructions for both."""
    seen: dict[str, Proposal] = {}

    def propose(proposal: Proposal) -> None:
        seen[proposal.component] = proposal

    await tuned(proposer=propose, stagnation=10)
    tool, field, text = seen["ask:tool:search"], seen["ask:field:items.name"], seen["ask"]
    assert (tool.kind, tool.part, tool.text, tool.instructions) == ("tool", "search", "Search.", "ask: answer")
    assert "word" in tool.schema
    assert tool.records[0]["tool"] == 'called with {"word":"soup"}\ngave found soup'
    assert (field.kind, field.part, field.text) == ("field", "items.name", "")
    assert '"string"' in field.schema
    assert (text.kind, text.schema, text.instructions) == ("instructions", "", "")
    assert "tool" not in text.records[0]


async def test_a_reflection_model_writes_descriptions() -> None:
    """It is asked for the right kind of text, with what it needs for it."""
    questions: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        question = asked(messages)
        questions.append(f"{info.instructions}\n{question}")
        now = re.search(r"```\n(.*?)\n```", question, re.DOTALL)
        named = set(re.findall(r"RULE-\w+", question.partition("# What happened")[2]))
        assert now is not None
        return ModelResponse([TextPart(f"```\n{now[1]} {' '.join(sorted(named))}\n```")])

    result = await tuned(proposer=None, reflection_model=FunctionModel(answer))
    assert result.report.mean == 1
    about = next(one for one in questions if "the tool `search` now" in one)
    assert "a tool that it may call" in about
    assert "gave found soup" in about
    assert "# The instructions, which stay" in about
    assert any("output field `items.name` now" in one for one in questions)


async def test_a_killed_tuning_of_descriptions_goes_on(tmp_path: Path) -> None:
    """The folder knows the components: the same again asks nobody, and another choice is refused."""
    first = await tuned(run_dir=tmp_path)

    def never(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        raise AssertionError

    again = await tuned(run_dir=tmp_path, model=FunctionModel(never, model_name="reader"))
    assert again.prompts == first.prompts
    with pytest.raises(TuningError, match="cannot go on: since then, what is tuned"):
        await tuned(run_dir=tmp_path, components=("tools",))


async def test_the_start_may_be_prompts_and_what_they_say_stays() -> None:
    """A tool that is only known at run time is tuned when the prompts to start from name it."""
    given: FunctionToolset[Any] = FunctionToolset([search])

    class Later(Ask):
        ask = Stage(str, Agent(output_type=Answer, toolsets=[DynamicToolset(lambda _: given)], instructions="ask: a"))

    start = Prompts({"ask": Prompt(tools={"search": "Look."}, fields={"title": "Short."})})
    result = await tuned(Later(), prompts=start)
    assert result.report.mean == 1
    assert result.found.seed["ask"].fields == {"title": "Short."}
    assert result.prompts["ask"].tools == {"search": "RULE-tool, and more"}
    assert result.prompts["ask"].fields == {"title": "Short.", "items.name": "RULE-field, and more"}


async def test_the_teleprompter_takes_components_too() -> None:
    """The module that comes out says what was found."""
    module = GraphModule(Ask(), model=model())
    better = await GEPA(grade, proposer=POOL, **KNOWN).acompile(module, trainset=rules.TRAIN, valset=rules.VAL)
    assert better.prompts()["ask"].fields == {"items.name": "RULE-field, and more"}
    assert len((await better.acall(input="x")).output.items) == 3
    assert module.prompts()["ask"].tools == {}


async def test_notes_go_into_any_text() -> None:
    """Without a model, a description that was empty has the notes."""
    result = await tuned(proposer="notes")
    assert "- missing RULE-field" in result.prompts["ask"].fields["items.name"]


@pytest.mark.parametrize(
    ("components", "message"),
    [
        ((), "components is empty: it has one or more of 'instructions', 'tools', 'fields'"),
        (("texts",), r"components=\['texts'\]: it has one or more of"),
        ("tool", r"components=\['tool'\]"),
        (("tools", "fields"), "no stage of Chain has tools or fields to tune"),
    ],
)
async def test_components_that_cannot_be_tuned_are_refused(components: Any, message: str) -> None:
    """Before anything is run."""
    with pytest.raises(TuningError, match=message):
        await rules.tuned(components=components)
