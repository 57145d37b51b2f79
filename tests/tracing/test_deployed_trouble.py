"""Deployed prompts while the server is ill, away or holds nonsense: runs go on, in time, and one warning says why."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from typing import Any

import anyio
import pytest
from deployed import CODE, INPUT, MINE, PROMPTS, TUNED, Write, said, told, warned
from langfuse_server import LangfuseServer

from stagegraph import Prompts, Runner
from stagegraph.tracing import deploy_prompts, langfuse_prompts

pytestmark = [pytest.mark.anyio, pytest.mark.usefixtures("keys")]


def _status(status: int) -> Callable[[LangfuseServer], None]:
    def fail(server: LangfuseServer) -> None:
        server.status, server.failing = status, PROMPTS

    return fail


def _hang(server: LangfuseServer) -> None:
    server.delay = 30


def _body(**changes: Any) -> Callable[[LangfuseServer], None]:
    def spoil(server: LangfuseServer) -> None:
        row = {"name": "n", "version": 1, "type": "text", "prompt": "Spoiled.", "labels": [], "config": {}}
        server.nonsense, server.nonsense_paths = json.dumps({**row, **changes}).encode(), PROMPTS

    return spoil


def _garbage(server: LangfuseServer) -> None:
    server.nonsense = b"<html>"


TROUBLE: dict[str, Callable[[LangfuseServer], None]] = {
    "down": LangfuseServer.close,
    "hanging": _hang,
    "no longer there": lambda server: server.prompts.clear(),
    **{str(status): _status(status) for status in (400, 401, 403, 404, 429, 500, 503)},
    "no JSON": _garbage,
    "a list": lambda server: setattr(server, "nonsense", b"[]"),
    "a chat": _body(type="chat", prompt=[{"role": "system", "content": "x"}]),
    "a number": _body(prompt=7),
    "no version": _body(version=None),
    "an unfit demo": _body(config={"stagegraph": {"parts": {"demos": [{"input": 5, "output": "o"}]}}}),
    "odd demos": _body(config={"stagegraph": {"parts": {"demos": {"a": 1}}}}),
    "odd parts": _body(config={"stagegraph": {"parts": "x"}}),
    "odd tools": _body(config={"stagegraph": {"parts": {"tools": [1]}}}),
    "an odd config": _body(config={"stagegraph": 5}),
    "an odd text": _body(prompt="\ud800"),
}


@pytest.mark.parametrize("name", TROUBLE)
async def test_trouble_leaves_the_code_in_force(
    server: LangfuseServer, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Whatever the server does, runs go on with the code's text, in time, and one warning says why."""
    monkeypatch.setenv("LANGFUSE_TIMEOUT", "1")
    deploy_prompts(MINE, Write(), "production")
    TROUBLE[name](server)
    begun, beats = time.monotonic(), 0

    async def beat() -> None:
        nonlocal beats
        while True:
            beats += 1
            await asyncio.sleep(0.01)

    heart = asyncio.create_task(beat())
    live = langfuse_prompts(Write(), wait=0.5)
    runner = Runner(told(), prompts=live, tracing=None)
    runs = await asyncio.gather(*(runner.run(Write(), INPUT) for _ in range(40)))
    took = time.monotonic() - begun
    heart.cancel()
    assert all(said(run) == CODE for run in runs)
    assert all(run.prompts_digest == Prompts().digest for run in runs)
    assert took < 20  # a server that hangs does so for 30
    if name == "hanging":
        assert beats > 10, "the event loop stood still"
        with anyio.fail_after(60):
            while not warned(caplog):  # noqa: ASYNC110 - a thread of its own says it
                await asyncio.sleep(0.01)
    assert len(warned(caplog)) == 1
    assert server.secret_key not in caplog.text
    assert (await live.current()).origins == {}


async def test_one_bad_prompt_does_not_spoil_the_others(
    server: LangfuseServer, caplog: pytest.LogCaptureFixture
) -> None:
    """A stage whose deployed text is of no use keeps the code's, and is named; the others have theirs."""
    deploy_prompts(MINE, Write(), "production")
    server.prompts["Write/draft"][0]["prompt"] = None
    run = await Runner(told(), tracing=None, prompts=langfuse_prompts(Write())).run(Write(), INPUT)
    assert said(run) == ["Draft it.", "inner.polish, tuned."]
    assert len(warned(caplog)) == 1
    assert "`draft`" in warned(caplog)[0]


async def test_what_was_fetched_outlives_the_server(server: LangfuseServer, caplog: pytest.LogCaptureFixture) -> None:
    """When the server goes away, runs go on with what was deployed when it was last seen."""
    deploy_prompts(MINE, Write(), "production")
    live = langfuse_prompts(Write(), ttl=0)
    runner = Runner(told(), tracing=None, prompts=live)
    await runner.run(Write(), INPUT)
    server.close()
    with anyio.fail_after(60):
        while not warned(caplog):
            assert said(await runner.run(Write(), INPUT)) == TUNED
    for _ in range(20):
        assert said(await runner.run(Write(), INPUT)) == TUNED
    assert len(warned(caplog)) == 1
