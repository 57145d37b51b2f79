"""A run that fails in the middle and is finished later: nothing that was answered is asked again."""

import asyncio
import tempfile
from pathlib import Path

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Graph, RunError, Runner, Stage, fan_out
from stagegraph.journal import SqliteJournal


class Summaries(Graph[list[str], list[str]]):
    summarize = Stage(str, Agent(instructions="Summarize."))

    async def flow(self, texts: list[str]) -> list[str]:
        return await fan_out(self.summarize, texts, limit=1)


asked: list[str] = []
broken = True


def model(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """A scripted model that cannot answer the third question at first."""
    text = str(messages[-1].parts[0].content)  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType, reportUnknownArgumentType]
    asked.append(text)
    if text == "three" and broken:
        raise ConnectionError("the provider is away")
    return ModelResponse([TextPart(f"summary of {text}")])


async def main(folder: Path) -> None:
    global broken  # noqa: PLW0603
    journal = SqliteJournal(folder / "runs.db")
    runner = Runner(FunctionModel(model), journal=journal)
    try:
        await runner.run(Summaries(), ["one", "two", "three", "four"], run_id="demo")
    except RunError as error:
        print(error)
    broken = False
    run = await runner.resume("demo")
    print(run.output)
    print("asked:", asked)
    await journal.aclose()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
