"""Graphs evaluated on data sets of Langfuse, recorded there as experiments."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from langfuse import Langfuse
from langfuse_server import LangfuseServer, close_client
from recorded_runs import Desk
from tickets import MODEL, A, B, Single, Ticket, Triage, both

from stagegraph import Run, Runner
from stagegraph.data.examples import Example
from stagegraph.schema.errors import TracingError
from stagegraph.tracing import run_experiment, to_dataset
from stagegraph.tracing.attributes import observation_id, trace_id

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("keys")]


async def experiment(desk: Desk, **options: Any) -> Any:
    async def slow(example: Example[Any], run: Run) -> float:
        return float(run.output.team == example.expected["team"])

    def picky(example: Example[Any], run: Run) -> float:
        if example.input == B:
            raise KeyError("picky")
        return 1

    examples = [Example(ticket, Triage(team=ticket.text), ticket.text) for ticket in (A, Ticket(text="bad"), B)]
    await to_dataset(examples, "d")
    runner = desk.runner(MODEL)
    return await run_experiment(
        Single(), "d", runner=runner, metrics={"right": slow, "picky": picky}, name="try", description="x", **options
    )


async def test_an_experiment_is_recorded(desk: Desk) -> None:
    """Each item is a run in an environment of its own, whose every span says which experiment it belongs to."""
    done = await experiment(desk)
    assert [row.example.input.text for row in done.rows] == ["a", "bad", "b"]
    items = {item["metadata"]["example_id"]: item["id"] for item in desk.server.dataset_items.values()}
    for row in done.rows:
        spans = desk.server.trace(trace_id(row.run.id))
        assert spans
        for span in spans:
            at = span.attributes
            assert at["langfuse.environment"] == "sdk-experiment"
            assert at["langfuse.experiment.id"] == done.id
            assert at["langfuse.experiment.name"] == "try"
            assert at["langfuse.experiment.description"] == "x"
            assert at["langfuse.experiment.item.id"] == items[row.example.id]
            assert at["langfuse.experiment.dataset.id"] == desk.server.datasets["d"]["id"]
            assert at["langfuse.experiment.item.root_observation_id"] == observation_id(row.run.id, "")


async def test_an_item_that_fails_does_not_stop_the_others(desk: Desk) -> None:
    """A run that failed has no scores, a metric that failed has none of its own; the means are of what there is."""
    done = await experiment(desk, concurrency=1)
    rows = {row.example.id: (row.run.status, row.scores) for row in done.rows}
    assert rows == {
        "a": ("succeeded", {"right": 1, "picky": 1}),
        "bad": ("failed", {}),
        "b": ("succeeded", {"right": 1}),
    }
    assert (done.mean("right"), done.mean("picky")) == (1, 1)
    told = {(score["traceId"], score["name"]): score["value"] for score in desk.server.scores}
    assert told == {(trace_id(row.run.id), name): value for row in done.rows for name, value in row.scores.items()}


async def test_experiments_are_listed_and_kept_apart(server: LangfuseServer, desk: Desk) -> None:
    """The server lists it with its items; nobody learns from its runs unless they ask for them."""
    done = await experiment(desk)
    client = Langfuse(**server.keys, tracing_enabled=False)
    begun = done.rows[0].run.started - timedelta(minutes=1)
    (listed,) = client.api.experiments.list(from_start_time=begun).data
    assert (listed.id, listed.name, listed.item_count) == (done.id, "try", 3)
    close_client(client)
    assert not (await both(desk, Single(), stage=Single.sort))[0]
    assert len((await both(desk, Single(), stage=Single.sort, experiments=True))[0]) == 2
    assert len(await desk.langfuse.examples(Single(), environment="sdk-experiment")) == 2


async def test_an_experiment_needs_a_server(desk: Desk) -> None:
    """A runner that shows nothing there, and a data set that is not there, are said before anything runs."""
    with pytest.raises(TracingError, match="tracing=LangfuseTracing"):
        await run_experiment(Single(), "d", runner=Runner(MODEL, tracing=None), metrics={})
    with pytest.raises(TracingError, match="has no"):
        await run_experiment(Single(), "d", runner=desk.runner(), metrics={})
