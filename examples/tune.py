"""Tune two stages of a graph whose examples know what the prompts do not say yet.

It needs no key and no network: the models are scripts. With real ones it is
`tune(..., model="openai:gpt-5-mini", reflection_model="openai:gpt-5")`, and the rest stays as it is.
"""

import asyncio
import re

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Example, Graph, Note, Run, Score, Stage
from stagegraph.optimize import Budget, tune


def asked(messages: list[ModelMessage]) -> str:
    """What the model was asked last."""
    return " ".join(str(part.content) for part in messages[-1].parts if isinstance(part, UserPromptPart))


def student(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """A model that does what its instructions say, and nothing that they do not say."""
    rules, text = info.instructions or "", asked(messages)
    if "first word" in rules:
        text = text.split()[0]
    if "capital letters" in rules:
        text = text.upper()
    return ModelResponse([TextPart(text)])


def teacher(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """A model that writes what the feedback asks for into the instructions."""
    question = asked(messages)
    now = re.search(r"```\n(.*?)\n```", question, re.DOTALL)
    wishes = dict.fromkeys(re.findall(r"^- (.*)$", question, re.MULTILINE))
    return ModelResponse([TextPart(f"```\n{now[1] if now else ''} {' '.join(wishes)}\n```")])


class Headline(Graph[str, str]):
    """The subject of a sentence, as a headline."""

    find = Stage(str, Agent(instructions="Find the subject."))
    shout = Stage(str, Agent(instructions="Make it a headline."))

    async def flow(self, text: str) -> str:
        return await self.shout(await self.find(text))


def metric(example: Example[str], run: Run[str, str]) -> Score:
    """All or nothing; but each call that went wrong is told so, and that is what the search follows."""
    find, shout = run.call("find"), run.call("shout")
    notes: list[Note] = []
    if " " in find.output:
        notes.append(find.note("Give the first word alone."))
    if shout.output != shout.output.upper():
        notes.append(shout.note("Use capital letters."))
    return Score(float(run.output == example.expected), notes=notes)


def examples(*names: str) -> list[Example[str]]:
    """Sentences, and what should come out."""
    return [Example(f"{name} bought a boat", expected=name.upper()) for name in names]


async def main() -> None:
    """Search, and show what was found and whether it is better on examples that had no part in the search."""
    result = await tune(
        Headline(),
        metric,
        train=examples("Anna", "Bert", "Carl", "Dora"),
        val=examples("Emil", "Fritz", "Gerda"),
        test=examples("Hans", "Ida", "Jens", "Karin", "Lars", "Maja"),
        budget=Budget(runs=60),
        model=FunctionModel(student),
        reflection_model=FunctionModel(teacher),
        callback=lambda event, data: print(event, dict(data)) if event in {"proposing", "validated"} else None,
    )
    print(result.prompts.diff(result.found.seed))
    print(result)


if __name__ == "__main__":
    asyncio.run(main())
