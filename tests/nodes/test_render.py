"""How inputs become prompts: texts as they are, models as XML, media as content parts."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import date
from enum import Enum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field
from pydantic_ai import Agent, BinaryContent, ImageUrl
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import RunError, Runner, Stage

PNG = BinaryContent(b"\x89PNG\xff", media_type="image/png")
PAGE = ImageUrl(url="https://example.com/page.png")


class Mood(Enum):
    GOOD = "good"


class Line(BaseModel):
    text: str


class Ticket(BaseModel):
    title: str
    lines: list[Line] = []
    mood: Mood | None = None
    due: date | None = None


class Scan(BaseModel):
    name: str
    pages: list[ImageUrl | BinaryContent] = []
    notes: dict[str, Any] = {}
    private: str = Field("", exclude=True)


@dataclass
class Album:
    name: str
    cover: BinaryContent
    rest: list[BinaryContent] = field(default_factory=list)


async def sent(stage: Stage[Any, Any], value: object) -> str | list[Any]:
    """What the model is sent for an input."""
    contents: list[Any] = []

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        assert isinstance(messages[0], ModelRequest)
        contents.extend(part.content for part in messages[0].parts if isinstance(part, UserPromptPart))
        return ModelResponse([TextPart("ok")])

    async with Runner(FunctionModel(answer)) as runner:
        await runner.run(stage, value)
    (content,) = contents
    return content


def stage_of(type_: Any, **options: Any) -> Stage[Any, str]:
    return Stage(type_, Agent(), **options)


@pytest.mark.parametrize("text", ["hello", "", "  spaces \n", "<b>&amp;", "\u2028\r\n", "x" * 100_000])
async def test_a_text_is_sent_as_it_is(text: str) -> None:
    """A `str` is the prompt, to the letter."""
    assert await sent(stage_of(str), text) == text


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_no_text_is_changed(text: str) -> None:
    """The stage's renderer gives every `str` back."""
    assert stage_of(str).render(text) == text


async def test_a_model_is_sent_as_xml() -> None:
    """Fields are tags, lists are items, and the root is the type's name."""
    ticket = Ticket(
        title="It <broke> & burns", lines=[Line(text="a"), Line(text="b")], mood=Mood.GOOD, due=date(2026, 1, 2)
    )
    content = await sent(stage_of(Ticket), ticket)
    assert isinstance(content, str)
    assert content.startswith("<Ticket>")
    assert content.endswith("</Ticket>")
    assert "<title>It &lt;broke&gt; &amp; burns</title>" in content
    assert content.count("<Line>") == 2
    assert "<due>2026-01-02</due>" in content


@pytest.mark.parametrize(
    ("type_", "value", "expected"),
    [
        (int, 3, "<input>3</input>"),
        (list[str], ["a", "b"], "<item>b</item>"),
        (dict[str, int], {"a": 1}, "<a>1</a>"),
        (bool, True, "true"),
        (list[Line], [Line(text="a")], "<text>a</text>"),
    ],
    ids=str,
)
async def test_other_types_are_sent_as_xml_too(type_: Any, value: object, expected: str) -> None:
    """What is no text and no model stands in an `<input>`."""
    content = await sent(stage_of(type_), value)
    assert isinstance(content, str)
    assert content.startswith("<input>")
    assert expected.lower() in content.lower()


async def test_a_renderer_of_the_stage_replaces_all_this() -> None:
    """`render=` decides alone, and may give text or content parts."""
    assert await sent(stage_of(Ticket, render=lambda ticket: f"Title: {ticket.title}"), Ticket(title="x")) == "Title: x"
    for kind in (tuple, list):
        content = await sent(stage_of(Scan, render=lambda scan, kind=kind: kind((scan.name, PAGE))), Scan(name="n"))
        assert content == ["n", PAGE]


async def test_media_in_models_stand_after_the_text_that_names_them() -> None:
    """Lists, dicts and fields: each medium is a part, and the XML says which one stands where."""
    scan = Scan(name="S", pages=[PAGE, PNG], notes={"back": {"photo": PNG}}, private="hidden")
    content = await sent(stage_of(Scan), scan)
    assert content[1:] == [PAGE, PNG, PNG]
    text = content[0]
    assert isinstance(text, str)
    assert text.index("[attachment 1]") < text.index("[attachment 2]") < text.index("[attachment 3]")
    assert "<name>S</name>" in text
    assert "hidden" not in text
    assert "PNG" not in text


async def test_media_in_lists_and_tuples_are_content_parts() -> None:
    """An image alone, a list of images, or a question and an image."""
    assert await sent(stage_of(BinaryContent), PNG) == [PNG]
    assert await sent(stage_of(ImageUrl), PAGE) == [PAGE]
    assert (await sent(stage_of(list[ImageUrl]), [PAGE, PAGE]))[1:] == [PAGE, PAGE]
    content = await sent(stage_of(tuple[str, BinaryContent]), ("What is this?", PNG))
    assert "What is this?" in content[0]
    assert content[1:] == [PNG]


async def test_media_in_dataclasses_are_content_parts() -> None:
    """A dataclass is looked into like a model."""
    other = BinaryContent(b"other", media_type="image/jpeg")
    content = await sent(stage_of(Album), Album("A", PNG, [other]))
    assert content[1:] == [PNG, other]
    assert "<name>A</name>" in content[0]
    assert "[attachment 2]" in content[0]


async def test_a_renderer_that_fails_is_named_with_its_stage() -> None:
    """The error says which stage's renderer it was, and the run fails as a run."""
    stage = stage_of(Ticket, render=lambda ticket: ticket.nothing)
    with pytest.raises(RunError, match=r"stage `stage` failed: AttributeError.*renderer of the stage") as caught:
        await sent(stage, Ticket(title="x"))
    assert isinstance(caught.value.__cause__.__cause__, AttributeError)  # type: ignore[union-attr]
