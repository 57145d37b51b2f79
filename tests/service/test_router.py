"""A graph behind real HTTP: typed answers, problems, events, cancellation, answers, feedback and access."""

from __future__ import annotations

import asyncio
import base64
import enum
import json
import math
import uuid
from collections.abc import Iterator
from datetime import date
from typing import Annotated

import anyio
import httpx
import pytest
from fastapi import FastAPI, Header, HTTPException
from pydantic import BaseModel, ConfigDict, Field, computed_field
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.function import FunctionModel

from scripted import Tidy, deletes, fails
from serving import Gate, app_for, events, served
from stagegraph import Graph, Limits, Runner, Stage, current_call, fan_out, parse_event, step
from stagegraph.journal import MemoryJournal
from stagegraph.service import router

SECRET = "the-secret-of-a-prompt"


class Words(BaseModel):
    """What to shout."""

    words: list[str]


class Shout(BaseModel):
    """What was shouted."""

    text: str


@step
async def up(word: str) -> str:
    if word == "bad":
        raise ValueError(SECRET)
    if word == "wait":
        gate = current_call().deps
        assert isinstance(gate, Gate)
        await gate.wait()
    return word.upper()


class Shouter(Graph[Words, Shout]):
    """Shout words."""

    up = up

    async def flow(self, value: Words) -> Shout:
        return Shout(text=" ".join(await fan_out(self.up, value.words)))


@pytest.fixture(name="gate")
def _gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.opened.set()


def app_of(runner: Runner, gate: Gate | None = None, **options) -> FastAPI:
    return app_for(Shouter(), runner, deps=lambda: gate, **options, prefix="/shout")


@pytest.fixture(name="client")
def _client(gate: Gate) -> Iterator[httpx.Client]:
    with served(app_of(Runner(journal=MemoryJournal()), gate)) as client:
        yield client


def body(*words: str) -> dict[str, list[str]]:
    return {"words": list(words)}


def test_a_run_is_answered_with_its_typed_output(client: httpx.Client):
    """The body is the input itself; the answer is the run's id, status, output and usage, and stays readable."""
    answer = client.post("/shout/runs", json=body("a", "b"))
    assert answer.status_code == 200
    state = answer.json()
    assert state["status"] == "succeeded"
    assert Shout.model_validate(state["output"]) == Shout(text="A B")
    assert state["usage"] == {"requests": 0, "input_tokens": 0, "output_tokens": 0, "cost": "0"}
    assert client.get(f"/shout/runs/{state['run_id']}").json() == state


class Titled(BaseModel):
    text: str = Field(alias="theText")
    size: float = Field(math.inf, serialization_alias="theSize")

    @computed_field
    @property
    def length(self) -> int:
        return len(self.text)


@step
async def entitle(titled: Titled) -> Titled:
    return titled


def test_an_answer_is_what_its_schema_says():
    """Aliases and computed fields go out as the OpenAPI document has them, as JSON that everybody reads."""
    with served(app_for(entitle, Runner())) as client:
        answer = client.post("/runs", json={"theText": "ab"})
        shown = client.get("/graph").json()["output_schema"]["properties"]
    assert answer.json()["output"] == {"theText": "ab", "theSize": "Infinity", "length": 2}
    assert shown.keys() == answer.json()["output"].keys()


def test_a_run_may_be_left_to_itself(client: httpx.Client, gate: Gate):
    """`wait=false` answers 202 with where to look; the run is read while it goes on and when it has ended."""
    answer = client.post("/shout/runs?wait=false", json=body("wait"))
    assert answer.status_code == 202
    place = answer.headers["location"]
    assert place == f"/shout/runs/{answer.json()['run_id']}"
    assert client.get(place).json()["status"] == "running"
    gate.opened.set()
    with client.stream("GET", f"{place}/events") as stream:
        assert [event["event"] for event in events(stream)][-1] == "run_finished"
    assert client.get(place).json()["output"] == {"text": "WAIT"}


@pytest.mark.parametrize(
    ("content", "status"),
    [
        (b'{"words": 3}', 422),
        (b"{", 422),
        (b"", 422),
        (b"\xff\xfe", 422),
        (b"[" * 50_000, 422),
        (b'{"words": ["\\ud800"]}', 422),
        (b'{"words": ["' + b"x" * 200_000 + b'"]}', 413),
    ],
)
def test_a_bad_body_is_a_problem(gate: Gate, content: bytes, status: int):
    """Whatever is sent, the answer is problem details, and no run begins."""
    runner = Runner(journal=MemoryJournal())
    with served(app_of(runner, gate, max_body=100_000)) as client:
        answer = client.post("/shout/runs", content=content, headers={"content-type": "application/json"})
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/problem+json"
        assert answer.json()["status"] == status

        def chunks() -> Iterator[bytes]:
            yield from (content[i : i + 4096] for i in range(0, len(content), 4096))

        answer = client.post("/shout/runs", content=chunks(), headers={"content-type": "application/json"})
        assert answer.status_code == status


def test_a_body_of_another_kind_is_refused(client: httpx.Client):
    """Forms, which any web page could send here from somebody's browser, are no JSON; nor is what says no kind."""
    assert client.post("/shout/runs", data={"words": "a"}).status_code == 415
    unsaid = client.post("/shout/runs", content=b'{"words": ["a"]}')
    assert (unsaid.status_code, unsaid.json()["type"].rpartition(":")[2]) == (415, "media-type")
    assert client.post("/shout/runs/x/cancel").status_code == 404


class Colour(enum.Enum):
    RED = "red"


class Exact(BaseModel):
    model_config = ConfigDict(strict=True)

    day: date
    colour: Colour
    pair: tuple[int, int]
    number: uuid.UUID


class Keep(Graph[Exact, Exact]):
    async def flow(self, value: Exact) -> Exact:
        return value


class Weigh(Graph[bytes, int]):
    async def flow(self, value: bytes) -> int:
        return len(value)


def test_a_body_is_read_as_json():
    """A strict model takes the JSON of its types, and its output is an input again; bytes are base64 both ways."""
    runner = Runner()
    app = app_for(Keep(), runner, prefix="/keep")
    app.include_router(router(Weigh(), runner), prefix="/weigh")
    sent = {"day": "2026-01-02", "colour": "red", "pair": [1, 2], "number": str(uuid.UUID(int=7))}
    with served(app) as client:
        for _ in range(2):
            answer = client.post("/keep/runs", json=sent)
            assert answer.status_code == 200, answer.text
            assert answer.json()["output"] == sent
        refused = client.post("/keep/runs", json={**sent, "pair": [1, "2"]})
        assert [error["pointer"] for error in refused.json()["errors"]] == ["body/pair/1"]
        schema = client.get("/openapi.json").json()["paths"]["/keep/runs"]["post"]["requestBody"]["content"]
        assert schema["application/json"]["schema"]["$ref"].endswith("/Exact")
        assert client.post("/weigh/runs", json=base64.b64encode(b"\xff\x00").decode()).json()["output"] == 2


def test_a_validation_problem_says_where(client: httpx.Client):
    """Each error points into the request and does not repeat what was sent."""
    answer = client.post("/shout/runs", json={"words": [{SECRET: 1}]})
    assert answer.json()["errors"] == [{"pointer": "body/words/0", "detail": "Input should be a valid string"}]
    assert SECRET not in answer.text


def test_nobody_is_told_what_an_error_said(client: httpx.Client):
    """A failed run is a 500 that says where; nothing repeats the message, but for `errors=True` among friends."""
    answer = client.post("/shout/runs", json=body("a", "bad"))
    assert answer.status_code == 500
    problem = answer.json()
    assert problem["detail"] == "the run failed at `up[1]`"
    place = f"/shout/runs/{problem['run_id']}"
    state = client.get(place)
    assert (state.json()["status"], state.json()["failed_at"]) == ("failed", "up[1]")
    stream = client.get(f"{place}/events")
    assert '"status":"failed"' in stream.text
    for seen in (answer, state, stream):
        assert SECRET not in seen.text
        assert "Traceback" not in seen.text
    with served(app_of(Runner(), errors=True)) as friends:
        assert SECRET in friends.post("/shout/runs/stream", json=body("bad")).text


class Asks(Graph[str, str]):
    """One stage."""

    ask = Stage(str, Agent(instructions=SECRET))

    async def flow(self, text: str) -> str:
        return await self.ask(text)


@step
async def sleeps(text: str) -> str:
    await anyio.sleep_forever()
    return text


class Sleeps(Graph[str, str]):
    """Never ends."""

    sleeps = sleeps

    async def flow(self, text: str) -> str:
        return await self.sleeps(text)


@pytest.mark.parametrize(
    ("graph", "runner", "status", "kind"),
    [
        (Asks(), Runner(fails(ModelHTTPError(529, "m", {"error": SECRET}))), 502, "model"),
        (Asks(), Runner(fails(TimeoutError(SECRET))), 504, "timeout"),
        (Asks(), Runner(fails(), limits=Limits(requests=0)), 500, "limit"),
        (Sleeps(), Runner(limits=Limits(seconds=0.05)), 504, "timeout"),
        (Asks(), Runner(), 500, "failed"),
    ],
)
def test_each_failure_has_a_fitting_status(graph: Graph[str, str], runner: Runner, status: int, kind: str):
    """A model's failure is a bad gateway, too little time a timeout, the rest our own."""
    with served(app_for(graph, runner)) as client:
        answer = client.post("/runs", json="hello")
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (status, kind)
        assert SECRET not in answer.text


def test_unknown_runs_are_not_found(client: httpx.Client):
    """Whatever one asks about a run that is not there, the answer is 404; an id that can be none is 422."""
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
        answer = client.request(method, f"/shout/runs/nope{path}")
        assert (answer.status_code, answer.json()["type"]) == (404, "urn:stagegraph:problem:unknown-run")
    assert client.post("/shout/runs/nope/feedback", json={"name": "x", "value": 1}).status_code == 404
    assert client.post("/shout/runs/nope/answers", json={"answers": {"x": True}}).status_code == 404
    assert client.get("/shout/runs/%3Cscript%3E").status_code == 422


def test_a_stream_that_was_cut_is_resumed(client: httpx.Client, gate: Gate):
    """With `Last-Event-ID` a client gets what it missed and nothing twice; the run does not notice."""
    with client.stream("POST", "/shout/runs/stream", json=body("a", "wait")) as stream:
        run_id = stream.headers["x-run-id"]
        first = [event for event, _ in zip(events(stream), range(3), strict=False)]
    gate.opened.set()
    last = {"Last-Event-ID": first[-1]["id"]}
    with client.stream("GET", f"/shout/runs/{run_id}/events", headers=last) as stream:
        rest = list(events(stream))
    seen = [parse_event(event["data"]).seq for event in [*first, *rest]]
    assert seen == list(range(len(seen)))
    finished = parse_event(rest[-1]["data"])
    assert finished.type == rest[-1]["event"] == "run_finished"
    assert finished.output == {"text": "A WAIT"}


def test_silence_is_filled_with_heartbeats(gate: Gate):
    """A stream on which nothing happens says that it is still there."""
    with served(app_of(Runner(), gate, heartbeat=0.02)) as client:
        with client.stream("POST", "/shout/runs/stream", json=body("wait")) as stream:
            for line in stream.iter_lines():
                if line == ": still here":
                    break
        gate.opened.set()


def test_a_reader_that_fell_behind_is_told(monkeypatch: pytest.MonkeyPatch, gate: Gate):
    """Events are kept in a bounded buffer; what is gone from it is counted, once for a reader that comes back."""
    monkeypatch.setattr("stagegraph.runner.runner._BUFFERED_EVENTS", 4)
    with served(app_of(Runner(), gate)) as client:
        run_id = client.post("/shout/runs", json=body("a", "b", "c")).json()["run_id"]
        place = f"/shout/runs/{run_id}/events"
        sent = list(events(client.get(place)))
        assert list(events(client.get(place, headers={"Last-Event-ID": sent[0]["id"]}))) == sent[1:]
    seen = [parse_event(event["data"]) for event in sent]
    assert seen[0].type == "events_dropped"
    assert len(seen) == 5
    assert seen[0].count == seen[1].seq


@pytest.mark.parametrize("recorded", [False, True])
def test_ended_runs_are_remembered_by_their_size(gate: Gate, recorded: bool):
    """Small ones by number; a large one takes the room of many. Without a journal, the newest is kept in any case."""
    runner = Runner(journal=MemoryJournal() if recorded else None, tracing=None)
    app = app_of(runner, gate, remember_bytes=200_000)
    with served(app) as client:

        def ended(*words: str) -> str:
            return client.post("/shout/runs", json=body(*words)).json()["run_id"]

        small = [ended("a") for _ in range(10)]
        assert {client.get(f"/shout/runs/{run_id}").status_code for run_id in small} == {200}
        large = ended("b" * 150_000)
        while not recorded and client.get(f"/shout/runs/{small[0]}").status_code == 200:
            pass  # it is weighed beside the event loop
        assert client.get(f"/shout/runs/{large}").status_code == 200
        assert {client.get(f"/shout/runs/{run_id}").status_code for run_id in small} == {200 if recorded else 404}
        newest = ended("c")
        assert client.get(f"/shout/runs/{newest}").status_code == 200


@pytest.mark.parametrize("how", ["stream", "wait"])
@pytest.mark.parametrize("choice", ["continue", "cancel"])
def test_a_client_that_leaves(gate: Gate, how: str, choice: str):
    """The run goes on or is cancelled, as the service chose."""
    runner = Runner(journal=MemoryJournal())
    with served(app_of(runner, gate, on_disconnect=choice)) as client:

        async def leave() -> None:
            async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as leaving:
                path = "/shout/runs/stream" if how == "stream" else "/shout/runs"
                asking = asyncio.create_task(leaving.post(path, json=body("wait"), timeout=60))
                assert await asyncio.to_thread(gate.entered.acquire, timeout=30)
                asking.cancel()
                await asyncio.wait([asking])

        asyncio.run(leave())
        if choice == "cancel":
            assert gate.cancelled.wait(30)
        gate.opened.set()
    rows = asyncio.run(_rows(runner))
    assert [row.status for row in rows] == ["cancelled" if choice == "cancel" else "succeeded"]


async def _rows(runner: Runner):
    from stagegraph.journal import RunFilter

    assert runner.journal is not None
    return await runner.journal.runs(RunFilter())


def test_a_run_is_cancelled(client: httpx.Client, gate: Gate):
    """It ends at once, its stream says so, who waits for it is told, and cancelling again changes nothing."""
    run_id = client.post("/shout/runs?wait=false", json=body("wait")).json()["run_id"]
    assert gate.entered.acquire(timeout=30)
    assert client.post(f"/shout/runs/{run_id}/cancel").json()["status"] == "cancelled"
    assert gate.cancelled.is_set()
    last = list(events(client.get(f"/shout/runs/{run_id}/events")))[-1]
    assert json.loads(last["data"])["status"] == "cancelled"
    assert client.post(f"/shout/runs/{run_id}/cancel").json()["status"] == "cancelled"


@pytest.mark.parametrize(
    ("given", "said"),
    [(True, "old.log is gone"), ({"approved": False, "message": "keep it"}, "keep it"), (False, "denied")],
)
def test_a_question_is_answered(given: object, said: str):
    """A suspended run says what it asks, goes on with the answer, and asks only once; cancelled it asks no more."""
    runner = Runner(FunctionModel(deletes), journal=MemoryJournal())
    with served(app_for(Tidy(), runner)) as client:
        asked = client.post("/runs", json="go")
        assert asked.status_code == 202
        place = f"/runs/{asked.json()['run_id']}"
        before = [event["id"] for event in events(client.get(f"{place}/events"))]
        [question] = client.get(place).json()["pending"]
        assert (question["kind"], question["tool"], question["args"]) == ("approval", "delete", {"path": "old.log"})
        for wrong in ({"nobody": True}, {question["id"]: "perhaps"}):
            refused = client.post(f"{place}/answers", json={"answers": wrong})
            assert (refused.status_code, refused.json()["status"]) == (422, 422)
        done = client.post(f"{place}/answers", json={"answers": {question["id"]: given}})
        assert done.status_code == 200
        assert said in done.json()["output"]
        assert client.get(place).json()["status"] == "succeeded"
        assert client.post(f"{place}/answers", json={"answers": {question["id"]: given}}).status_code == 409
        new = [event["id"] for event in events(client.get(f"{place}/events", headers={"Last-Event-ID": before[-1]}))]
        assert int(new[0]) > int(before[-1])
        ids = [event["id"] for event in events(client.get(f"{place}/events", headers={"Last-Event-ID": new[1]}))]
        assert ids == new[2:]
        place = f"/runs/{client.post('/runs', json='go').json()['run_id']}"  # and one that is given up
        [question] = client.get(place).json()["pending"]
        assert client.post(f"{place}/cancel").json()["status"] == "cancelled"
        assert client.get(place).json()["status"] == "cancelled"
        assert client.post(f"{place}/answers", json={"answers": {question["id"]: given}}).status_code == 409


def test_feedback_is_kept_with_the_run(gate: Gate):
    """For the whole run or for one call; a call that is not there, or a service without a record, says so."""
    runner = Runner(journal=MemoryJournal())
    with served(app_of(runner, gate)) as client:
        run_id = client.post("/shout/runs", json=body("a")).json()["run_id"]
        place = f"/shout/runs/{run_id}/feedback"
        assert client.post(place, json={"name": "helpful", "value": True}).status_code == 204
        given = {"name": "accuracy", "value": 0.5, "key": "up[0]", "comment": "so so"}
        assert client.post(place, json=given).status_code == 204
        assert client.post(place, json={**given, "key": "up[7]"}).json()["type"].endswith("unknown-call")
        bad = client.post(place, content=b'{"name": "x", "value": NaN}', headers={"content-type": "application/json"})
        assert bad.status_code == 422
    assert runner.journal is not None
    rows = asyncio.run(runner.journal.feedback(run_id))
    assert [(row.name, row.key, row.value, row.comment) for row in rows] == [
        ("helpful", None, "true", None),
        ("accuracy", "up[0]", "0.5", "so so"),
    ]
    with served(app_of(Runner(tracing=None), gate)) as client:
        run_id = client.post("/shout/runs", json=body("a")).json()["run_id"]
        answer = client.post(f"/shout/runs/{run_id}/feedback", json={"name": "helpful", "value": True})
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (409, "no-journal")


def user(authorization: Annotated[str | None, Header()] = None) -> str:
    if authorization is None:
        raise HTTPException(401, "say who you are", {"WWW-Authenticate": "Bearer"})
    return authorization


@pytest.mark.parametrize("remember", [0, 100])
def test_another_users_run_is_as_good_as_none(gate: Gate, remember: int):
    """Reading, watching, cancelling, answering and scoring are for the user who started the run."""
    runner = Runner(journal=MemoryJournal())
    with served(app_of(runner, gate, user=user, session=lambda: "s", remember=remember)) as client:
        anna, ben = {"Authorization": "anna"}, {"Authorization": "ben"}
        nobody = client.post("/shout/runs", json=body("a"))
        assert (nobody.status_code, nobody.headers["www-authenticate"]) == (401, "Bearer")
        run_id = client.post("/shout/runs", json=body("a"), headers=anna).json()["run_id"]
        going = client.post("/shout/runs?wait=false", json=body("wait"), headers=anna).json()["run_id"]
        for known in (run_id, going):
            place = f"/shout/runs/{known}"
            assert client.get(place, headers=anna).status_code == 200
            assert client.get(place).status_code == 401
            for method, path, json_body in (
                ("GET", "", None),
                ("GET", "/events", None),
                ("POST", "/cancel", None),
                ("POST", "/answers", {"answers": {"x": True}}),
                ("POST", "/feedback", {"name": "x", "value": 1}),
            ):
                answer = client.request(method, place + path, json=json_body, headers=ben)
                assert answer.status_code == 404, (method, path)
                assert answer.json()["detail"] == f"there is no run {known} that you may see"
        assert client.get("/shout/graph").status_code == 401
        assert client.get("/shout/health/ready").status_code == 200
        gate.opened.set()
    row = asyncio.run(_rows(runner))[0]
    assert json.loads(row.labels)["user_id"] == "anna"
    assert json.loads(row.labels)["session_id"] == "s"


def test_a_policy_may_let_others_in(gate: Gate):
    """Who may see a run is a function, which may wait for an answer elsewhere."""

    async def policy(who: str | None, run) -> bool:
        return who in (run.user_id, "admin")

    with served(app_of(Runner(), gate, user=user, policy=policy)) as client:
        run_id = client.post("/shout/runs", json=body("a"), headers={"Authorization": "anna"}).json()["run_id"]
        statuses = [
            client.get(f"/shout/runs/{run_id}", headers={"Authorization": name}).status_code
            for name in ("anna", "admin", "ben")
        ]
    assert statuses == [200, 200, 404]


def test_several_graphs_in_one_app(gate: Gate):
    """Each has its own types in the document and its own runs."""
    runner = Runner(fails(), journal=MemoryJournal())
    app = app_of(runner, gate)
    app.include_router(router(Asks(), runner), prefix="/ask")
    with served(app) as client:
        run_id = client.post("/shout/runs", json=body("a")).json()["run_id"]
        assert client.post("/ask/runs", json="x").json()["output"] == "done"
        assert client.get(f"/ask/runs/{run_id}").status_code == 404
        document = client.get("/openapi.json").json()
        post = document["paths"]["/shout/runs"]["post"]
        assert post["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/Words")
        assert post["responses"]["200"]["content"]["application/json"]["schema"]["$ref"].endswith("/ShouterRun")
        output = document["components"]["schemas"]["ShouterRun"]["properties"]["output"]
        assert output["anyOf"][0]["$ref"].endswith("/Shout")
        declared = client.get("/shout/graph").json()
    assert [node["path"] for node in declared["nodes"]] == ["", "up"]
    assert declared["mermaid"].startswith("flowchart TD")
    assert declared["input_schema"]["title"] == "Words"


def test_too_many_runs_are_told_when_to_come_back(gate: Gate):
    """Over `max_runs` and `max_queued` the answer is 429 with `Retry-After`; who waited in line is answered."""
    runner = Runner(journal=MemoryJournal(), max_runs=2, max_queued=1)
    with served(app_of(runner, gate)) as client:
        for _ in range(2):
            client.post("/shout/runs?wait=false", json=body("wait"))
            assert gate.entered.acquire(timeout=30)
        queued = client.post("/shout/runs?wait=false", json=body("b")).json()["run_id"]
        answer = client.post("/shout/runs", json=body("c"))
        assert (answer.status_code, answer.json()["type"].rpartition(":")[2]) == (429, "busy")
        assert int(answer.headers["retry-after"]) >= 1
        assert client.post("/shout/runs/stream", json=body("c")).status_code == 429
        assert client.get(f"/shout/runs/{queued}").json()["status"] == "running"
        gate.opened.set()
        assert list(events(client.get(f"/shout/runs/{queued}/events")))[-1]["event"] == "run_finished"
        assert client.get(f"/shout/runs/{queued}").json()["output"] == {"text": "B"}
        assert client.post("/shout/runs", json=body("c")).status_code == 200
