"""The example that the README opens with: a typed fan-out on the embedded model."""

from typing import Literal

from pydantic import BaseModel
from pydantic_ai import Agent

from stagegraph import Graph, Stage, fan_out


class Sentiment(BaseModel):
    sentiment: Literal["positive", "negative"]


class Reviews(Graph[list[str], list[Sentiment]]):
    judge = Stage(str, Agent(output_type=Sentiment, instructions="Classify the sentiment of the review."))

    async def flow(self, reviews: list[str]) -> list[Sentiment]:
        return await fan_out(self.judge, reviews)


if __name__ == "__main__":
    run = Reviews().run_sync(["Great soup!", "The waiter was rude."], model="local:smollm2")
    print([verdict.sentiment for verdict in run.output])
    print([call.key for call in run.calls(Reviews.judge)], run.usage.requests, "requests")
