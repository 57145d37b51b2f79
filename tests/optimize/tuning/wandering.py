"""A search with many merges of candidates that are equally good; prints what it went through. Run as a program."""

from __future__ import annotations

import asyncio
import json
import zlib
from collections.abc import Sequence

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Example, Graph, Run, Score, Stage
from stagegraph.optimize import Budget, Proposal
from stagegraph.optimize.tuning.options import Options
from stagegraph.optimize.tuning.result import Candidate
from stagegraph.optimize.tuning.search import search


class Five(Graph[str, str]):
    a = Stage(str, Agent(instructions="a"))
    b = Stage(str, Agent(instructions="b"))
    c = Stage(str, Agent(instructions="c"))
    d = Stage(str, Agent(instructions="d"))
    e = Stage(str, Agent(instructions="e"))

    async def flow(self, text: str) -> str:
        return " ".join([await stage(text) for stage in (self.a, self.b, self.c, self.d, self.e)])


def lot(*facts: object) -> int:
    return zlib.crc32("|".join(map(str, facts)).encode())


async def student(messages: Sequence[ModelMessage], info: AgentInfo) -> ModelResponse:
    return ModelResponse([TextPart(info.instructions or "")])


async def metric(example: Example[str], run: Run[str, str]) -> Score:
    """How many stages have the example's number among their digits."""
    good = [text for text in run.output.split() if example.id[-1] in text[1:]]
    short = [call.note("short") for call in run.calls() if len(call.output) < 3]
    return Score(len(good) / 5, short or [run.calls()[lot(run.output, example.id) % 5].note("this one")])


def propose(proposal: Proposal) -> str:
    facts = proposal.text, sorted(proposal.tried), len(proposal.records)
    return proposal.text[0] + "".join(str(lot(*facts, place) % 6) for place in range(2))


async def main() -> None:
    train, val = ([Example(f"{kind}{n}", id=f"{kind}{n}") for n in range(6)] for kind in "tv")
    options = Options(
        budget=Budget(runs=150), seed=1, model=FunctionModel(student), proposer=propose, retry_delays=(), stagnation=60
    )
    found = await search(Five(), metric, train, val, options)
    assert found.error is None
    print(json.dumps([[found.spent.runs, found.spent.requests, found.prompts.digest], *map(way, found.candidates)]))


def way(one: Candidate) -> list[object]:
    return [sorted(one.texts.items()), one.parents]


if __name__ == "__main__":
    asyncio.run(main())
