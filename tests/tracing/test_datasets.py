"""Recorded runs as examples, corrected by people, and data sets in Langfuse."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from recorded_runs import Desk
from tickets import MODEL, A, B, C, Desks, Single, Ticket, Triage, both
from traced_runs import Asks

from scripted import fails
from stagegraph import DeclarationError, Graph, Stage
from stagegraph.data.examples import Example
from stagegraph.schema.errors import TracingError
from stagegraph.tracing import from_dataset, to_dataset
from stagegraph.tracing.attributes import trace_id

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("keys")]


def short(examples: list[Example[Any]]) -> list[tuple[Any, Any]]:
    return [(one.input, one.expected) for one in examples]


async def test_runs_become_examples(desk: Desk) -> None:
    """Of the whole graph or of one stage, with typed inputs and outputs, and told where they come from."""
    run = await desk.run(Desks(), [A, B], MODEL)
    examples, source = await both(desk)
    assert short(examples) == [([A, B], run.output)]
    examples, source = await both(desk, stage=Desks.sort)
    assert short(examples) == [(A, run.output[0]), (B, run.output[1])]
    assert examples[1].metadata == {"run_id": run.id, "key": "sort[1]", "corrected": False, "scores": {}}
    assert len({one.id for one in examples}) == 2
    assert not source.skipped
    with pytest.raises(DeclarationError):
        await source.examples(Desks(), stage=Single.sort)


async def test_the_same_input_is_one_example(desk: Desk) -> None:
    """The newest of equal inputs stays, and one that was corrected before all."""
    first = await desk.run(Desks(), [A], MODEL)
    second = await desk.run(Desks(), [A, A], MODEL)
    examples, source = await both(desk, stage=Desks.sort)
    assert [one.metadata["run_id"] for one in examples] == [second.id]
    assert source.skipped == {"the same input again": 2}
    await desk.score(first, "correction", '{"team": "x"}', "sort[0]")
    examples, _ = await both(desk, stage=Desks.sort)
    assert short(examples) == [(A, Triage(team="x"))]


async def test_a_correction_is_the_expected_output(desk: Desk) -> None:
    """Of a call and of the whole run; the last one counts, and one that does not fit is counted."""
    run = await desk.run(Desks(), [A, B, C], MODEL)
    await desk.score(run, "correction", '{"team": "first"}', "sort[1]")
    await desk.score(run, "correction", '{"team": "last", "urgent": true}', "sort[1]")
    await desk.score(run, "correction", "no team at all", "sort[2]")
    await desk.score(run, "correction", '[{"team": "all"}]')
    await desk.score(run, "helpful", 0.5, "sort[1]")
    examples, source = await both(desk, stage=Desks.sort)
    assert short(examples) == [(A, run.output[0]), (B, Triage(team="last", urgent=True))]
    assert (examples[1].metadata["corrected"], examples[1].metadata["scores"]) == (True, {"helpful": 0.5})
    assert source.skipped == {"a correction does not fit the output type": 1}
    examples, _ = await both(desk)
    assert short(examples) == [([A, B, C], [Triage(team="all")])]


async def test_a_plain_text_corrects_a_stage_that_gives_one(desk: Desk) -> None:
    """Nobody has to write JSON to say what the text should have been."""

    asks = Asks()
    for text, correction in (("x", "Say this."), ("y", "42"), ("z", '"quoted"')):
        run = await desk.run(asks, text)
        await desk.score(run, "correction", correction, "ask")
    examples, _ = await both(desk, asks, stage=asks.ask)
    assert [one.expected for one in examples] == ["quoted", "42", "Say this."]


async def test_what_failed_counts_only_when_it_was_corrected(desk: Desk) -> None:
    """A failed call shows a hard input, whose right answer only a person knows."""
    run = await desk.run(Single(), A, fails(ValueError("no")))
    examples, source = await both(desk, Single(), stage=Single.sort)
    assert not examples
    assert source.skipped == {"it failed, and nobody corrected it": 1}
    await desk.score(run, "correction", '{"team": "x"}', "sort")
    await desk.score(run, "correction", '{"team": "y"}')
    assert short((await both(desk, Single(), stage=Single.sort))[0]) == [(A, Triage(team="x"))]
    assert short((await both(desk, Single()))[0]) == [(A, Triage(team="y"))]


async def test_scores_of_calls_choose_calls(desk: Desk) -> None:
    """With a stage, scores are about its calls; other words about a run are about the run."""
    run = await desk.run(Desks(), [A, B, C], MODEL, tags=("t",))
    for key, value in (("sort[0]", 0.1), ("sort[1]", 0.9)):
        await desk.score(run, "right", value, key)
    await desk.score(run, "right", 1.0)
    assert [one.input for one in (await both(desk, stage=Desks.sort, score="right"))[0]] == [A, B]
    assert [one.input for one in (await both(desk, stage=Desks.sort, min_score=0.5, tags=["t"]))[0]] == [B]
    assert [one.input for one in (await both(desk, stage=Desks.sort, max_score=0.5))[0]] == [A]
    assert [one.input for one in (await both(desk, stage=Desks.sort, limit=2))[0]] == [A, B]
    assert not (await both(desk, stage=Desks.sort, tags=["other"]))[0]


async def test_what_does_not_fit_any_more_is_counted(desk: Desk) -> None:
    """A graph whose types have changed since learns from the runs that still fit."""
    await desk.run(Desks(), [A], MODEL)

    class Other(BaseModel):
        words: list[str]

    def changed(takes: Any, gives: Any, given: Any, made: Any) -> Any:
        class Changed(Graph[takes, gives]):
            sort = Stage(given, Agent(output_type=made))

            async def flow(self, tickets):
                return []

        Changed.__name__ = Changed.__qualname__ = "Desks"
        return Changed

    tickets, results = list[Ticket], list[Triage]
    for graph, of_stage, reason in (
        (changed(list[Other], results, Ticket, Triage), False, "a run does not fit the graph's types any more"),
        (changed(tickets, int, Ticket, Triage), False, "a run does not fit the graph's types any more"),
        (changed(tickets, results, Other, Triage), True, "an input does not fit its type any more"),
        (changed(tickets, results, Ticket, Other), True, "an output does not fit its type any more"),
    ):
        examples, source = await both(desk, graph(), stage=graph.sort if of_stage else None)
        assert not examples
        assert source.skipped == {reason: 1}


async def test_what_was_cut_is_counted(desk: Desk) -> None:
    """Half an input is none, even when the half can be read; the other calls remain."""
    desk.tracing = desk.watch.tracing(max_content=60)
    await desk.run(Desks(), [A, Ticket(text="long" * 20)], MODEL, run_id="long")
    source = desk.source()
    assert not await source.examples(Desks())
    assert source.skipped == {"an observation is truncated, or has no input": 1}
    with pytest.raises(TracingError, match="is truncated"):
        await source.run("long", Desks())
    await desk.run(Single(), Ticket(text="text" * 20), MODEL)
    assert not await source.examples(Single(), stage=Single.sort)

    class Digits(Graph[int, int]):
        async def flow(self, number: int) -> int:
            return number % 7

    await desk.run(Digits(), 10**70, MODEL)
    assert not await source.examples(Digits())


async def test_a_data_set_is_made_once(desk: Desk) -> None:
    """Examples are upserted, linked to the run and the call they come from, and read back typed."""
    run = await desk.run(Desks(), [A, B], MODEL)
    await desk.score(run, "correction", '{"team": "x"}', "sort[1]")
    examples = await desk.langfuse.examples(Desks(), stage=Desks.sort)
    for _ in range(2):
        assert await to_dataset(examples, "a/b", description="d") == 2
        assert len(desk.server.dataset_items) == 2
    assert desk.server.datasets["a/b"]["description"] == "d"
    spans = {span.span_id: span for span in desk.server.trace(trace_id(run.id))}
    for item in desk.server.dataset_items.values():
        assert item["sourceTraceId"] == trace_id(run.id)
        assert json.loads(spans[item["sourceObservationId"]].attributes["langfuse.observation.input"]) == item["input"]
    again = await from_dataset("a/b", Single())
    assert [(one.id, one.input) for one in again] == [(one.id, one.input) for one in examples]
    assert [one.expected for one in again] == [one.data()["expected"] for one in examples]
    assert again[0].metadata["key"] in {"sort[0]", "sort[1]"}


async def test_examples_of_resumed_runs_link_to_what_ran(desk: Desk) -> None:
    """A call that was made when the run went on is another observation than that of the first attempt."""
    run = await desk.run(Desks(), [A, B], fails(ValueError("no")))
    run = await desk.runner(MODEL).resume(run.id, graph=Desks())
    await desk.watch.sent()
    examples, _ = await both(desk, stage=Desks.sort)
    assert len(examples) == 2
    await to_dataset(examples, "d")
    spans = {span.span_id: span for span in desk.server.trace(trace_id(run.id))}
    for item in desk.server.dataset_items.values():
        assert "langfuse.observation.output" in spans[item["sourceObservationId"]].attributes


@pytest.mark.parametrize(("given", "status"), [({"words": 1}, "ACTIVE"), (None, "ACTIVE"), ("text", None)])
async def test_an_item_that_does_not_fit_is_named(desk: Desk, given: Any, status: str | None) -> None:
    """The item's id and the type say where to look; archived items are left out before anybody looks at them."""
    await to_dataset([Example(A, id="e")], "d")
    desk.server.dataset_items["odd"] = {
        **next(iter(desk.server.dataset_items.values())),
        "id": "odd",
        "input": given,
        "metadata": None,
        **({"status": status} if status else {}),
    }
    with pytest.raises(TracingError, match="item odd of data set 'd' does not fit Ticket"):
        await from_dataset("d", Single())
    desk.server.dataset_items["odd"]["status"] = "ARCHIVED"
    assert [one.id for one in await from_dataset("d", Single())] == ["e"]
    with pytest.raises(TracingError, match="has no data set 'none'"):
        await from_dataset("none", Single())


async def test_many_items_take_several_pages(desk: Desk) -> None:
    """All of them come back in the order in which they were given, though they went there side by side."""
    examples = [Example(number, id=str(number)) for number in range(150)]
    for start in (0, 75):
        await to_dataset(examples[start : start + 75], "d")
    inputs = [one.input for one in await from_dataset("d", Stage(int, Agent()))]
    assert inputs == list(range(150))


async def test_what_a_server_refuses_is_an_error(desk: Desk) -> None:
    """An error of ours, not a group of them, whichever example it was."""
    with pytest.raises(TracingError, match="cannot be written as JSON"):
        await to_dataset([Example(A), Example(float("nan"))], "d")
    await to_dataset([Example("half a pair \ud800"), Example(b"\xff\x00")], "d")
    assert {one["input"] for one in desk.server.dataset_items.values()} == {"half a pair ?", "_wA="}
    desk.server.status, desk.server.failing = 400, "dataset-items"
    with pytest.raises(TracingError, match="refused dataset-items"):
        await to_dataset([Example(A), Example(B)], "d")
