"""What the tests of deployed prompts share: a graph, its prompts, and a model that says what it was told."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from langfuse_server import LangfuseServer
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Graph, Prompt, Prompts, Stage

__all__ = [
    "CODE",
    "INPUT",
    "MINE",
    "PATHS",
    "PROMPTS",
    "TUNED",
    "Inner",
    "Text",
    "Write",
    "labels",
    "said",
    "told",
    "warned",
]

PROMPTS = "v2/prompts"


class Text(BaseModel):
    words: str


class Inner(Graph[Text, str]):
    polish = Stage(Text, Agent(instructions="Polish it."))

    async def flow(self, text: Text) -> str:
        return await self.polish(text)


class Write(Graph[Text, str]):
    draft = Stage(Text, Agent(instructions="Draft it."))
    inner = Inner()

    async def flow(self, text: Text) -> str:
        return await self.inner(Text(words=await self.draft(text)))


PATHS = ["draft", "inner.polish"]
MINE = Prompts({path: Prompt(f"{path}, tuned.") for path in PATHS})
INPUT = Text(words="w")


def told() -> FunctionModel:
    """A model that answers with the instructions it was given."""

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        requests = [one for one in messages if isinstance(one, ModelRequest)]
        return ModelResponse([TextPart(requests[-1].instructions or "")])

    return FunctionModel(answer)


def said(run: Any) -> list[str]:
    """What each stage was told."""
    return [call.output for call in run.calls()]


CODE, TUNED = ["Draft it.", "Polish it."], ["draft, tuned.", "inner.polish, tuned."]


def labels(server: LangfuseServer, path: str = "draft") -> dict[str, int]:
    return {label: row["version"] for row in server.prompts[f"Write/{path}"] for label in row["labels"]}


def warned(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said about prompts; a thread of an earlier test may still have something to say about spans."""
    records = [record for record in caplog.records if record.levelno >= logging.WARNING]
    return [record.getMessage() for record in records if record.module == "prompts"]
