"""The id of an event is worth the same in every process: a stream that was cut continues there, with nothing twice."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import anyio
import httpx
import pytest
from fastapi import FastAPI

from serving import app_for, events, served
from stagegraph import Graph, Runner, fan_out, step
from stagegraph.journal import Journal, MemoryJournal, SqliteJournal

Seen = list[dict[str, str]]
SIZE = 12
opened = anyio.Event()


@step
async def count(number: int) -> int:
    return number + 1


@step
async def double(number: int) -> int:
    return 2 * number + 1


@step
async def wait(number: int) -> int:
    await opened.wait()
    return number


class Pair(Graph[int, int]):
    """Two calls."""

    first = count
    second = double

    async def flow(self, number: int) -> int:
        return await self.second(await self.first(number))


class Wide(Graph[int, int]):
    """Graphs side by side; then every other one of the calls waits."""

    pair = Pair()
    wait = wait
    count = count

    async def flow(self, size: int) -> int:
        numbers = await fan_out(self.pair, range(size))
        return sum(await fan_out(self.last, numbers))

    async def last(self, number: int) -> int:
        return await (self.wait if number // 2 % 2 else self.count)(number)


def app_of(journal: Journal, **options) -> FastAPI:
    runner = Runner(journal=journal, tracing=None, **options)
    return app_for(Wide(), runner)


def said(seen: Seen) -> list[tuple[str, str, str | None]]:
    """What the events of calls, and the last one, say, without when and how long."""
    found = [(one["event"], json.loads(one["data"])) for one in seen]
    kept = ("call_started", "call_finished", "run_finished")
    return [(kind, data.get("key", ""), data.get("status")) for kind, data in found if kind in kept]


def check_ids(seen: Seen) -> None:
    """They grow, so that a client that keeps the newest has the last."""
    numbers = [tuple(map(int, f"0-{one['id']}".split("-")[-2:])) for one in seen]
    assert numbers == sorted(set(numbers))


@pytest.fixture(name="workers")
def _workers(tmp_path: Path) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    opened.set()
    path = tmp_path / "runs.db"
    with served(app_of(SqliteJournal(path))) as one, served(app_of(SqliteJournal(path))) as two:
        yield one, two


def test_a_stream_continues_on_another_worker(workers: tuple[httpx.Client, httpx.Client]):
    """After whichever event it was cut, with the header of a browser or as a parameter."""
    one, two = workers
    place = f"/runs/{one.post('/runs', json=SIZE).json()['run_id']}/events"
    whole = list(events(one.get(place)))
    assert len(said(whole)) == 2 * (1 + 3 * SIZE + SIZE) + 1
    check_ids(whole)
    elsewhere = list(events(two.get(place)))
    assert said(elsewhere) == said(whole)
    shared = {event["id"]: event["event"] for event in whole}
    assert all(shared[event["id"]] == event["event"] for event in elsewhere)
    for cut in range(0, len(whole), 5):
        last, rest = whole[cut]["id"], said(whole[cut + 1 :])
        for client in workers:
            assert said(list(events(client.get(place, headers={"Last-Event-ID": last})))) == rest
            assert said(list(events(client.get(place, params={"after": last})))) == rest
    for worker in workers:
        assert not list(events(worker.get(place, headers={"Last-Event-ID": whole[-1]["id"]})))


@pytest.mark.parametrize("last", ["9000", "1-0", "4294967295", "4294967296", "999999999-1", "0-", "-1", "1.5", "x"])
def test_an_id_that_no_event_has(workers: tuple[httpx.Client, httpx.Client], last: str):
    """It loses nothing: the stream begins at the beginning."""
    place = f"/runs/{workers[0].post('/runs', json=2).json()['run_id']}/events"
    for client in workers:
        assert said(list(events(client.get(place, headers={"Last-Event-ID": last})))) == said(
            list(events(client.get(place)))
        )


@asynccontextmanager
async def reading(app: FastAPI, path: str, last: str) -> AsyncIterator[AsyncIterator[dict[str, str]]]:
    """The events of a run of an app in this event loop, from the last one that a client has."""
    chunks: asyncio.Queue[bytes | None] = asyncio.Queue()
    scope: dict[str, object] = {"query_string": b"", "raw_path": path.encode()}
    scope |= {"type": "http", "http_version": "1.1", "method": "GET", "scheme": "http", "path": path, "root_path": ""}
    scope |= {"headers": [(b"last-event-id", last.encode())], "client": ("test", 1), "server": ("test", 80)}

    begun = False

    async def receive() -> dict[str, object]:
        nonlocal begun
        if begun:
            await anyio.sleep_forever()
        begun = True
        return {"type": "http.request", "body": b""}

    async def send(message: dict[str, object]) -> None:
        body = message.get("body", b"")
        assert isinstance(body, bytes)
        chunks.put_nowait(body)
        if message["type"] == "http.response.body" and not message.get("more_body"):
            chunks.put_nowait(None)

    async def parsed() -> AsyncIterator[dict[str, str]]:
        while (chunk := await chunks.get()) is not None:
            for block in chunk.decode().split("\n\n"):
                lines = [line for line in block.splitlines() if not line.startswith(":")]
                if lines:
                    yield {name: value for name, _, value in (line.partition(": ") for line in lines)}

    async with anyio.create_task_group() as group:
        group.start_soon(app, scope, receive, send)
        yield parsed()
        group.cancel_scope.cancel()


@pytest.mark.anyio
@pytest.mark.parametrize("cut", [0, 1, 7, 30, 10_000])
@pytest.mark.parametrize("step_size", [3, 10_000])
async def test_a_stream_continues_after_a_restart(cut: int, step_size: int):
    """And is cut again there: every end is announced once, and nothing that had ended begins once more."""
    global opened  # noqa: PLW0603 - it belongs to an event loop
    opened = anyio.Event()
    journal = MemoryJournal()
    runner = Runner(journal=journal, tracing=None, drain_seconds=0)
    seen: Seen = []
    async with runner.lifespan():
        app = app_for(Wide(), runner)
        live = runner.start(Wide(), SIZE, run_id="r")
        ended = 0
        async for event in live.events():
            ended += event.type == "call_finished"
            if ended == 3 * SIZE + SIZE // 2:  # all but those that wait, and the graph itself
                break
        async with reading(app, "/runs/r/events", "") as stream:
            async for event in stream:
                seen.append(event)
                if len(seen) > cut or len([one for one in seen if one["event"] == "call_finished"]) == ended:
                    break
    finished_before = {key for kind, key, status in said(seen) if status == "succeeded"}
    opened.set()
    runner = Runner(journal=journal, tracing=None, resume_interrupted=True)
    app = app_for(Wide(), runner)
    async with runner.lifespan():
        first = len(seen)
        while not seen or seen[-1]["event"] != "run_finished":
            async with reading(app, "/runs/r/events", seen[-1]["id"]) as stream:
                taken = 0
                async for event in stream:
                    seen.append(event)
                    taken += 1
                    if taken == step_size:
                        break
    check_ids(seen)
    ends = Counter(key for kind, key, status in said(seen) if kind == "call_finished" and status == "succeeded")
    assert ends == Counter(call.key for call in await journal.calls("r"))
    again = [key for kind, key, _ in said(seen[first:]) if kind == "call_started"]
    assert not finished_before & set(again)
    assert {one["event"] for one in seen} >= {"run_started", "run_finished"}
