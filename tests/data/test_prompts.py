"""Prompts: the seed from the code, one readable file, strict checks, and how they reach a model."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Demo, Graph, Prompt, PromptError, Prompts, Runner, Stage
from stagegraph.data.prompt import Origin


class Question(BaseModel):
    text: str


class Answer(BaseModel):
    text: str


agent = Agent(output_type=Answer, instructions=["Answer.", "Be brief."], deps_type=str)


@agent.instructions
def today() -> str:
    """Something that is only known when it runs."""
    return "Today is Friday."


@agent.tool_plain
def look(word: str) -> str:
    """Look a word up."""
    return word


class Ask(Graph[Question, Answer]):
    ask = Stage(Question, agent)

    async def flow(self, question: Question) -> Answer:
        return await self.ask(question)


class Two(Graph[Question, list[Answer]]):
    inner = Ask()
    other = Stage(Question, Agent(output_type=Answer))

    async def flow(self, question: Question) -> list[Answer]:
        return [await self.inner(question), await self.other(question)]


class Seen:
    """A model that keeps what it was sent and answers with its instructions."""

    def __init__(self) -> None:
        self.infos: list[AgentInfo] = []
        self.messages: list[list[ModelMessage]] = []

    def __call__(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        self.infos.append(info)
        self.messages.append(messages)
        return ModelResponse([ToolCallPart(info.output_tools[0].name, {"text": info.instructions or ""})])


texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=200)
prompts_of_any_kind = st.dictionaries(
    st.from_regex(r"[a-z]{1,8}(\.[a-z0-9]{1,8}){0,2}", fullmatch=True),
    st.builds(
        Prompt,
        st.none() | texts,
        st.lists(st.builds(Demo, texts, st.none() | st.integers() | texts | st.lists(texts)), max_size=2).map(tuple),
        st.dictionaries(st.text("abc_", min_size=1), texts, max_size=2),
        st.dictionaries(st.text("abc_.", min_size=1), texts, max_size=2),
    ),
    max_size=4,
)


@given(prompts_of_any_kind)
def test_equal_content_is_equal_in_any_order(entries: dict[str, Prompt]) -> None:
    """Order is no content: equality, hash and digest agree."""
    backwards = Prompts(dict(reversed(entries.items())))
    assert backwards == Prompts(entries)
    assert backwards.digest == Prompts(entries).digest
    assert hash(backwards) == hash(Prompts(entries))
    assert Prompts(entries).diff(backwards) == ""
    assert Prompts.from_json(Prompts(entries).to_json()) == Prompts(entries)


def test_a_changed_description_is_a_one_line_diff(tmp_path: Path) -> None:
    """Tools and fields stand under their names, in the order that they were given."""
    before = Prompts({"a": Prompt("x", (), {"look": "Look."}, {"title": "Short.", "items.name": "Its name."})})
    after = Prompts({"a": Prompt("x", (), {"look": "Look."}, {"items.name": "Its name.", "title": "Long."})})
    before.save(tmp_path / "a.yaml")
    assert (tmp_path / "a.yaml").read_text("utf-8").splitlines()[-4:] == [
        "      title: |-",
        "        Short.",
        "      items.name: |-",
        "        Its name.",
    ]
    changed = [line for line in after.diff(before).splitlines() if line.startswith(("+  ", "-  "))]
    assert changed == ["-        Short.", "+        Long."]
    assert before.digest != after.digest
    assert Prompts({"a": Prompt("x")}).digest == Prompts({"a": Prompt("x", fields={})}).digest


def test_replace_keeps_demos_and_tools() -> None:
    """A new text leaves the rest of a prompt; the prompts before are as they were."""
    before = Prompts({"a": Prompt("x", (Demo("i", "o"),), {"t": "d"}, {"f": "e"})})
    after = before.replace({"a": "y"})
    assert after["a"] == Prompt("y", (Demo("i", "o"),), {"t": "d"}, {"f": "e"})
    assert before["a"].instructions == "x"
    with pytest.raises(TypeError):
        before["a"] = Prompt("z")  # type: ignore[index]


def _pickled(prompts: Prompts) -> Prompts:
    again: Prompts = pickle.loads(pickle.dumps(prompts))  # noqa: S301 - our own
    return again


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, _pickled])
def test_prompts_can_be_copied_and_sent_to_another_process(copied: Callable[[Prompts], Prompts]) -> None:
    """With everything in them, and as immutable as they were."""
    whole = Prompt("Be brief.", (Demo({"text": "a"}, {"text": "b"}),), {"look": "Look."}, {"text": "One word."})
    prompts = Prompts({"ask": whole, "other": "Say."}, graph="Two", origins={"ask": Origin("ask", 3)})
    again = copied(prompts)
    assert (again, dict(again), again.graph, again.origins) == (prompts, dict(prompts), "Two", prompts.origins)
    assert again.digest == prompts.digest
    with pytest.raises(TypeError):
        again["ask"].tools["look"] = "x"  # type: ignore[index]


def test_check_names_everything_that_does_not_fit() -> None:
    """Unknown and missing paths and unfit demos are all in one message, with a suggestion."""
    prompts = Prompts({"inner.asc": Prompt("x"), "other": Prompt(demos=(Demo({"text": "q"}, {"txt": "a"}),))})
    with pytest.raises(PromptError) as caught:
        prompts.check(Two())
    message = str(caught.value)
    assert "`inner.asc` (did you mean `inner.ask`?)" in message
    assert "`inner.ask` is missing" in message
    assert "output of demo 1" in message
    Prompts.of(Two()).check(Two())


async def ask(prompt: Prompt, seen: Seen, graph: Graph[Question, Answer] | None = None) -> None:
    runner = Runner(FunctionModel(seen), prompts=Prompts({"ask": prompt}))
    await runner.run(graph or Ask(), Question(text="<now>"))


async def test_demos_are_shown_as_the_stage_renders_live_inputs() -> None:
    """By default demos are an `<examples>` part of the instructions, in the form of a live input."""
    seen = Seen()
    demo = Demo(Question(text="a < b"), Answer(text="yes"))
    assert demo == Demo({"text": "a < b"}, {"text": "yes"})
    await ask(Prompt("Do.", (demo,)), seen)
    shown = seen.infos[0].instructions or ""
    live = str(seen.messages[0][0].parts[0].content)  # type: ignore[union-attr]
    assert "<examples>" in shown
    assert live.replace("&lt;now&gt;", "a &lt; b") in shown
    assert '{"text": "yes"}' in shown
    assert shown.startswith("Do.")


@pytest.mark.parametrize(
    "text", ["", "[1]", "3", "[" * 100_000, '{"a":' * 100_000, '{"a": 1}', '{"a": {"instructions": 5}}']
)
def test_what_no_run_recorded_is_a_prompt_error(text: str) -> None:
    """Also when it is nested deeper than Python can follow."""
    with pytest.raises(PromptError):
        Prompts.from_json(text)
