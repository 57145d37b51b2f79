"""What an app gives to `router`: who asks, what a run gets, who may see it, and errors that these raise."""

from __future__ import annotations

from typing import Annotated

import pytest
from fastapi import FastAPI, Header, HTTPException

from serving import served
from stagegraph import Graph, Runner
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
