"""Measure both stages on `examples.jsonl`: python graphs/feedback_digest/measure.py [dev|test] [MODEL]."""

import asyncio
import json
import math
import sys
from pathlib import Path
from typing import Any

from graph import FeedbackDigest, Rating, Sentiment
from stagegraph import Graph, Runner, fan_out, gather


class Labels(Graph[list[str], list[tuple[Sentiment, Rating]]]):
    """The two stages of the digest, without the rest."""

    sentiment = FeedbackDigest.sentiment
    extract = FeedbackDigest.extract

    async def both(self, review: str) -> tuple[Sentiment, Rating]:
        return await gather(self.sentiment(review), self.extract(review))

    async def flow(self, reviews: list[str]) -> list[tuple[Sentiment, Rating]]:
        return await fan_out(self.both, reviews)


def interval(right: int, total: int) -> str:
    """A proportion with its 95 % Wilson interval."""
    z, p = 1.96, right / total
    middle = (p + z * z / (2 * total)) / (1 + z * z / total)
    half = z * math.sqrt(p * (1 - p) / total + z * z / (4 * total * total)) / (1 + z * z / total)
    return f"{right}/{total} = {p:.2f} ({middle - half:.2f} to {middle + half:.2f})"


async def main(split: str, model: str) -> None:
    rows: list[dict[str, Any]] = [
        row
        for line in Path(__file__).with_name("examples.jsonl").read_text("utf-8").splitlines()
        for row in [json.loads(line)]
        if row["split"] == split
    ]
    run = await Runner(model).run(Labels(), [row["input"] for row in rows])
    pairs = list(zip(run.output, (row["expected"] for row in rows), strict=True))
    moods = [sentiment.sentiment == want["sentiment"] for (sentiment, _), want in pairs]
    names = [rating.customer.strip().casefold() == want["customer"].casefold() for (_, rating), want in pairs]
    stars = [rating.stars == want["stars"] for (_, rating), want in pairs]
    both = [a and b for a, b in zip(names, stars, strict=True)]
    for label, right in (("sentiment", moods), ("customer and stars", both), ("customer", names), ("stars", stars)):
        print(f"{label:20}{interval(sum(right), len(right))}")


if __name__ == "__main__":
    asyncio.run(main(*[*sys.argv[1:], *["test", "local:smollm2"][len(sys.argv) - 1 :]]))
