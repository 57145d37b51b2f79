"""A repeated POST with an `Idempotency-Key` is the same run: at once, later, after a restart, and on another worker."""

from __future__ import annotations

import asyncio
import json
import signal
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from fastapi import Header
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.function import FunctionModel

from serving import Gate, Worker, app_for, events, served
from stagegraph import Graph, Limits, Runner, Stage, step
from stagegraph.journal import Journal, MemoryJournal, SqliteJournal
from test_life import effects

gate = Gate()
done: Counter[str] = Counter()


async def unavailable(*_: object) -> None:
    raise ModelHTTPError(503, "m")


@step
async def place(text: str) -> str:
    done[text] += 1
    if text == "wait":
        await gate.wait()
    if text == "bad":
        raise ValueError(text)
    return text.upper()


class Order(Graph[str, str]):
    """Place an order."""

    place = place
    ask = Stage(str, Agent(FunctionModel(unavailable), retries=0))

    async def flow(self, text: str) -> str:
        return await (self.ask(text) if text == "ask" else self.place(text))


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    done.clear()
    gate.opened.clear()
    yield
    gate.opened.set()


def user(x_user: Annotated[str | None, Header()] = None) -> str | None:
    return x_user


@contextmanager
def serving_orders(journal: Journal | None, **options) -> Iterator[httpx.Client]:
    runner = Runner(journal=journal, tracing=None)
    app = app_for(Order(), runner, user=user, **options)
    with served(app) as client:
        yield client


def post(client: httpx.Client, text: object, key: str | bytes = "k", path: str = "/runs", **headers: str):
    return client.post(path, json=text, headers={"Idempotency-Key": key, **headers})


def test_a_repeated_request_is_the_same_run():
    """Without a journal as long as it is remembered; another body, user or key is another matter."""
    with serving_orders(None) as client:
        first = post(client, "cup")
        assert (first.status_code, first.json()["output"]) == (200, "CUP")
        assert post(client, "cup").json() == first.json()
        spaced = client.post(
            "/runs", content=b' "cup"\n', headers={"Idempotency-Key": "k", "Content-Type": "application/json"}
        )
        assert spaced.json() == first.json()
        other = post(client, "pot")
        assert (other.status_code, other.json()["type"]) == (409, "urn:stagegraph:problem:idempotency-key")
        for headers in ({"key": "k2"}, {"X-User": "anna"}, {"X-User": "bert"}):
            assert post(client, "cup", **headers).json()["run_id"] != first.json()["run_id"]
        assert client.post("/runs", json="cup").json()["run_id"] != first.json()["run_id"]
        assert done == {"cup": 5}
        streamed = list(events(post(client, "cup", path="/runs/stream")))
        assert json.loads(streamed[-1]["data"])["run_id"] == first.json()["run_id"]
        rest = post(client, "cup", path="/runs/stream", **{"Last-Event-ID": streamed[1]["id"]})
        assert list(events(rest)) == streamed[2:]
        assert done == {"cup": 5}


@pytest.mark.parametrize("key", ["", "x" * 256, b"\xff", "ö".encode()])
def test_a_key_has_a_form(key: str | bytes):
    """Anything else begins nothing."""
    with serving_orders(None) as client:
        answer = post(client, "cup", key)
    assert (answer.status_code, answer.json()["type"]) == (422, "urn:stagegraph:problem:invalid")
    assert not done


@pytest.mark.parametrize("key", ["../../etc/passwd", "x" * 255, '"; DROP TABLE runs; --', "a b", "%00", "{}[]"])
def test_a_key_is_not_told(key: str, tmp_path: Path):
    """It is neither the run's id nor in any file: only a hash of it is kept."""
    with serving_orders(SqliteJournal(tmp_path / "runs.db")) as client:
        run_id = post(client, "cup", key).json()["run_id"]
        assert post(client, "cup", key).json()["run_id"] == run_id
    assert run_id.isalnum()
    assert not [file for file in tmp_path.iterdir() if key.encode() in file.read_bytes()]
    assert done == {"cup": 1}


@pytest.mark.parametrize(
    ("text", "status"), [("cup", 200), ("bad", 500), ("ask", 502)], ids=["succeeded", "failed", "a model failed"]
)
@pytest.mark.parametrize("remember", [100, 0])
def test_the_answer_is_the_same_after_a_restart(text: str, status: int, remember: int, tmp_path: Path):
    """Also that of a failure: what was tried is not tried again under its key."""

    def ask(body: str) -> tuple[int, dict[str, object]]:
        with serving_orders(SqliteJournal(tmp_path / "runs.db"), remember=remember) as client:
            answers = [post(client, body) for _ in range(2)]
        first, second = ((one.status_code, {**one.json(), **untold}) for one in answers)
        assert first == second
        return first

    untold = dict.fromkeys(("started", "duration"))
    first = ask(text)
    assert first == ask(text)
    assert first[0] == status
    assert done.total() <= 1
    assert ask("another")[0] == 409


def test_limits_are_told_after_a_restart():
    """A repeated request has the status that the first one had."""
    journal = MemoryJournal()
    with serving_orders(journal) as client:
        post(client, "cup")
    runner = Runner(journal=journal, limits=Limits(seconds=0.001), tracing=None)
    app = app_for(Order(), runner, user=user)
    with served(app) as client:
        assert post(client, "cup").status_code == 200
        assert post(client, "wait", "other").status_code == 504
    with serving_orders(journal) as client:
        again = post(client, "wait", "other")
        assert (again.status_code, again.json()["type"].rpartition(":")[2]) == (504, "timeout")


def test_many_at_once_are_one_run():
    """Each of them is answered, whether it waits or not."""

    async def both(client: httpx.Client) -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=client.base_url, trust_env=False, timeout=30) as many:
            asking = [
                asyncio.create_task(many.post(path, json="wait", headers={"Idempotency-Key": "k"}))
                for path in ("/runs", "/runs?wait=false", "/runs/stream") * 8
            ]
            await asyncio.wait(asking[1::3])
            gate.opened.set()
            return await asyncio.gather(*asking)

    with serving_orders(MemoryJournal()) as client:
        answers = asyncio.run(both(client))
    assert Counter(answer.status_code for answer in answers) == {200: 16, 202: 8}
    ids = {answer.headers.get("x-run-id") or answer.json()["run_id"] for answer in answers}
    assert len(ids) == 1
    assert done == {"wait": 1}


def test_a_client_that_left_finds_its_run_again():
    """Where runs end with their clients: one that gave a key may come back."""

    async def leave(client: httpx.Client) -> None:
        async with httpx.AsyncClient(base_url=client.base_url, trust_env=False) as leaving:
            asking = asyncio.create_task(leaving.post("/runs", json="wait", headers={"Idempotency-Key": "k"}))
            await asyncio.to_thread(gate.entered.acquire)
            asking.cancel()
            await asyncio.wait([asking])

    with serving_orders(MemoryJournal(), on_disconnect="cancel") as client:
        asyncio.run(leave(client))
        gate.opened.set()
        assert post(client, "wait").json()["output"] == "WAIT"
    assert done == {"wait": 1}


def in_threads(*work: Callable[[], httpx.Response]) -> list[httpx.Response]:
    found: list[httpx.Response] = []
    threads = [threading.Thread(target=lambda one=one: found.append(one())) for one in work]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    return found


def test_two_workers_begin_one_run(tmp_path: Path):
    """Whichever is first; the other waits for the end with its client, and answers the same after a kill."""
    with (
        Worker(tmp_path, "30") as holder,
        Worker(tmp_path, "30") as other,
        holder.client() as one,
        other.client() as two,
    ):
        clients = [one, two] * 4
        begun = in_threads(*(lambda client=client: post(client, 1, path="/runs?wait=false") for client in clients))
        assert {answer.status_code for answer in begun} == {202}
        [run_id] = {answer.json()["run_id"] for answer in begun}
        assert {answer.headers["location"] for answer in begun} == {f"/runs/{run_id}"}
        (tmp_path / "gate").touch()
        ended = in_threads(*(lambda client=client: post(client, 1) for client in clients))
        assert {json.dumps(answer.json()["output"]) for answer in ended} == {"[4, 6, 8]"}
        assert post(two, 2).status_code == post(one, 2).status_code == 409
        holder.end(signal.SIGKILL)
        assert post(two, 1).json()["run_id"] == run_id
    assert set(effects(tmp_path).values()) == {1}
    assert len(effects(tmp_path)) == 6
