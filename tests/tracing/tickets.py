"""What the tests of data sets share: graphs that sort tickets, and examples from both sources at once."""

from __future__ import annotations

import re
from typing import Any

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from recorded_runs import Desk

from scripted import asked
from stagegraph import Graph, Stage, fan_out
from stagegraph.data.examples import Example
from stagegraph.tracing import RunSource

__all__ = ["MODEL", "A", "B", "C", "Desks", "Single", "Ticket", "Triage", "both"]


class Ticket(BaseModel):
    text: str


class Triage(BaseModel):
    team: str
    urgent: bool = False


class Desks(Graph[list[Ticket], list[Triage]]):
    sort = Stage(Ticket, Agent(output_type=Triage))

    async def flow(self, tickets: list[Ticket]) -> list[Triage]:
        return await fan_out(self.sort, tickets)


class Single(Graph[Ticket, Triage]):
    sort = Stage(Ticket, Agent(output_type=Triage))

    async def flow(self, ticket: Ticket) -> Triage:
        if ticket.text == "bad":
            raise ValueError("a bad ticket")
        return await self.sort(ticket)


def sorts(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    return ModelResponse(
        [ToolCallPart(info.output_tools[0].name, {"team": re.findall(r"<text>(.*)</text>", asked(messages))[-1]})]
    )


MODEL = FunctionModel(sorts)
A, B, C = (Ticket(text=text) for text in "abc")


async def both(desk: Desk, graph: Any = None, **which: Any) -> tuple[list[Example[Any]], RunSource]:
    """The examples that both sources give alike, and one of the sources."""
    sources = desk.sources()
    journal, langfuse = [await source.examples(graph or Desks(), **which) for source in sources]
    assert [one.data() for one in journal] == [one.data() for one in langfuse]
    assert sources[0].skipped == sources[1].skipped
    return langfuse, sources[1]
