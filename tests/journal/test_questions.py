"""Suspended runs: every question has its own answers, which come one by one, are kept, and fit what was asked."""

from __future__ import annotations

import pytest
from pydantic_ai import Agent, DeferredToolRequests, ToolDenied
from pydantic_ai.exceptions import CallDeferred
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from forked import python
from stagegraph import Graph, LimitError, Limits, ReplayError, Run, RunError, Runner, Stage
from stagegraph.journal import Journal, MemoryJournal, SqliteJournal


def turn(messages: list[ModelMessage]) -> int:
    return sum(isinstance(message, ModelResponse) for message in messages)


def results(messages: list[ModelMessage]) -> list[str]:
    return [str(part.content) for m in messages for part in m.parts if isinstance(part, ToolReturnPart)]


class Desk:
    """An agent that makes the given calls, turn by turn, and then says what came of them."""

    def __init__(self, *turns: list[ToolCallPart]) -> None:
        self.turns = turns
        self.asked: list[int] = []
        self.deleted: list[str] = []
        self.away = 0
        """How many requests fail from now on."""
        agent: Agent[None, str | DeferredToolRequests] = Agent(name="tidy", output_type=[str, DeferredToolRequests])
        agent.tool_plain(requires_approval=True)(self.delete)
        agent.tool_plain(self.price)

        class Tidy(Graph[str, str]):
            tidy = Stage(str, agent)

            async def flow(self, text: str) -> str:
                return await self.tidy(text)

        self.graph = Tidy()
        self.journal: Journal = MemoryJournal()

    def delete(self, path: str) -> str:
        """Delete."""
        self.deleted.append(path)
        return f"{path} gone"

    def price(self, item: str) -> str:
        """Ask the shop."""
        raise CallDeferred

    def answer(self, messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        number = turn(messages)
        self.asked.append(number)
        if self.away:
            self.away -= 1
            raise ConnectionError("away")
        if number < len(self.turns):
            return ModelResponse([*self.turns[number]])
        return ModelResponse([TextPart(", ".join(results(messages)))])

    async def run(self) -> Run[str, str]:
        return await Runner(FunctionModel(self.answer), journal=self.journal).run(self.graph, "x", run_id="r")

    async def resume(self, answers: dict[str, object] | None = None, limits: Limits | None = None) -> Run[str, str]:
        runner = Runner(FunctionModel(self.answer), journal=self.journal)
        return await runner.resume("r", graph=self.graph, answers=answers, limits=limits)

    async def waits_for(self) -> list[str]:
        """What the run asks, as another process sees it."""
        return [one.id for one in (await self.resume()).pending]


def delete(path: str, id_: str) -> ToolCallPart:
    return ToolCallPart("delete", {"path": path}, tool_call_id=id_)


@pytest.mark.parametrize("ids", [("p", "q"), ("call_0", "call_0")])
async def test_an_agent_that_asks_twice_waits_for_the_second_answer(ids: tuple[str, str]) -> None:
    """The answer to the first question is none to the second, even where a provider gives both the same id."""
    desk = Desk([delete("p", ids[0])], [delete("q", ids[1])])
    await desk.run()
    run = await desk.resume({f"tidy:{ids[0]}": True})
    assert [one.args for one in run.pending] == [{"path": "q"}]
    for _ in range(2):
        run = await desk.resume()
        assert (run.status, [one.args for one in run.pending]) == ("suspended", [{"path": "q"}])
    run = await desk.resume({f"tidy:{ids[1]}": False})
    assert run.output == "p gone, The tool call was denied."
    assert desk.deleted == ["p"]
    assert desk.asked == [0, 1, 2]
    assert run.usage.requests == 3


@pytest.mark.parametrize("answer", ["yes", 1, None, {"approved": True}])
async def test_an_answer_that_does_not_fit_is_refused_and_changes_nothing(answer: object) -> None:
    """The error says what is expected, and the run still waits."""
    desk = Desk([delete("p", "p")])
    await desk.run()
    for given in ({"tidy:p": answer}, {"p": answer}, {"tidy": {"p": answer}}):
        with pytest.raises(ReplayError, match=r"`tidy:p` asks whether `delete` may be called.*True, False"):
            await desk.resume(given)
        row = await desk.journal.run("r")
        assert row is not None
        assert row.status == "suspended"
    assert (await desk.resume({"p": True})).output == "p gone"
    assert desk.asked == [0, 1]


async def test_two_people_answer_one_call_one_after_the_other() -> None:
    """The first answer is kept, what is open shrinks, and an answer that was given is final."""
    price = ToolCallPart("price", {"item": "c"}, tool_call_id="c")
    desk = Desk([delete("p", "p"), delete("q", "q"), price])
    await desk.run()
    run = await desk.resume({"tidy:p": True})
    assert (run.status, [one.id for one in run.pending]) == ("suspended", ["tidy:q", "tidy:c"])
    assert (await desk.waits_for(), desk.deleted) == (["tidy:q", "tidy:c"], [])
    with pytest.raises(ReplayError, match="no call asks `tidy:p`; open are: tidy:q, tidy:c"):
        await desk.resume({"tidy:p": False})
    await desk.resume({"tidy:c": "7 euros"})
    assert await desk.waits_for() == ["tidy:q"]
    run = await desk.resume({"tidy:q": ToolDenied("keep it")})
    assert run.output == "p gone, keep it, 7 euros"
    assert (desk.asked, desk.deleted, run.usage.requests) == ([0, 1], ["p"], 2)


@pytest.mark.parametrize("how", ["error", "limit"])
async def test_an_answered_run_that_is_interrupted_goes_on_after_the_answer(how: str) -> None:
    """Nobody is asked again: not the person, not the model, and the tool is not called twice."""
    desk = Desk([delete("p", "p")])
    await desk.run()
    desk.away = how == "error"
    with pytest.raises(RunError if how == "error" else LimitError):
        await desk.resume({"p": True}, limits=Limits(requests=0) if how == "limit" else None)
    assert desk.deleted == ["p"]
    desk.asked.clear()
    run = await desk.resume()
    assert (run.status, run.output) == ("succeeded", "p gone")
    assert (desk.asked, desk.deleted, run.usage.requests) == ([1], ["p"], 2)


async def test_a_second_question_outlives_an_error_after_the_first_answer() -> None:
    """Failed between two questions: the run goes on behind the first one and asks the second."""
    desk = Desk([delete("p", "p")], [delete("q", "q")])
    await desk.run()
    desk.away = 1
    with pytest.raises(RunError):
        await desk.resume({"p": True})
    assert await desk.waits_for() == ["tidy:q"]
    desk.away = 1
    with pytest.raises(RunError):
        await desk.resume({"q": True})
    assert (await desk.resume()).output == "p gone, q gone"
    assert desk.deleted == ["p", "q"]


KILLED = """
import asyncio, os, sys
from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel
from stagegraph import ReplayError, Runner, Stage
from stagegraph.journal import SqliteJournal

agent = Agent(name="tidy", output_type=[str, DeferredToolRequests])

@agent.tool_plain(requires_approval=True)
def delete(path: str) -> str:
    print("deleted", path, flush=True)
    return f"{path} gone"

def model(messages, info):
    number = sum(isinstance(message, ModelResponse) for message in messages)
    print("asked", number, flush=True)
    if number == 1 and sys.argv[2] == "answer":
        os.kill(os.getpid(), 9)
    return ModelResponse([TextPart("done")] if number else [ToolCallPart("delete", {"path": "p"}, tool_call_id="p")])

async def main():
    journal = SqliteJournal(sys.argv[1])
    runner, stage = Runner(FunctionModel(model), journal=journal), Stage(str, agent)
    if sys.argv[2] == "run":
        run = await runner.run(stage, "x", run_id="r")
    else:
        try:
            run = await runner.resume("r", graph=stage, answers={"answer": {"p": True}, "deny": {"p": False}}.get(sys.argv[2]))
        except ReplayError as error:
            print(error, flush=True)
            return
    print(run.status, flush=True)
    await journal.aclose()

asyncio.run(main())
"""


def test_an_answer_survives_a_kill(tmp_path: object) -> None:
    """A process that was killed after the answer: it cannot be given again, and the run goes on with it."""

    def lines(what: str) -> list[str]:
        return python("-c", KILLED, f"{tmp_path}/runs.db", what).stdout.splitlines()

    assert lines("run") == ["asked 0", "suspended"]
    assert lines("answer") == ["deleted p", "asked 1"]
    assert lines("deny") == ["no call asks `p`; open are: nothing"]
    assert lines("go on") == ["asked 1", "succeeded"]


async def test_a_question_is_kept_in_a_file(tmp_path: object) -> None:
    """Partial answers are rows like all others."""
    desk = Desk([delete("p", "p"), delete("q", "q")])
    desk.journal = SqliteJournal(f"{tmp_path}/runs.db")
    await desk.run()
    await desk.resume({"p": False})
    await desk.journal.aclose()
    desk.journal = SqliteJournal(f"{tmp_path}/runs.db")
    run = await desk.resume({"q": True})
    await desk.journal.aclose()
    assert run.output == "The tool call was denied., q gone"
