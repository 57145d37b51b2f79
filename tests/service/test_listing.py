"""The list of runs: those that a user may see, by filters, in pages that neither repeat nor lose a run."""

from __future__ import annotations

import asyncio
import sqlite3
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import httpx
import pytest
from fastapi import FastAPI, Header
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from serving import app_for, served
from stagegraph import Graph, Runner, Stage, step
from stagegraph.journal import Journal, MemoryJournal, RunFilter, SqliteJournal
from stagegraph.service import RunRef


@step
async def say(text: str) -> str:
    if text == "bad":
        raise ValueError(text)
    return text


class Echo(Graph[str, str]):
    """Say it again."""

    say = say

    async def flow(self, text: str) -> str:
        return await self.say(text)


class Other(Echo):
    """Another graph on the same journal."""


def user(x_user: Annotated[str | None, Header()] = None) -> str | None:
    return x_user


def app_of(runner: Runner, **options) -> FastAPI:
    return app_for(Echo(), runner, user=user, **options)


async def fill(journal: Journal) -> None:
    """Runs of two users, some at the very same time, and one of another graph."""
    runner = Runner(journal=journal, tracing=None)
    for number in range(12):
        who, session = ("anna", "s1") if number % 2 else ("bert", None)
        tags = tuple(tag for tag, every in (("third", 3), ("fourth", 4)) if number % every == 0)
        await runner.run(Echo(), "a", run_id=f"r{number:02}", user_id=who, session_id=session, tags=tags)
        row = await journal.run(f"r{number:02}")
        assert row is not None
        await journal.put(replace(row, started=1000.0 + number // 4))  # four at a time
    await runner.run(Other(), "a", run_id="other", user_id="anna")
    with pytest.raises(Exception, match="bad"):
        await runner.run(Echo(), "bad", run_id="failed", user_id="anna")


@pytest.fixture(params=["memory", "file"], name="journal")
def _journal(request: pytest.FixtureRequest, tmp_path: Path) -> Journal:
    journal = MemoryJournal() if request.param == "memory" else SqliteJournal(tmp_path / "runs.db")
    asyncio.run(fill(journal))
    return journal


def pages(client: httpx.Client, who: str | None, **params) -> list[str]:
    """The ids of every page, one after the other."""
    found: list[str] = []
    headers = {} if who is None else {"X-User": who}
    while True:
        answer = client.get("/runs", params=params, headers=headers)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        assert len(page["runs"]) <= params.get("limit", 30)
        found += [run["run_id"] for run in page["runs"]]
        if page["next"] is None:
            return found
        params["cursor"] = page["next"]


ANNA = ["failed", *(f"r{number:02}" for number in (11, 9, 7, 5, 3, 1))]


@pytest.mark.parametrize("limit", [1, 2, 3, 100])
def test_pages_have_every_run_once(journal: Journal, limit: int):
    """The newest first; those of other users and other graphs are not among them."""
    with served(app_of(Runner(journal=journal, tracing=None))) as client:
        assert pages(client, "anna", limit=limit) == ANNA
        assert pages(client, "bert", limit=limit) == [f"r{number:02}" for number in (10, 8, 6, 4, 2, 0)]
        assert pages(client, None, limit=limit) == []
        assert pages(client, "carl", limit=limit) == []


def test_filters(journal: Journal):
    """Each of them, and together."""
    since, until = (datetime.fromtimestamp(seconds, UTC).isoformat() for seconds in (1001, 1001.5))
    with served(app_of(Runner(journal=journal, tracing=None))) as client:
        for params, expected in (
            ({"status": "failed"}, ["failed"]),
            ({"status": "succeeded"}, ANNA[1:]),
            ({"status": "running"}, []),
            ({"status": "interrupted"}, []),
            ({"graph": "Echo"}, ANNA),
            ({"graph": "Other"}, []),
            ({"session": "s1"}, ANNA[1:]),
            ({"session": "s2"}, []),
            ({"tag": "third"}, ["r09", "r03"]),
            ({"since": since, "until": until}, ["r07", "r05"]),
            ({"tag": "third", "until": until, "session": "s1", "status": "succeeded"}, ["r03"]),
        ):
            assert pages(client, "anna", **params) == expected, params
        assert pages(client, "bert", tag=["third", "fourth"]) == ["r00"]
        listed = client.get("/runs", params={"tag": "third"}, headers={"X-User": "anna"}).json()["runs"][0]
    assert (listed["graph"], listed["session_id"], listed["tags"]) == ("Echo", "s1", ["third"])
    assert listed["usage"] == {"requests": 0, "input_tokens": 0, "output_tokens": 0, "cost": "0"}


@pytest.mark.parametrize(
    "params",
    [
        *({"limit": limit} for limit in (0, 101, -1, "many")),
        *({"cursor": cursor} for cursor in ("x", "1~", "~r", "nan~r", "1e5~r", "9" * 20 + "~r", "1" * 1000)),
        *({"since": moment} for moment in ("yesterday", "2026-01-01T00:00:00", "1e400")),
        {"status": "done"},
        {"tag": ["a"] * 21},
    ],
)
def test_a_question_that_is_none(params: dict[str, str]):
    """It is a problem, and no error of the service."""
    with served(app_of(Runner(journal=MemoryJournal(), tracing=None))) as client:
        assert client.get("/runs", params=params).status_code == 422
        assert client.get("/runs", params={"cursor": "1.5~'; DROP TABLE runs"}).json() == {"runs": [], "next": None}
    with served(app_of(Runner(tracing=None))) as client:
        assert client.get("/runs").json()["type"].endswith("no-journal")


def test_a_policy_decides_for_each_run(journal: Journal):
    """As for a single run; what it says for one is not taken for others."""

    async def policy(who: str | None, run: RunRef) -> bool:
        return run.run_id in {"r01", "r04"} or (who == "boss" and run.session_id == "s1")

    with served(app_of(Runner(journal=journal, tracing=None), policy=policy)) as client:
        assert pages(client, "carl", limit=1) == ["r04", "r01"]
        assert pages(client, "boss", limit=2) == ["r11", "r09", "r07", "r05", "r04", "r03", "r01"]


async def answers(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    return ModelResponse([TextPart("an answer")])


class Half(Graph[str, str]):
    """Ask, then wait for ever."""

    ask = Stage(str, Agent(instructions="Answer."))
    wait = say

    async def flow(self, text: str) -> str:
        await self.ask(text)
        await asyncio.Event().wait()
        return text


@pytest.mark.anyio
async def test_an_interrupted_run_shows_what_it_has_spent():
    """In the list, and by itself; it is told from one that goes on."""
    journal = MemoryJournal()
    runner = Runner(FunctionModel(answers), journal=journal, tracing=None, drain_seconds=0)
    async with runner.lifespan():
        live = runner.start(Half(), "a", run_id="half")
        async for event in live.events():
            if event.type == "call_finished":
                break
    app = app_for(Half(), Runner(journal=journal, tracing=None))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        [listed] = (await client.get("/runs", params={"status": "interrupted"})).json()["runs"]
        single = (await client.get("/runs/half")).json()
        assert (await client.get("/runs", params={"status": "running"})).json()["runs"] == []
    assert listed["status"] == single["status"] == "interrupted"
    assert listed["usage"] == single["usage"]
    assert listed["usage"]["requests"] == 1
    assert listed["usage"]["output_tokens"] > 0
    assert (await journal.runs(RunFilter(user="nobody"))) == []


@pytest.mark.anyio
async def test_a_damaged_run_is_said_and_the_others_are_listed(tmp_path: Path) -> None:
    """Its own page is an error that says so, and its events end."""
    path = tmp_path / "runs.db"
    journal = SqliteJournal(path)
    runner = Runner(journal=journal, tracing=None)
    for name in ("one", "other"):
        await runner.run(Echo(), "a", run_id=name, user_id="anna")
    with closing(sqlite3.connect(path)) as damaged:
        damaged.execute("UPDATE runs SET status = 'running', owner = 'x' WHERE run_id = 'one'")
        damaged.execute("UPDATE calls SET usage = '[1' WHERE run_id = 'one'")
        damaged.commit()
    transport = httpx.ASGITransport(app_of(runner))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        headers = {"x-user": "anna"}
        listed = (await client.get("/runs", headers=headers)).json()["runs"]
        assert sorted(run["run_id"] for run in listed) == ["one", "other"]
        found = await client.get("/runs/one", headers=headers)
        assert (found.status_code, found.json()["type"].rpartition(":")[2]) == (500, "damaged")
        with closing(sqlite3.connect(path)) as damaged:
            damaged.execute("UPDATE runs SET status = 'succeeded' WHERE run_id = 'one'")
            damaged.commit()
        assert (await client.get("/runs/one/events", headers=headers)).status_code == 200
    await journal.aclose()
