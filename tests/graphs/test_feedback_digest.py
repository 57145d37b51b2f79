"""The digest graph: scripted models for its shape, the embedded one for the real thing."""

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Runner

FOLDER = Path(__file__).parents[2] / "graphs" / "feedback_digest"


@pytest.fixture(scope="module", name="graph")
def _graph() -> ModuleType:
    spec = importlib.util.spec_from_file_location("feedback_digest_graph", FOLDER / "graph.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Negative when the review says so; the customer is its first word, the stars its last."""
    words = str(messages[0].parts[0].content).removeprefix("Review: ").split()
    tool = info.output_tools[0]
    if "sentiment" in tool.parameters_json_schema["properties"]:
        mood = "negative" if "bad" in words else "positive"
        return ModelResponse([ToolCallPart(tool.name, {"sentiment": mood})])
    return ModelResponse([ToolCallPart(tool.name, {"customer": words[0], "stars": int(words[-1])})])


@pytest.mark.parametrize("count", [0, 1, 12])
async def test_every_review_is_counted_and_quoted(graph: ModuleType, count: int) -> None:
    """Any number of reviews gives a digest whose counts and quotes fit them."""
    reviews = [f"name{i} {'bad' if i % 3 == 0 else 'good'} {i % 5 + 1}" for i in range(count)]
    run = await Runner(FunctionModel(answer)).run(graph.FeedbackDigest(), "\n\n".join(reviews))
    digest = run.output
    assert digest.reviews == count
    assert [quote.text for quote in digest.complaints] == [r for r in reviews if "bad" in r]
    assert [quote.customer for quote in digest.praise] == [r.split()[0] for r in reviews if "bad" not in r]
    assert sum(digest.stars.values()) == count
    assert run.usage.requests == 2 * count


@pytest.mark.parametrize(
    ("text", "reviews"),
    [
        ("", []),
        ("one\n\ntwo\nlines\n\n\n\nthree", ["one", "two lines", "three"]),
        ("# Title\n\n- one\n- two\n  goes on\n* three", ["one", "two goes on", "three"]),
        ("1. one\n2) two", ["one", "two"]),
        ("## A\none\n\n---\n\n## B\ntwo", ["one", "two"]),
        ("> quoted\r\n\r\nplain \N{GRINNING FACE}", ["quoted", "plain \N{GRINNING FACE}"]),
    ],
)
async def test_reviews_are_found_in_lists_and_paragraphs(graph: ModuleType, text: str, reviews: list[str]) -> None:
    """Lists, paragraphs, headings and rules, as people write them."""
    run = await Runner().run(graph.split, text)
    assert run.output == reviews


def test_the_examples_are_well_formed(graph: ModuleType) -> None:
    """At least 60 examples that nobody tuned on, each fitting the stages' own types, none twice."""
    rows = [json.loads(line) for line in (FOLDER / "examples.jsonl").read_text("utf-8").splitlines()]
    assert sum(row["split"] == "test" for row in rows) >= 60
    assert len({row["input"] for row in rows}) == len({row["id"] for row in rows}) == len(rows)
    for row in rows:
        graph.Sentiment(sentiment=row["expected"]["sentiment"])
        graph.Rating(customer=row["expected"]["customer"], stars=row["expected"]["stars"])
        assert row["expected"]["customer"] in row["input"]


@pytest.mark.local
async def test_the_embedded_model_digests_the_demonstration_file(graph: ModuleType) -> None:
    """The demonstration runs to its end on the real model, with most customers and stars right."""
    text = (FOLDER / "reviews.txt").read_text("utf-8")
    run = await Runner("local:smollm2").run(graph.FeedbackDigest(), text)
    assert run.output.reviews == 4
    assert run.cost == 0
    customers = {quote.customer for quote in run.output.praise + run.output.complaints}
    assert len(customers & {"Marta Oliveira", "Theo Lindgren", "Adaeze Obi", "Ralf Winter"}) >= 2
