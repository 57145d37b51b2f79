"""What an app gives to `router`: who asks, what a run gets, who may see it, and errors that these raise."""

from __future__ import annotations

import contextlib
import functools
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Annotated, Any

import anyio.lowlevel
import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException as StarletteHTTPException

from scripted import Still
from serving import app_for, served
from stagegraph import DeclarationError, Graph, Runner, current_call, step
from stagegraph.journal import MemoryJournal, RunFilter, RunRow, SqliteJournal
from stagegraph.service import RunRef, router


class Echo(Still):
    """Say it again."""


def app_of(runner: Runner, **options) -> FastAPI:
    return app_for(Echo(), runner, **options, prefix="/echo")


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
    """A service that finishes runs says how, or that it leaves them alone; which of two routers began one is unknown."""
    for options in ({"resume_deps": these}, {"resume_deps": "never"}):
        runner = Runner(journal=MemoryJournal(), resume_interrupted=True)
        with pytest.raises(DeclarationError, match=r"resume_deps="):
            router(Echo(), runner, deps=lambda: None)
        router(Echo(), runner, deps=lambda: None, **options)
    runner = Runner()
    runner.add(Echo(), deps_of=these)
    for other in (those, "never"):
        with pytest.raises(DeclarationError, match="different deps"):
            router(Echo(), runner, deps=lambda: "x", resume_deps=other)
    router(Echo(), runner, deps=lambda: "x", resume_deps=these)


async def no_row() -> str:
    return "none"


def yields(_row: RunRow) -> Iterator[str]:
    yield "closed"


@contextlib.asynccontextmanager
async def managed(_row: RunRow) -> AsyncIterator[str]:
    yield "closed"


def two_rows(_row: RunRow, _other: RunRow) -> str:
    return "two"


@pytest.mark.parametrize(
    ("resume_deps", "said"),
    [
        (no_row, "cannot be called with the row of a run"),
        (two_rows, "cannot be called with the row of a run"),
        (yields, "it yields"),
        (managed, "it yields"),
        (functools.partial(yields), "it yields"),
        ("always", "str 'always' is no function"),
        (object(), "is no function"),
    ],
)
def test_what_makes_no_deps_is_refused_at_once(resume_deps: Any, said: str):
    """And not by the first crash; the error says what to write and where it goes."""
    for declare in (
        lambda: router(Echo(), Runner(), deps=lambda: "x", resume_deps=resume_deps),
        lambda: Runner().add(Echo(), deps_of=resume_deps),
    ):
        with pytest.raises(DeclarationError, match=rf"{said}.*router\(\.\.\., resume_deps=make_deps\)"):
            declare()


@step
async def ask(text: str) -> str:
    if current_call().deps is None:
        await anyio.sleep_forever()
    return f"{text} with {current_call().deps}"


class Slow(Graph[str, str]):
    """Say what the deps are; wait where there are none."""

    ask = ask

    async def flow(self, text: str) -> str:
        return await self.ask(text)


async def interrupted() -> MemoryJournal:
    """A journal with a run that a shutdown interrupted."""
    journal = MemoryJournal()
    runner = Runner(journal=journal, tracing=None, drain_seconds=0)
    async with runner.lifespan():
        await runner.start(Slow(), "a", run_id="r", user_id="anna").recorded()
    return journal


def of_anna(row: RunRow) -> str:
    return f"those of {row.read_labels().user_id}"


async def of_anna_later(row: RunRow) -> str:
    await anyio.lowlevel.checkpoint()
    return of_anna(row)


class Maker:
    async def __call__(self, row: RunRow) -> str:
        return of_anna(row)


@pytest.mark.anyio
@pytest.mark.parametrize("resume_deps", [of_anna, of_anna_later, Maker(), functools.partial(of_anna_later)])
async def test_interrupted_runs_get_deps_from_any_kind_of_function(resume_deps: Any):
    """A plain function is as good as an async one."""
    journal = await interrupted()
    runner = Runner(journal=journal, tracing=None, resume_interrupted=True)
    router(Slow(), runner, deps=lambda: None, resume_deps=resume_deps)
    async with runner.lifespan():
        while (row := await journal.run("r")) is None or row.status == "running":  # noqa: ASYNC110
            await anyio.sleep(0.001)
    assert (row.status, row.output) == ("succeeded", '"a with those of anna"')


@pytest.mark.anyio
@pytest.mark.parametrize("is_async", [False, True])
async def test_deps_that_cannot_be_made_are_logged_with_their_traceback(
    is_async: bool, caplog: pytest.LogCaptureFixture
):
    """The run stays interrupted, so that the next start tries again."""

    def broken(_row: RunRow) -> str:
        raise LookupError("no such tenant")

    async def broken_later(row: RunRow) -> str:
        return broken(row)

    journal = await interrupted()
    runner = Runner(journal=journal, tracing=None, resume_interrupted=True)
    runner.add(Slow(), deps_of=broken_later if is_async else broken)
    async with runner.lifespan():
        while "could not be taken up" not in caplog.text:  # noqa: ASYNC110
            await anyio.sleep(0.001)
    assert "LookupError: no such tenant" in caplog.text
    assert "in broken" in caplog.text
    row = await journal.run("r")
    assert row is not None
    assert row.status == "running"


def test_one_graph_is_served_twice():
    """The same graph may have two addresses, whichever is used first."""
    runner, graph = Runner(), Echo()
    app = app_for(graph, runner, prefix="/a")
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


def of_session(opened: Annotated[str, Depends(async_session)]) -> str:
    return opened


def of_that(deps: str = Depends(of_session)) -> str:
    return deps


class Holder:
    def __init__(self, deps: Annotated[str, Depends(of_that)]) -> None:
        self.deps = deps


@pytest.mark.parametrize(
    "deps",
    [
        *(session, async_session, Sessions(), functools.partial(session)),
        *(of_session, of_that, Holder, Depends(of_that), Depends(session)),
    ],
)
def test_deps_that_end_with_the_request_are_warned_of(deps: Callable[[], object], caplog: pytest.LogCaptureFixture):
    """A run that nobody waits for would find them closed; one that is waited for has them."""
    runner = Runner()
    app = app_for(Echo(), runner, deps=deps, prefix="/echo")
    assert "may outlive its request" in caplog.text
    with served(app) as client:
        assert client.post("/echo/runs", json="a").json()["output"] == "a"


def pool() -> str:
    return "a pool"


def of_pool(request: Request, opened: Annotated[str, Depends(pool)], token: Annotated[str, Header()] = "") -> str:
    return f"{opened} {request.method} {token}"


@pytest.mark.parametrize("deps", [pool, of_pool, Depends(of_pool)])
def test_deps_that_stay_are_not_warned_of(deps: Any, caplog: pytest.LogCaptureFixture):
    """Whatever they depend on."""
    router(Echo(), Runner(), deps=deps)
    assert not caplog.text


@pytest.mark.parametrize("who", [uuid.uuid4(), 5, "anna", None])
def test_an_id_is_the_same_after_a_restart(who: object, tmp_path: Path):
    """Whatever type the hooks give: the journal has texts."""

    def app() -> FastAPI:
        runner = Runner(journal=SqliteJournal(tmp_path / "runs.db"))
        return app_of(runner, user=lambda: who, session=lambda: who)

    with served(app()) as client:
        run_id = client.post("/echo/runs", json="a").json()["run_id"]
        assert client.get(f"/echo/runs/{run_id}").status_code == 200
    with served(app()) as client:
        assert client.get(f"/echo/runs/{run_id}").json()["output"] == "a"


def test_a_policy_sees_ids_as_texts():
    """As the journal has them, for both; a `return` that was forgotten, or what is no bool, closes the door."""
    seen: list[tuple[object, object, object]] = []
    said: object = True

    def policy(who: str | None, run: RunRef) -> Any:
        seen.append((who, run.user_id, run.session_id))
        return said

    number = uuid.uuid4()
    with served(app_of(Runner(), user=lambda: number, session=lambda: 7, policy=policy)) as client:
        run_id = client.post("/echo/runs", json="a").json()["run_id"]
        assert client.get(f"/echo/runs/{run_id}").status_code == 200
        assert seen == [(str(number), str(number), "7")]
        for said in (None, "", 0, "anna", 1):  # noqa: B007 - the policy gives it
            assert client.get(f"/echo/runs/{run_id}").status_code == 404


class NotPaidError(Exception):
    pass


def test_the_app_answers_what_its_hooks_raise():
    """Where it has registered a handler; everything else is a problem as before."""

    def paying(authorization: Annotated[str, Header()]) -> str:
        if authorization == "poor":
            raise NotPaidError
        if authorization == "nobody":
            raise HTTPException(401, "who?")
        if authorization == "broken":
            raise KeyError(authorization)
        return authorization

    app = app_of(Runner(), user=paying)

    @app.exception_handler(NotPaidError)
    async def pay(_request: Request, _error: NotPaidError) -> JSONResponse:
        return JSONResponse({"pay": "first"}, 402)

    with served(app) as client:

        def ask(who: str, **content: Any) -> httpx.Response:
            return client.post("/echo/runs", headers={"Authorization": who}, **content)

        poor, nobody, broken = (ask(who, json="a") for who in ("poor", "nobody", "broken"))
        assert (poor.status_code, poor.json()) == (402, {"pay": "first"})
        for answer, status in (
            (nobody, 401),
            (broken, 500),
            (ask("rich", json=3), 422),
            (ask("rich", content="a"), 415),
        ):
            assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
        assert ask("rich", json="a").json()["output"] == "a"


def test_an_app_with_its_own_refusals_keeps_ours_for_what_is_ours():
    """Its handler of `HTTPException` answers for its hooks; a body or a run id that is wrong is still a problem."""

    def closed(authorization: Annotated[str | None, Header()] = None) -> str:
        if authorization is None:
            raise HTTPException(403, "closed")
        return authorization

    app = app_of(Runner(), user=closed)

    @app.exception_handler(StarletteHTTPException)
    async def refuse(_request: Request, error: StarletteHTTPException) -> JSONResponse:
        return JSONResponse({"ours": error.detail}, error.status_code)

    headers = {"Authorization": "anna", "Content-Type": "application/json"}
    with served(app) as client:
        assert client.post("/echo/runs", json="a").json() == {"ours": "closed"}
        for content in ("{", "[" * 50_000):
            answer = client.post("/echo/runs", content=content, headers=headers)
            assert (answer.status_code, answer.headers["content-type"]) == (422, "application/problem+json")
        assert client.get("/echo/runs/x", headers=headers).json()["type"].endswith("unknown-run")


@step
async def meet(text: str) -> str:
    meeting = current_call().deps
    assert isinstance(meeting, Meeting)
    await meeting.wait()
    return text


class Meets(Graph[str, str]):
    """A run that ends when enough others are there."""

    meet = meet

    async def flow(self, text: str) -> str:
        return await self.meet(text)


class Meeting:
    """Everybody waits until so many have come; counts how many were there at once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.here = self.most = 0
        self.complete = anyio.Event()

    async def wait(self) -> None:
        self.here += 1
        self.most = max(self.most, self.here)
        if self.here == self.size:
            self.complete.set()
        try:
            await self.complete.wait()
            await anyio.lowlevel.checkpoint()
        finally:
            self.here -= 1


@pytest.mark.anyio
async def test_interrupted_runs_are_taken_up_as_many_at_once_as_may_run():
    """Twenty at once where `max_runs` says so, and no more: the service is neither slow to recover nor overrun."""
    journal = MemoryJournal()
    first = Runner(journal=journal, tracing=None, drain_seconds=0)
    async with first.lifespan():
        never = Meeting(1000)
        for number in range(50):
            await first.start(Meets(), str(number), run_id=str(number), deps=never).recorded()
    meeting = Meeting(20)
    runner = Runner(journal=journal, tracing=None, resume_interrupted=True, max_runs=20)
    router(Meets(), runner, deps=lambda: meeting, resume_deps=lambda _: meeting)
    async with runner.lifespan():
        while {row.status for row in await journal.runs(RunFilter(limit=100))} != {"succeeded"}:  # noqa: ASYNC110
            await anyio.sleep(0.005)
    assert meeting.most == 20
