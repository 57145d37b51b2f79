"""An agent asks before it acts: the run is suspended, and continues with the answer."""

import asyncio
import tempfile
from pathlib import Path

from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Graph, Runner, Stage
from stagegraph.journal import SqliteJournal

agent = Agent(output_type=[str, DeferredToolRequests], instructions="Tidy up.")


@agent.tool_plain(requires_approval=True)
def delete(path: str) -> str:
    """Delete a file."""
    return f"{path} is gone"


class Tidy(Graph[str, str]):
    clean = Stage(str, agent)

    async def flow(self, request: str) -> str:
        return await self.clean(request)


def model(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """A scripted model that wants to delete a file and then reports."""
    results = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    if not results:
        return ModelResponse([ToolCallPart("delete", {"path": "old.log"})])
    return ModelResponse([TextPart(f"Done: {results[-1].content}")])


async def main(folder: Path) -> None:
    journal = SqliteJournal(folder / "runs.db")
    runner = Runner(FunctionModel(model), journal=journal)
    run = await runner.run(Tidy(), "Remove what nobody needs.")
    question = run.pending[0]
    print(run.status, "-", question.tool, question.args)
    run = await runner.resume(run.id, answers={question.id: True})  # another process could do this
    print(run.status, "-", run.output)
    await journal.aclose()


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(main(Path(folder)))
