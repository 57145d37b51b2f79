"""What an app gives to `router`: who asks, what a run gets, who may see it, and errors that these raise."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Annotated

import pytest
from fastapi import FastAPI, Header, HTTPException

from serving import served
from stagegraph import DeclarationError, Graph, Runner
from stagegraph.service import router


class Echo(Graph[str, str]):
    """Say it again."""

    async def flow(self, text: str) -> str:
        return text


def app_of(runner: Runner, **options) -> FastAPI:
    app = FastAPI(lifespan=runner.lifespan)
    app.include_router(router(Echo(), runner, **options), prefix="/echo")
    return app


def numbered(authorization: Annotated[str, Header()]) -> str:
    try:
        return str(int(authorization))
    except ValueError as error:
        raise HTTPException(401, "no such token", headers={"WWW-Authenticate": "Bearer"}) from error


@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/echo/runs"), ("POST", "/echo/runs/stream"), ("GET", "/echo/runs/x")]
)
def test_a_refusal_keeps_its_status_and_headers_whatever_caused_it(method: str, path: str):
    """A token that could not be read is no body that could not be read."""
    content = {"json": "a"} if method == "POST" else {}
    with served(app_of(Runner(), user=numbered)) as client:
        answer = client.request(method, path, headers={"Authorization": "none"}, **content)
    assert (answer.status_code, answer.headers.get("www-authenticate")) == (401, "Bearer")
    assert answer.json()["detail"] == "no such token"


def another_echo() -> Graph[str, str]:
    class Echo(Graph[str, str]):
        async def flow(self, text: str) -> str:
            return text * 2

    return Echo()


class Prefixed(Graph[str, str]):
    def __init__(self, prefix: str) -> None:
        self.prefix = prefix

    async def flow(self, text: str) -> str:
        return self.prefix + text


async def these(_row: object) -> str:
    return "these"


async def those(_row: object) -> str:
    return "those"


def test_two_graphs_of_one_name_are_refused():
    """Runs are recorded by the name alone, so one of the graphs would answer for the other's runs, and finish them."""
    runner = Runner()
    router(Echo(), runner)
    with pytest.raises(DeclarationError, match=r"two different graphs named 'Echo'.*another name, or a runner"):
        router(another_echo(), runner)
    with pytest.raises(DeclarationError, match="two different graphs"):
        router(another_echo(), runner, resume_deps="never")
    router(Prefixed("a"), runner)
    with pytest.raises(DeclarationError, match="two different graphs named 'Prefixed'"):
        router(Prefixed("b"), runner)
    router(another_echo(), Runner())


def test_deps_of_interrupted_runs_are_made_in_one_way():
    """Which of two routers began a run is not recorded."""
    runner = Runner()
    runner.add(Echo(), deps_of=these)
    with pytest.raises(DeclarationError, match="different deps"):
        router(Echo(), runner, deps=lambda: "x", resume_deps=those)
    with pytest.raises(DeclarationError, match="different deps"):
        router(Echo(), runner, deps=lambda: "x", resume_deps="never")
    router(Echo(), runner, deps=lambda: "x", resume_deps=these)


def test_one_graph_is_served_twice():
    """The same graph may have two addresses, whichever is used first."""
    runner, graph = Runner(), Echo()
    app = FastAPI(lifespan=runner.lifespan)
    app.include_router(router(graph, runner), prefix="/a")
    app.include_router(router(graph, runner), prefix="/b")
    with served(app) as client:
        run_id = client.post("/a/runs", json="hi").json()["run_id"]
        assert client.post("/b/runs", json="hi").json()["output"] == "hi"
        assert client.get(f"/a/runs/{run_id}").json()["output"] == "hi"
    app.include_router(router(Echo(), runner), prefix="/c")


def session() -> Iterator[str]:
    yield "open"


async def async_session() -> AsyncIterator[str]:
    yield "open"


class Sessions:
    async def __call__(self) -> AsyncIterator[str]:
        yield "open"


@pytest.mark.parametrize(
    "deps", [session, async_session, Sessions(), functools.partial(session), contextlib.contextmanager(session)]
)
def test_deps_that_end_with_the_request_are_refused(deps: Callable[[], object]):
    """A run that nobody waits for would find them closed."""
    with pytest.raises(DeclarationError, match=r"may outlive its request.*open the session in the step"):
        router(Echo(), Runner(), deps=deps)
