"""Customer reviews in, a digest out: split, then sentiment and extraction per review, then counts and quotes."""

import re
from collections import Counter
from typing import Literal

from pydantic import BaseModel, Field
from pydantic_ai import Agent

from stagegraph import Graph, Stage, fan_out, gather, step


class Sentiment(BaseModel):
    """How a customer feels."""

    sentiment: Literal["positive", "negative"]


class Rating(BaseModel):
    """Who wrote a review and what they gave."""

    customer: str
    stars: int


class Judged(BaseModel):
    """One review with what two stages made of it."""

    review: str
    sentiment: Sentiment
    rating: Rating


class Quote(BaseModel):
    """What a customer said."""

    customer: str
    stars: int
    text: str


class Digest(BaseModel):
    """All reviews at a glance: how many, how they lean, and the words behind it."""

    reviews: int
    positive: int
    negative: int
    stars: dict[int, int] = Field(description="How many reviews gave how many stars.")
    praise: list[Quote]
    complaints: list[Quote]


_HEADING = re.compile(r"^#{1,6}\s.*$", re.MULTILINE)
_RULE = re.compile(r"^\s*(?:-{3,}|\*{3,}|_{3,})\s*$", re.MULTILINE)
_BULLET = re.compile(r"^\s*(?:[-*+]|\d+[.)])\s+", re.MULTILINE)


@step
async def split(text: str) -> list[str]:
    """One review per list item, or per paragraph where there is no list; headings and rules are left out."""
    plain = _RULE.sub("\n\n", _HEADING.sub("\n\n", text.replace("\r\n", "\n")))
    parts = _BULLET.split(plain)[1:] if _BULLET.search(plain) else re.split(r"\n\s*\n", plain)
    reviews = (" ".join(part.lstrip("> ").split()) for part in parts)
    return [review for review in reviews if review]


@step
async def summarize(judged: list[Judged]) -> Digest:
    """Count, and keep the quotes: plain code, so the numbers are right whatever a model says."""
    quotes: dict[str, list[Quote]] = {"positive": [], "negative": []}
    for one in judged:
        quote = Quote(customer=one.rating.customer, stars=one.rating.stars, text=one.review)
        quotes[one.sentiment.sentiment].append(quote)
    return Digest(
        reviews=len(judged),
        positive=len(quotes["positive"]),
        negative=len(quotes["negative"]),
        stars=dict(sorted(Counter(one.rating.stars for one in judged).items())),
        praise=quotes["positive"],
        complaints=quotes["negative"],
    )


def as_review(text: str) -> str:
    """How a review is put before a small model."""
    return f"Review: {text}"


class FeedbackDigest(Graph[str, Digest]):
    """A text or Markdown file with any number of reviews -> counts, and the quotes behind them."""

    split = split
    sentiment = Stage(
        str,
        Agent(
            output_type=Sentiment,
            instructions=(
                "Classify the sentiment of the review.\n"
                "Review: The lid leaks and the color is ugly. 2 stars.\nnegative\n"
                "Review: I love it.\npositive\n"
                "Review: Stopped working after an hour, 1 star.\nnegative"
            ),
        ),
        render=as_review,
    )
    extract = Stage(
        str,
        Agent(
            output_type=Rating,
            instructions="Extract the name of the customer and the number of stars from the review.",
        ),
        render=as_review,
    )
    summarize = summarize

    async def judge(self, review: str) -> Judged:
        """Both stages at once, for one review."""
        sentiment, rating = await gather(self.sentiment(review), self.extract(review))
        return Judged(review=review, sentiment=sentiment, rating=rating)

    async def flow(self, text: str) -> Digest:
        reviews = await self.split(text)
        return await self.summarize(await fan_out(self.judge, reviews))
