"""Evaluate a graph on examples, twice, and ask whether the second prompt is really better.

It needs no key and no network: the model is a script. Put a real one in its place (`model="openai:gpt-5-mini"`).
"""

import asyncio

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Example, Graph, Prompts, Run, Score, Stage
from stagegraph.optimize import compare, evaluate


def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """A model that finds the words of praise it was told about."""
    text = " ".join(str(part.content) for part in messages[-1].parts if isinstance(part, UserPromptPart))
    known = {"great", "love"}
    if "mild praise" in (info.instructions or ""):
        known |= {"fine", "works"}
    return ModelResponse([TextPart("good" if known & set(text.lower().split()) else "bad")])


class Mood(Graph[str, str]):
    """What a customer thinks."""

    judge = Stage(str, Agent(instructions="Is the customer happy? Answer good or bad."))

    async def flow(self, text: str) -> str:
        return await self.judge(text)


def right(example: Example[str], run: Run[str, str]) -> Score:
    """1 for the right answer; otherwise a note at the call that gave the wrong one."""
    if run.output == example.expected:
        return Score(1.0)
    call = run.call("judge")
    return Score(0.0, notes=[call.note(f"This is {example.expected}, not {run.output}: {example.input}")])


TEXTS = ["I love it", "It works", "It is fine", "It broke", "Great", "Too slow", "I want my money back", "Works for me"]
HAPPY = {"I love it", "It works", "It is fine", "Great", "Works for me"}
EXAMPLES = [
    Example(f"{text} {place}", expected="good" if text in HAPPY else "bad", id=f"{text} {place}")
    for place in range(5)
    for text in TEXTS
]


async def main() -> None:
    """Evaluate the code's text and another one, and compare."""
    model = FunctionModel(answer)
    before = await evaluate(Mood(), right, EXAMPLES, model=model)
    print(before.table())
    better = Prompts.of(Mood()).replace({"judge": "Is the customer happy? Answer good or bad; mild praise is good."})
    after = await evaluate(Mood(), right, EXAMPLES, model=model, prompts=better)
    print()
    print(compare(before, after))


if __name__ == "__main__":
    asyncio.run(main())
