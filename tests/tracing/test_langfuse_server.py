"""The contract server, asked by the real SDK: each answer has to fit the SDK's own types; and what is taken from it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from langfuse import Evaluation, Langfuse, LangfuseOtelSpanAttributes, propagate_attributes
from langfuse.api import LangfuseAPI, NotFoundError, UnauthorizedError
from langfuse.api.core import ApiError
from langfuse_server import LangfuseServer, close_async
from pydantic_ai import Agent
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.models.instrumented import InstrumentationSettings
from pydantic_ai.models.test import TestModel

from stagegraph.tracing.attributes import Names, trace_id

ALL = "core,basic,time,io,metadata,model,usage,prompt,metrics,trace_context"
EARLY = datetime(2020, 1, 1, tzinfo=UTC)
ONCE: Any = {"max_retries": 0}


def traced(client: Langfuse) -> str:
    """One run of a graph with a stage, a generation and a stage that fails."""
    trace_id = Langfuse.create_trace_id(seed="run")
    prompt = client.create_prompt(name="graph/writer", prompt="Write {{what}}.", labels=["production"])
    with (
        propagate_attributes(trace_name="graph", user_id="u", session_id="s", tags=["a", "b"], version="v1"),
        client.start_as_current_observation(
            name="graph", as_type="chain", trace_context={"trace_id": trace_id}, input={"q": 1}
        ) as root,
    ):
        with client.start_as_current_observation(
            name="stage:writer",
            as_type="agent",
            input="in",
            metadata={"stage": "writer", "index": 0, "long": "x" * 300},
        ) as stage:
            with (
                propagate_attributes(prompt=prompt),
                client.start_as_current_observation(
                    name="chat",
                    as_type="generation",
                    model="m",
                    usage_details={"input": 3, "output": 2},
                    cost_details={"total": 0.5},
                    model_parameters={"temperature": 0.1},
                    completion_start_time=datetime.now(UTC),
                ),
            ):
                pass
            stage.update(output="out")
        with client.start_as_current_observation(name="stage:critic", as_type="agent") as stage:
            stage.update(level="ERROR", status_message="broke")
        root.update(output={"a": 2})
    client.flush()
    return trace_id


def test_a_run_comes_back_as_it_was_traced(server: LangfuseServer, client: Langfuse) -> None:
    """Spans are decoded, and read again as typed observations."""
    trace_id = traced(client)
    server.wait_for(lambda: len(server.trace(trace_id)) == 4)
    assert server.tree(trace_id) == [("graph", [("stage:writer", ["chat"]), "stage:critic"])]
    assert server.trace(trace_id)[1].attributes["langfuse.observation.metadata.index"] == "0"
    rows = client.api.observations.get_many(trace_id=trace_id, fields=ALL, expand_metadata="long").data
    by_name = {row.name: row for row in rows}
    root, stage, chat, critic = (by_name[name] for name in ("graph", "stage:writer", "chat", "stage:critic"))
    assert [row.start_time for row in rows] == sorted((row.start_time for row in rows), reverse=True)
    assert (root.type, root.is_root_observation, root.input, root.output) == ("CHAIN", True, '{"q": 1}', '{"a": 2}')
    assert root.parent_observation_id
    assert (root.user_id, root.session_id, root.tags, root.trace_name) == ("u", "s", ["a", "b"], "graph")
    assert (root.environment, root.release, root.version) == ("dev", "r1", "v1")
    assert (stage.type, stage.is_root_observation, stage.input, stage.output) == ("AGENT", False, "in", "out")
    assert stage.metadata
    assert (stage.metadata["stage"], stage.metadata["index"], stage.metadata["long"]) == ("writer", 0, "x" * 300)
    assert (chat.type, chat.model, chat.prompt_name, chat.prompt_version) == ("GENERATION", "m", "graph/writer", 1)
    assert (chat.usage_details, chat.total_cost) == ({"input": 3, "output": 2, "total": 5}, 0.5)
    assert stage.prompt_name is None
    assert (critic.level, critic.status_message) == ("ERROR", "broke")


def test_rows_can_be_chosen(server: LangfuseServer, client: Langfuse) -> None:
    """Parameters and the JSON filter choose rows; groups choose fields."""
    trace_id = traced(client)
    get = client.api.observations.get_many

    def names(**chosen: Any) -> list[str]:
        return sorted(row.name or "" for row in get(**chosen).data)

    everything = ["chat", "graph", "stage:critic", "stage:writer"]
    assert names(name="stage:writer") == names(type="AGENT", level="DEFAULT") == ["stage:writer"]
    assert names(is_root_observation=True) == ["graph"]
    assert names(environment=["dev", "x"]) == names(user_id="u", session_id="s", version="v1") == everything
    assert names(from_start_time=EARLY, to_start_time=datetime.now(UTC) + timedelta(1)) == everything
    assert names(to_start_time=EARLY) == []
    row = get(name="stage:writer", trace_id=trace_id).data[0]
    wanted = {"type": "string", "column": "id", "operator": "=", "value": row.id}
    assert names(filter=json.dumps([wanted])) == ["stage:writer"]
    for wrong in ({"filter": json.dumps([{**wanted, "column": "x"}])}, {"fields": "nothing"}):
        with pytest.raises(ApiError):
            get(**wrong)
    row = get(name="stage:writer", trace_id=trace_id, fields="metadata").data[0]
    assert (row.name, row.metadata and len(row.metadata["long"])) == (None, 200)
    server.omit = {"isRootObservation"}
    assert get(trace_id=trace_id).data[0].is_root_observation is None


def test_pages_and_lag(server: LangfuseServer, client: Langfuse) -> None:
    """A cursor leads through all rows once; spans are late when the server lags."""
    server.lag = 2
    traced(client)
    get = client.api.observations.get_many
    assert [len(get().data) for _ in range(3)] == [0, 0, 4]
    seen: list[str] = []
    cursor = None
    for _ in range(4):
        page = get(limit=1, cursor=cursor)
        seen += [row.id for row in page.data]
        cursor = page.meta.cursor
    assert cursor is None
    assert len(set(seen)) == 4


@pytest.mark.anyio
async def test_the_asynchronous_api(server: LangfuseServer, client: Langfuse) -> None:
    """The other half of the SDK gets the same answers."""
    trace_id = traced(client)
    api = client.async_api
    assert (await api.health.health()).status == "OK"
    assert (await api.projects.get()).data[0].id == "project-test"
    assert len((await api.observations.get_many(trace_id=trace_id, fields=ALL)).data) == 4
    assert (await api.prompts.get("graph%2Fwriter")).version == 1
    assert (await api.prompt_version.update("graph%2Fwriter", 1, new_labels=["x"])).labels[-1] == "x"
    dataset = await api.datasets.create(name="d")
    item = await api.dataset_items.create(dataset_name="d", id="i", input=1)
    assert (await api.datasets.get("d")).name == dataset.name
    assert (await api.dataset_items.list(dataset_name="d")).data[0].id == item.id
    score: Any = {"name": "n", "value": 1, "traceId": trace_id}
    await api.scores.create(request=[score])
    assert (await api.scores.get_many(trace_id=trace_id)).data[0].name == "n"
    assert (await api.experiments.list(from_start_time=EARLY)).data == []
    await close_async(client)


@pytest.mark.anyio
async def test_spans_of_pydantic_ai(server: LangfuseServer, client: Langfuse) -> None:
    """Agents, requests and tool calls of Pydantic AI get their types, texts and usage."""
    agent = Agent(TestModel(), name="writer", instructions="Write.")

    @agent.tool_plain
    def look(what: str) -> str:
        """Look it up."""
        return f"seen {what}"

    assert client._resources is not None  # pyright: ignore[reportPrivateUsage]
    settings = InstrumentationSettings(tracer_provider=client._resources.tracer_provider)  # pyright: ignore[reportPrivateUsage]
    await agent.run("go", capabilities=[Instrumentation(settings=settings)])
    client.flush()
    server.wait_for(lambda: len(server.spans) == 4)
    assert server.tree(server.spans[0].trace_id) == [
        ("invoke_agent writer", ["chat test", "execute_tool look", "chat test"])
    ]
    rows = client.api.observations.get_many(fields=ALL).data[::-1]
    assert [row.type for row in rows] == ["AGENT", "GENERATION", "TOOL", "GENERATION"]
    run, chat, tool, _ = rows
    assert (run.is_root_observation, run.usage_details, run.environment) == (True, {}, "dev")
    assert run.output == '{"look":"seen a"}'
    assert (chat.model, set(chat.usage_details or {})) == ("test", {"input", "output", "total"})
    assert (tool.name, tool.input, tool.output) == ("look", '{"what":"a"}', "seen a")
    assert look


def test_failures_on_demand(server: LangfuseServer, client: Langfuse) -> None:
    """Answers are forced, counted, replaced and delayed; nothing of a refused request is kept."""
    get = client.api.observations.get_many
    server.fail_next(1, 429, retry_after=3, path="observations")
    with pytest.raises(ApiError) as caught:
        get(request_options=ONCE)
    assert (caught.value.status_code, (caught.value.headers or {}).get("retry-after")) == (429, "3")
    assert get().data == []
    server.status, server.failing = 500, "projects"
    with pytest.raises(ApiError):
        client.api.projects.get(request_options=ONCE)
    assert client.api.health.health().status == "OK"
    server.status, server.nonsense = None, b"<html>"
    with pytest.raises(ApiError):
        get()
    server.nonsense, server.delay, server.delayed_paths = None, 30, ["projects"]
    assert get().data == []
    with pytest.raises(AssertionError, match="GET /api/public/v2/observations"):
        server.wait_for(lambda: server.spans, timeout=0)
    server.status, server.failing = 413, "otel"
    with client.start_as_current_observation(name="lost"):
        pass
    client.flush()
    assert server.asked("otel", "POST")
    assert server.spans == []


def test_wrong_keys_and_a_closed_port(server: LangfuseServer) -> None:
    """Keys are checked, and a closed server refuses."""
    with httpx.Client() as http:
        api = LangfuseAPI(base_url=server.url, username="pk-lf-test", password="wrong", httpx_client=http)
        with pytest.raises(UnauthorizedError):
            api.projects.get()
    assert httpx.get(f"{server.url}/api/public/nothing").status_code == 401
    keys = (server.public_key, server.secret_key)
    assert httpx.get(f"{server.url}/api/public/nothing", auth=keys).status_code == 404
    server.close()
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/api/public/health")


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


def test_attributes_have_the_names_that_langfuse_reads() -> None:
    """They are written down here, as a program that only sends does not load the package."""
    known = {value for name, value in vars(LangfuseOtelSpanAttributes).items() if not name.startswith("_")}
    ours = {value for name, value in vars(Names).items() if not name.startswith("_")}
    assert ours - known == {"langfuse.experiment"}  # the beginning of several


@pytest.mark.parametrize("run_id", ["r", "run-1", "\N{SNOWMAN}"])
def test_trace_ids_are_those_of_langfuse(run_id: str) -> None:
    """Who knows the id of a run finds its trace with Langfuse's own client."""
    assert trace_id(run_id) == Langfuse.create_trace_id(seed=run_id)


def test_loading_langfuse_leaves_the_hosts_logging_alone() -> None:
    """The package sets up the logger of httpx when it is imported; a program that reads runs keeps its own set-up."""
    text = f"""
import logging, sys
import stagegraph.tracing
from stagegraph.tracing.api import load_langfuse
assert "langfuse" not in sys.modules
logging.getLogger("httpx").setLevel({logging.DEBUG})
load_langfuse()
assert "langfuse" in sys.modules
logger = logging.getLogger("httpx")
assert (logger.level, logger.handlers) == ({logging.DEBUG}, []), (logger.level, logger.handlers)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
