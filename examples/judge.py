"""Let a model judge the runs of a graph by a rubric, and read at which call it found what.

It needs no key and no network: both models are scripts. Put real ones in their place, a stronger one for the judge:
`judge("openai:gpt-5", ...)` and `evaluate(..., model="openai:gpt-5-mini")`.
"""

import asyncio
import re

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Example, Graph, Stage, fan_out
from stagegraph.optimize import evaluate, judge


class Answers(Graph[list[str], list[str]]):
    """What to answer to each letter."""

    reply = Stage(str, Agent(instructions="Answer the customer."))

    async def flow(self, letters: list[str]) -> list[str]:
        return await fan_out(self.reply, letters)


def clerk(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """Instead of a real model: it is polite to whoever is."""
    letter = str(messages[-1].parts[-1])
    return ModelResponse([TextPart("Gladly, we will see to it." if "please" in letter else "No.")])


def critic(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Instead of a strong model: it finds every curt answer, in the form that it is asked for."""
    calls = re.findall(r'key "([^"]+)".*?<answered-\w+>\\n(.*?)\\n</answered', str(messages[-1]), re.DOTALL)
    curt = [key for key, answer in calls if answer == "No."]
    verdict = {
        "reason": f"{len(curt)} of {len(calls)} answers are curt.",
        "notes": [{"target": key, "text": "Curt: say what happens next."} for key in curt],
        "scores": {"c1_polite": 1 - len(curt) / max(1, len(calls)), "c2_helpful": 0.5},
    }
    return ModelResponse([ToolCallPart(info.output_tools[0].name, verdict)])


async def main() -> None:
    """Two criteria, the first of which counts three times as much."""
    grade = judge(
        FunctionModel(critic),
        {"polite": "Every answer is one that you would like to get.", "helpful": "It says what happens next."},
        weights={"polite": 3},
        name="service",
    )
    letters = [["My parcel, please?", "Where is it!"], ["Could you please help?"]]
    examples = [Example(one, id=one[0]) for one in letters]
    report = await evaluate(Answers(), grade, examples, model=FunctionModel(clerk))
    print(report.table())
    for row in report.rows:
        print(f"\n{row.example} {row.score:.3f} {row.objectives}")
        for target, text, _ in row.notes:
            print(f"- {target or 'the run'}: {text}")


if __name__ == "__main__":
    asyncio.run(main())
