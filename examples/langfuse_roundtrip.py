"""Show runs in Langfuse, score them, read them back typed, and make a data set of what people corrected.

Needs a Langfuse server (4.59 or newer) and its keys: LANGFUSE_PUBLIC_KEY, LANGFUSE_SECRET_KEY, LANGFUSE_BASE_URL.
"""

import asyncio
import json
from datetime import timedelta

from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel

from stagegraph import Graph, Prompts, Runner, Stage, fan_out, feedback
from stagegraph.journal import MemoryJournal
from stagegraph.tracing import LangfuseRuns, LangfuseTracing, deploy_prompts, langfuse_prompts, to_dataset


class Ticket(BaseModel):
    text: str


class Triage(BaseModel):
    team: str
    urgent: bool


class Desk(Graph[list[Ticket], list[Triage]]):
    """Sort tickets, all at once."""

    sort = Stage(Ticket, Agent(output_type=Triage, instructions="Say which team is to answer, and whether it hurries."))

    async def flow(self, tickets: list[Ticket]) -> list[Triage]:
        return await fan_out(self.sort, tickets)


async def main() -> None:
    tracing = LangfuseTracing(environment="example")
    desk = Desk()
    deploy_prompts(Prompts.of(desk), desk, label="production", message="what the code says")

    model = TestModel(custom_output_args={"team": "billing", "urgent": False})  # any Pydantic AI model
    async with Runner(model, tracing=tracing, journal=MemoryJournal(), prompts=langfuse_prompts(desk)) as runner:
        run = await runner.run(
            desk, [Ticket(text="I was charged twice."), Ticket(text="The site is down!")], tags=("demo",)
        )
        await feedback(run.id, "helpful", 0.5, comment="one of two", runner=runner)
        right = Triage(team="operations", urgent=True)
        await feedback(run.id, "correction", right.model_dump_json(), key="sort[1]", runner=runner)
    await tracing.flush()

    source = LangfuseRuns()
    again = await source.run(run.id, desk, wait=60)  # a server takes a while to show what it got
    for call in again.calls(Desk.sort):
        print(call.key, call.input.text, "->", call.output.team)
    examples = await source.examples(desk, stage=Desk.sort, since=timedelta(hours=1), tags=["demo"])
    for example in examples:
        print(json.dumps(example.data()["expected"]), "corrected" if example.metadata["corrected"] else "as it was")
    print(await to_dataset(examples, "triage"), "examples in the data set; skipped:", dict(source.skipped))


if __name__ == "__main__":
    asyncio.run(main())
