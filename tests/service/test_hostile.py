"""Requests that nobody means well with: each is answered with a problem, or the connection ends; nothing is left."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from pydantic import BaseModel
from pydantic_ai.models.function import FunctionModel

import scripted
from scripted import deletes, others
from serving import Gate, app_for, events, served
from stagegraph import Graph, Runner, Stage, fan_out, step
from stagegraph.journal import MemoryJournal

SECRET = "Tidy up."


gate = Gate()


@step
async def wait(text: str) -> str:
    if text == "wait":
        await gate.wait()
    return text


class Tidy(Graph[str, str]):
    """Wait or ask."""

    wait = wait
    clean = Stage(str, scripted.careful)

    async def flow(self, text: str) -> str:
        text = await self.wait(text)
        return await self.clean(text) if text == "ask" else text


@pytest.fixture(name="client")
def _client() -> Iterator[httpx.Client]:
    gate.opened.clear()
    runner = Runner(FunctionModel(deletes), journal=MemoryJournal(), tracing=None)
    app = app_for(Tidy(), runner, max_body=100_000, prefix="/tidy")

    @app.get("/left")
    async def left() -> list[str]:
        return sorted(task.get_name() for task in others() if "stagegraph run" in task.get_name())

    with served(app) as client:
        yield client
        gate.opened.set()


def problem(answer: httpx.Response, status: int, kind: str) -> dict[str, Any]:
    assert answer.headers["content-type"] == "application/problem+json", answer.text
    told = answer.json()
    assert (answer.status_code, told["status"], told["type"].rpartition(":")[2]) == (status, status, kind)
    for hidden in (SECRET, "Traceback", "/src/"):
        assert hidden not in answer.text
    return told


def raw(client: httpx.Client, *pieces: bytes) -> bytes:
    """What the server sends until it closes, or until it answers, to bytes that no client would send."""
    url = client.base_url
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        with contextlib.suppress(OSError):  # it may have closed already
            for piece in pieces:
                connection.sendall(piece)
            connection.shutdown(socket.SHUT_WR)
        found = b""
        with contextlib.suppress(OSError):
            while piece := connection.recv(65_536):
                found += piece
        return found


def test_bodies(client: httpx.Client):
    """Deep, odd, oversized, compressed or without an end."""
    as_json = {"content-type": "application/json"}

    def post(content: bytes, path: str = "/tidy/runs", **headers: str) -> httpx.Response:
        return client.post(path, content=content, headers={**as_json, **headers})

    problem(post(b'{"a":' * 15_000), 422, "invalid")
    problem(post(b"[" * 30_000 + b"]" * 30_000), 422, "invalid")
    problem(post(b'"\xed\xa0\x80"'), 422, "invalid")
    problem(post(b"\x1f\x8b\x08\x00junk", **{"content-encoding": "gzip"}), 422, "invalid")
    problem(post(b'"a"', **{"content-type": "text/plain"}), 415, "media-type")
    problem(post(b'"' + b"a" * 200_000 + b'"'), 413, "too-large")
    problem(post(b"1" * 5_000), 422, "invalid")
    assert post('"🦊\\u0000\u202e"'.encode()).json()["output"] == "🦊\x00\u202e"


def test_a_chunked_body_without_an_end(client: httpx.Client):
    """It is not read to its end: the answer comes as soon as it is too long."""
    head = (
        b"POST /tidy/runs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
    )
    answer = raw(client, head, *[b"8000\r\n" + b"1" * 0x8000 + b"\r\n"] * 64)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"application/problem+json" in answer


def test_a_body_that_does_not_come():
    """Half of one, or one that comes a byte at a time, is waited for only so long; then the connection ends."""
    app = app_for(Tidy(), Runner(tracing=None), body_seconds=0.2)
    head = b"POST /runs HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: 20\r\n\r\n"
    with served(app) as client:
        url = client.base_url
        with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
            connection.sendall(head)
            found = b""
            for _ in range(200):
                connection.sendall(b'"'[: not found])
                connection.settimeout(0.05)
                with contextlib.suppress(TimeoutError):
                    piece = connection.recv(65_536)
                    found += piece
                    if not piece:
                        break
        assert found.startswith(b"HTTP/1.1 408 ")
        assert b"problem:timeout" in found
        assert client.post("/runs", json="a").json()["output"] == "a"


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        *[(kind, 200) for kind in ("application/json", "APPLICATION/JSON; charset=utf-8", "application/ld+json")],
        *[(kind, 415) for kind in ("text/plain+json", "text/json", "json", "application/json+x", "application/x-json")],
        *[(kind, 415) for kind in ("multipart/form-data+json", "text/plain;application/json", "application/+json")],
    ],
)
def test_media_types(client: httpx.Client, content_type: str, status: int):
    """A browser sends some kinds of text to any site without asking."""
    answer = client.post("/tidy/runs", content=b'"a"', headers={"content-type": content_type})
    assert answer.status_code == status


@pytest.mark.parametrize(
    "origin",
    [
        {"sec-fetch-site": "cross-site", "origin": "https://evil.example"},
        {"sec-fetch-site": "same-site"},
        {"origin": "https://evil.example"},
        {"origin": "null"},
    ],
)
def test_the_page_of_another_site_changes_nothing(client: httpx.Client, origin: dict[str, str]):
    """Neither a form nor a script that does not ask first: what changes something takes JSON from them."""
    run_id = client.post("/tidy/runs?wait=false", json="wait").json()["run_id"]
    cancel = f"/tidy/runs/{run_id}/cancel"
    for more in ({}, {"data": {"a": "b"}}, {"content": b"x", "headers": {"content-type": "text/plain"}}):
        headers = {**origin, **more.pop("headers", {})}
        refused = client.post(cancel, headers=headers, **more)
        problem(refused, *((415, "media-type") if more else (403, "cross-origin")))
    assert client.get(f"/tidy/runs/{run_id}", headers=origin).json()["status"] == "running"
    assert client.post(cancel, json={}, headers=origin).status_code == 200  # the app's CORS has allowed it


@pytest.mark.parametrize("own", [{"sec-fetch-site": "same-origin"}, {"sec-fetch-site": "none"}, {}])
def test_its_own_page_and_programs_may_cancel(client: httpx.Client, own: dict[str, str]):
    """Without a body there is nothing to declare."""
    run_id = client.post("/tidy/runs?wait=false", json="wait").json()["run_id"]
    origin = {"origin": str(client.base_url).rstrip("/")} if own else {}
    assert client.post(f"/tidy/runs/{run_id}/cancel", headers={**own, **origin}).json()["status"] == "cancelled"


HALF = "half \ud83e of a fox"


@step
async def halve(text: str) -> str:
    return HALF


class Halved(BaseModel):
    texts: dict[str, list[str]]


class Halves(Graph[str, Halved]):
    """Texts as a model sends them when its answer was cut."""

    halve = halve

    async def flow(self, text: str) -> Halved:
        [found] = await fan_out(self.halve, [text], key=lambda _: HALF)
        if text == "bad":
            raise ValueError(HALF)
        return Halved(texts={found: [found]})


@pytest.mark.parametrize("text", ["good", "bad"])
@pytest.mark.parametrize("remember", [100, 0])
def test_half_a_character_is_served(text: str, remember: int):
    """It is replaced, wherever it is: in an output, a key, or an error."""
    runner = Runner(journal=MemoryJournal(), tracing=None)
    app = app_for(Halves(), runner, remember=remember, errors=True)
    with served(app) as client:
        run_id = client.post("/runs?wait=false", json=text).json()["run_id"]
        seen = list(events(client.get(f"/runs/{run_id}/events")))
        state = client.get(f"/runs/{run_id}")
    assert seen[-1]["event"] == "run_finished"
    assert state.status_code == 200
    state.text.encode()
    if text == "good":
        [[key, [value]]] = state.json()["output"]["texts"].items()
        for one in (key, value):
            assert one.encode()
            assert one.startswith("half ")


def test_headers(client: httpx.Client):
    """Too many bytes of them end the connection; garbage in those we read is as good as nothing."""
    huge = raw(client, b"GET /tidy/graph HTTP/1.1\r\nhost: x\r\nx-a: " + b"a" * 300_000 + b"\r\n\r\n")
    assert huge == b"" or huge.startswith(b"HTTP/1.1 4")
    run_id = client.post("/tidy/runs", json="a").json()["run_id"]
    for last in (b"\xff\xfe", b"-1", b"1e9", b"0x1", b"1-0", b"--", b"a" * 5_000, "\u0661".encode(), b"0, 1"):
        answer = client.get(f"/tidy/runs/{run_id}/events", headers={b"last-event-id": last})
        assert next(events(answer))["event"] == "run_started", last
        assert answer.text.count("event: run_finished") == 1
    problem(client.get(f"/tidy/runs/{run_id}/events?after=many"), 422, "invalid")


def test_another_method(client: httpx.Client):
    """Is a problem like every error, and says which methods the path has."""
    answer = client.delete("/tidy/runs")
    problem(answer, 405, "method")
    assert answer.headers["allow"] == "GET, POST"


@pytest.mark.parametrize("run_id", ["a%2Fb", "..%2f..%2fetc", "%00", "a" * 129, "%F0%9F%A6%8A", "a%0d%0ax: y", "<b>"])
def test_run_ids(client: httpx.Client, run_id: str):
    """What can be no id is refused, and not repeated."""
    for method, path in (("GET", ""), ("GET", "/events"), ("POST", "/cancel")):
        answer = client.request(method, f"/tidy/runs/{run_id}{path}")
        assert answer.status_code in {404, 405, 422}
        assert "<b>" not in answer.text
        assert "x" not in answer.headers


def test_answers(client: httpx.Client):
    """Twice at once, to a run that is over, to one that is going on, and of the wrong kind: only one counts."""
    place = f"/tidy/runs/{client.post('/tidy/runs', json='ask').json()['run_id']}"
    [question] = client.get(place).json()["pending"]
    for wrong in ({}, {question["id"]: "yes"}, {question["id"]: {"approved": True}}, {"x" * 10_000: True}):
        problem(client.post(f"{place}/answers", json={"answers": wrong}), 422, "invalid")
    problem(client.post(f"{place}/answers", json={"answers": {question["id"]: True}, "more": 1}), 422, "invalid")

    async def both() -> list[httpx.Response]:
        async with httpx.AsyncClient(base_url=client.base_url, trust_env=False, timeout=30) as two:
            given = {"answers": {question["id"]: True}}
            return await asyncio.gather(*(two.post(f"{place}/answers", json=given) for _ in range(8)))

    answers = asyncio.run(both())
    assert sorted(answer.status_code for answer in answers) == [200, *[409] * 7]
    for answer in answers:
        if answer.status_code != 200:
            problem(answer, 409, "not-suspended")
    problem(client.post(f"{place}/answers", json={"answers": {question["id"]: True}}), 409, "not-suspended")
    going = client.post("/tidy/runs?wait=false", json="wait").json()["run_id"]
    problem(client.post(f"/tidy/runs/{going}/answers", json={"answers": {"x": True}}), 409, "not-suspended")


def test_feedback(client: httpx.Client):
    """On calls that are not there, on runs that are not there, and with values that are none."""
    place = f"/tidy/runs/{client.post('/tidy/runs', json='a').json()['run_id']}/feedback"
    for key in ("nothing", "wait[0]", "x" * 900, "wait\u0000"):
        problem(client.post(place, json={"name": "n", "value": 1, "key": key}), 404, "unknown-call")
    for value in (None, [], {}, "x" * 10_001):
        problem(client.post(place, json={"name": "n", "value": value}), 422, "invalid")
    problem(client.post(place, json={"name": " ", "value": 1}), 422, "invalid")
    problem(client.post("/tidy/runs/none/feedback", json={"name": "n", "value": 1}), 404, "unknown-run")


def test_a_thousand_readers_that_leave(client: httpx.Client):
    """They take nothing with them and leave nothing behind; the run does not notice."""
    run_id = client.post("/tidy/runs?wait=false", json="wait").json()["run_id"]
    request = f"GET /tidy/runs/{run_id}/events HTTP/1.1\r\nhost: x\r\n\r\n".encode()

    async def reader() -> None:
        reading, writing = await asyncio.open_connection(client.base_url.host, client.base_url.port)
        writing.write(request)
        assert (await reading.readline()).startswith(b"HTTP/1.1 200")
        writing.close()
        await writing.wait_closed()

    async def many() -> None:
        for _ in range(5):
            await asyncio.gather(*(reader() for _ in range(200)))

    asyncio.run(many())
    assert client.get(f"/tidy/runs/{run_id}").json()["status"] == "running"
    assert len(client.get("/left").json()) == 1
    gate.opened.set()
    assert list(events(client.get(f"/tidy/runs/{run_id}/events")))[-1]["event"] == "run_finished"
    assert json.loads(client.get(f"/tidy/runs/{run_id}").text)["output"] == "wait"
    assert client.get("/left").json() == []
