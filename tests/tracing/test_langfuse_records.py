"""Scores, prompts, datasets and experiments of the contract server, asked by the real SDK."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from langfuse import Evaluation, Langfuse
from langfuse.api import NotFoundError
from langfuse.api.core import ApiError
from langfuse_server import LangfuseServer

EARLY = datetime(2020, 1, 1, tzinfo=UTC)


def test_scores(server: LangfuseServer, client: Langfuse) -> None:
    """Scores of every type are kept by id and read again; a bad one is counted."""
    for value in (0.2, 0.8):
        client.create_score(name="good", value=value, trace_id="t" * 32, observation_id="o" * 16, score_id="s1")
    client.create_score(name="ok", value=1, data_type="BOOLEAN", trace_id="t" * 32, comment="fine", metadata={"k": 1})
    client.create_score(name="kind", value="a", session_id="s")
    client.create_score(name="fix", value="better", data_type="CORRECTION", trace_id="t" * 32, observation_id="o" * 16)
    client.create_score(name="run", value=1, dataset_run_id="e")
    server.rejected_scores = {"bad"}
    client.create_score(name="bad", value=1, trace_id="t" * 32)
    client.flush()
    server.wait_for(lambda: len(server.scores) == 6)
    assert server.scores_by_id["s1"]["value"] == 0.8
    assert [body["value"] for body in server.corrections] == ["better"]
    get = client.api.scores.get_many
    assert {score.name: score.value for score in get(trace_id="t" * 32, fields="core").data} == {
        "good": 0.8,
        "ok": True,
        "fix": "better",
    }
    first = next(one for one in get(trace_id="t" * 32, fields="details,subject").data if one.name == "good")
    assert first.subject is not None
    assert (first.value, first.subject.kind, first.subject.id) == (0.8, "observation", "o" * 16)
    page = get(limit=3)
    assert {row.id for row in page.data} | {row.id for row in get(limit=3, cursor=page.meta.cursor).data} == {
        row.id for row in get().data
    }
    with pytest.raises(ApiError):
        get(limit=101)


def test_prompts(server: LangfuseServer, client: Langfuse) -> None:
    """Labels belong to one version, `latest` to the newest, and slashes in names need encoding."""
    client.create_prompt(name="g/w", prompt="One {{x}}.", labels=["production"], config={"k": 1}, commit_message="c")
    client.create_prompt(name="g/w", prompt="Two.", labels=["candidate"], tags=["t"])
    client.create_prompt(name="talk", type="chat", prompt=[{"role": "user", "content": "hi"}])
    assert client.get_prompt("g/w").compile(x="y") == "One y."
    assert client.get_prompt("g/w", label="candidate").version == 2
    assert client.get_prompt("g/w", label="latest").version == client.get_prompt("g/w", version=2).version
    client.update_prompt(name="g/w", version=2, new_labels=["production"])
    assert client.get_prompt("g/w").version == 2
    assert [one["labels"] for one in server.prompts["g/w"]] == [[], ["candidate", "latest", "production"]]
    assert client.get_prompt("talk", type="chat", label="latest").compile() == [{"role": "user", "content": "hi"}]
    with pytest.raises(NotFoundError):
        client.get_prompt("none", max_retries=0)
    with pytest.raises(NotFoundError):
        client.api.prompts.get("g/w")


def test_datasets_and_an_experiment(server: LangfuseServer, client: Langfuse) -> None:
    """Items are upserted by id; an experiment leaves spans and scores from which it is listed."""
    client.create_dataset(name="folder/set", metadata={"k": 1})
    for number in range(3):
        client.create_dataset_item(
            dataset_name="folder/set", id=f"i{number}", input={"n": number}, expected_output=number
        )
    item = client.create_dataset_item(dataset_name="folder/set", id="i0", input={"n": 9}, source_trace_id="t")
    assert (item.expected_output, item.source_trace_id, item.media_references) == (0, "t", [])
    assert item.input == {"n": 9}

    def task(*, item: Any, **_: Any) -> int:
        return item.input["n"] + 1

    def size(*, output: Any, **_: Any) -> Evaluation:
        return Evaluation(name="size", value=output)

    def count(*, item_results: list[Any], **_: Any) -> Evaluation:
        return Evaluation(name="count", value=len(item_results))

    dataset = client.get_dataset("folder/set", fetch_items_page_size=2)
    assert len(dataset.items) == 3
    assert server.dataset_items["i1"]["datasetName"] == "folder/set"
    result = dataset.run_experiment(
        name="try",
        run_name="try 1",
        description="first",
        metadata={"m": "1"},
        task=task,
        evaluators=[size],
        run_evaluators=[count],
    )
    server.wait_for(lambda: len(server.scores) == 4)
    listed = client.api.experiments.list(from_start_time=EARLY).data
    assert [(one.id, one.name, one.item_count) for one in listed] == [(result.experiment_id, "try 1", 3)]
