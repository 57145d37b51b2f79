"""A graph in Pydantic AI's own front ends, over real HTTP: stages as they run, the answer, failures, and leaving."""

from __future__ import annotations

import importlib.util
import json
import uuid
from collections.abc import Iterator
from typing import Any

import anyio
import httpx
import pytest
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.ui.vercel_ai import VercelAIAdapter
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from scripted import asked, fails
from serving import Gate, serving
from stagegraph import Graph, Runner, Stage, step
from stagegraph.journal import MemoryJournal, RunFilter

SECRET = "the-words-of-a-model"


def gated(gate: Gate) -> FunctionModel:
    async def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        await gate.wait()
        return ModelResponse([TextPart(asked(messages).upper())])

    return FunctionModel(answer)


@step
async def trim(text: str) -> str:
    return text.strip()


class Loud(Graph[str, str]):
    """Trim, then shout."""

    trim = trim
    shout = Stage(str, Agent(instructions=SECRET))

    async def flow(self, text: str) -> str:
        return await self.shout(await self.trim(text))


def ag_ui(agent: Agent[Any, str]) -> Starlette:
    from pydantic_ai.ui.ag_ui import AGUIAdapter

    async def run(request: Request) -> Response:
        return await AGUIAdapter.dispatch_request(request, agent=agent)

    return Starlette(routes=[Route("/", run, methods=["POST"])])


def vercel(agent: Agent[Any, str]) -> Starlette:
    async def run(request: Request) -> Response:
        return await VercelAIAdapter.dispatch_request(request, agent=agent, sdk_version=6)

    return Starlette(routes=[Route("/", run, methods=["POST"])])


def body(front: str, text: str) -> dict[str, Any]:
    if front == "vercel":
        message = {"id": "u1", "role": "user", "parts": [{"type": "text", "text": text}]}
        return {"trigger": "submit-message", "id": "chat", "messages": [message]}
    message = {"id": "u1", "role": "user", "content": text}
    told = {"state": None, "tools": [], "context": [], "forwardedProps": None}
    return {"threadId": "t", "runId": "r", "messages": [message], **told}


each_front = pytest.mark.parametrize(
    "front",
    [
        "vercel",
        pytest.param(
            "ag_ui",
            marks=pytest.mark.skipif(importlib.util.find_spec("ag_ui") is None, reason="ag-ui-protocol is missing"),
        ),
    ],
)
APPS = {"vercel": vercel, "ag_ui": ag_ui}


def chunks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: {"):
            yield json.loads(line.removeprefix("data: "))


def text_of(events: list[dict[str, Any]]) -> str:
    return "".join(e["delta"] for e in events if e["type"] in {"text-delta", "TEXT_MESSAGE_CONTENT"})


@each_front
def test_stages_are_shown_while_they_run(front: str):
    """What is done is told before the next stage has its answer; the output is the text at the end."""
    gate = Gate()
    with (
        serving(APPS[front](Loud().as_agent(runner=Runner(gated(gate))))) as url,
        httpx.Client(timeout=30) as client,
        client.stream("POST", url, json=body(front, " hi ")) as response,
    ):
        assert response.status_code == 200
        reading, seen = chunks(response), list[dict[str, Any]]()
        while not all(any(word in json.dumps(event) for event in seen) for word in ("succeeded", "shout")):
            seen.append(next(reading))
        assert gate.entered.acquire(timeout=30)
        gate.opened.set()
        seen += reading
    assert text_of(seen) == "HI"
    assert seen[-1]["type"] in {"finish", "RUN_FINISHED"}
    assert SECRET not in json.dumps(seen)


@each_front
def test_a_failure_says_where_and_no_more(front: str):
    """An exception may quote a prompt or an answer: people see the place, friends (`errors=True`) its words."""
    for errors in (False, True):
        agent = Loud().as_agent(runner=Runner(fails(RuntimeError(SECRET))), errors=errors)
        with serving(APPS[front](agent)) as url:
            text = httpx.post(url, json=body(front, "hi"), timeout=30).text
        assert ("stage `shout` failed" if errors else "Loud failed at `shout`") in text
        assert (SECRET in text) is errors
        assert "Traceback" not in text


@each_front
def test_a_client_that_leaves_ends_the_run(front: str):
    """Nobody pays for an answer that nobody reads."""
    gate, journal = Gate(), MemoryJournal()
    with serving(APPS[front](Loud().as_agent(runner=Runner(gated(gate), journal=journal)))) as url:
        with httpx.Client(timeout=30) as client, client.stream("POST", url, json=body(front, "hi")) as response:
            reading = chunks(response)
            next(reading)
            assert gate.entered.acquire(timeout=30)
        assert gate.cancelled.wait(30)
    [row] = anyio.run(journal.runs, RunFilter())
    assert row.status == "cancelled"


@pytest.mark.skipif(importlib.util.find_spec("fasta2a") is None, reason="fasta2a is missing")
@pytest.mark.parametrize("works", [True, False])
def test_a2a_runs_a_graph(works: bool):
    """A message becomes a task; the output is its artefact, and a failure is a failed task without words."""
    from fasta2a.pydantic_ai import agent_to_a2a

    model = fails(then="HELLO") if works else fails(RuntimeError(SECRET))
    app = agent_to_a2a(Loud().as_agent(runner=Runner(model)))
    with serving(app) as url, httpx.Client(base_url=url, timeout=30) as client:
        assert client.get("/.well-known/agent-card.json").json()["name"] == "loud"

        def call(method: str, params: dict[str, Any]) -> dict[str, Any]:
            answer = client.post("/", json={"jsonrpc": "2.0", "id": "1", "method": method, "params": params}).json()
            assert "error" not in answer, answer
            return answer["result"].get("task", answer["result"])

        part = {"kind": "text", "text": " hi "}
        message = {"role": "user", "kind": "message", "messageId": uuid.uuid4().hex, "parts": [part]}
        task = call("message/send", {"message": message})
        while task["status"]["state"] not in {"completed", "failed"}:
            task = call("tasks/get", {"id": task["id"]})
    assert task["status"]["state"] == ("completed" if works else "failed")
    assert SECRET not in json.dumps(task)
    if works:
        assert task["artifacts"][0]["parts"][0]["text"] == "HELLO"
