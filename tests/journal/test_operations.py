"""Inside one stage call: after a crash, an error or a timeout only what was not recorded is asked or run again."""

from __future__ import annotations

import json
from pathlib import Path

import anyio
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from forked import python
from scripted import JumpingLoop
from stagegraph import Run, RunError, Runner, Stage
from stagegraph.journal import Journal, MemoryJournal, OpRow

TURNS = 2


def turn(messages: list[ModelMessage]) -> int:
    return sum(isinstance(message, ModelResponse) for message in messages)


class Talk:
    """An agent that calls a tool in each of two turns and then answers; it keeps what was really asked and run."""

    def __init__(self, agent: Agent[None, str] | None = None, *, same_ids: bool = False, **options: object) -> None:
        self.asked: list[int] = []
        self.ran: list[int] = []
        self.fails_at: dict[int, int] = {}
        """Turn -> how often its request fails."""
        self.same_ids = same_ids
        agent = agent or Agent(name="talk")
        agent.tool_plain(self.look)
        self.stage: Stage[str, str] = Stage(str, agent, **options)  # type: ignore[arg-type]
        self.journal: Journal = MemoryJournal()

    def look(self, number: int) -> str:
        """Look."""
        self.ran.append(number)
        return f"seen {number}.{len(self.ran)}"

    def answer(self, messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        number = turn(messages)
        self.asked.append(number)
        if self.fails_at.get(number, 0) > 0:
            self.fails_at[number] -= 1
            raise ConnectionError("503")
        if number < TURNS:
            id_ = {"tool_call_id": "call_0"} if self.same_ids else {}
            return ModelResponse([ToolCallPart("look", {"number": 0 if self.same_ids else number}, **id_)])
        results = [part.content for m in messages for part in m.parts if isinstance(part, ToolReturnPart)]
        return ModelResponse([TextPart(" ".join(map(str, results)))])

    def take(self) -> tuple[list[int], list[int]]:
        """What was asked and run since the last time."""
        taken = (self.asked, self.ran)
        self.asked, self.ran = [], []
        return taken

    async def run(self) -> Run[str, str]:
        return await Runner(FunctionModel(self.answer), journal=self.journal).run(self.stage, "x", run_id="r")

    async def resume(self) -> Run[str, str]:
        runner = Runner(FunctionModel(self.answer), journal=self.journal)
        return await runner.resume("r", graph=self.stage)


KILLED = """
import asyncio, os, sys
from dataclasses import dataclass
from datetime import date, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from uuid import UUID
from pydantic import BaseModel
from pydantic_ai import Agent, BinaryContent, ToolReturn
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel
from stagegraph import Runner, Stage
from stagegraph.journal import SqliteJournal

class Colour(Enum):
    RED = "red"

class Model(BaseModel):
    when: datetime

@dataclass
class Data:
    price: Decimal

VALUES = [
    datetime(2020, 1, 1), date(2020, 1, 1), Decimal("1.10"), UUID(int=7), Colour.RED, Path("/x"), b"abc", b"\\xff\\xfe",
    "half \\ud83d a pair", float("inf"), (1, 2), {1: datetime(2020, 1, 1)}, Model(when=datetime(2020, 1, 1)),
    Data(Decimal("1")), {"kind": "tool-return", "x": 1}, {"kind": "binary"}, ToolReturn(datetime(2020, 1, 1)), None,
]
agent = Agent(name="talk")

@agent.tool_plain
def value(index: int):
    print("tool", index, flush=True)
    return VALUES[index]

def model(messages, info):
    number = sum(isinstance(message, ModelResponse) for message in messages)
    parts = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    shown = ascii([part.model_response_str() for part in parts])
    print("ask", number, flush=True)
    if number == 2:
        print("shown", shown.replace("\\\\ud83d", "?"), flush=True)
        if sys.argv[2] == "run":
            os.kill(os.getpid(), 9)
        return ModelResponse([TextPart("done")])
    return ModelResponse([ToolCallPart("value", {"index": index}) for index in range(number, len(VALUES), 2)])

async def main():
    journal = SqliteJournal(sys.argv[1])
    runner, stage = Runner(FunctionModel(model), journal=journal), Stage(str, agent)
    await (runner.run(stage, "x", run_id="r") if sys.argv[2] == "run" else runner.resume("r", graph=stage))
    await journal.aclose()

asyncio.run(main())
"""


async def test_whatever_a_tool_returns_is_recalled_after_a_kill(tmp_path: Path) -> None:
    """Dates, decimals, bytes, enums, broken text: neither the tool nor the request after it is repeated.

    And the model is shown the same, whether the result was computed or recalled.
    """
    first = python("-c", KILLED, tmp_path / "runs.db", "run").stdout
    resumed = python("-c", KILLED, tmp_path / "runs.db", "resume")
    assert [line for line in first.splitlines() if line.startswith("ask")] == ["ask 0", "ask 1", "ask 2"]
    assert resumed.stdout.splitlines() == ["ask 2", first.splitlines()[-1]], resumed.stderr


async def test_a_provider_that_uses_the_same_ids_again_gets_every_result_in_its_place() -> None:
    """`call_0` in every turn, with the same arguments: three different results stay three."""
    talk = Talk(same_ids=True)
    talk.fails_at = {TURNS: 1}
    with pytest.raises(RunError):
        await talk.run()
    assert talk.take() == ([0, 1, 2], [0, 0])
    run = await talk.resume()
    assert talk.take() == ([2], [])
    assert run.output == "seen 0.1 seen 0.2"


async def test_a_result_in_a_journal_from_before_turns_were_numbered_is_found(sqlite: Journal) -> None:
    """Its name was the call's id alone."""
    talk = Talk()
    talk.journal = sqlite
    talk.fails_at = {TURNS: 1}
    with pytest.raises(RunError):
        await talk.run()
    talk.take()
    old = MemoryJournal()
    row = await sqlite.run("r")
    assert row is not None
    await old.put(row, *await sqlite.calls("r"))
    for op in await sqlite.ops("r"):
        kind, _, rest = op.op.partition(":")
        name = op.op if kind == "request" else f"{kind}:{rest.partition(':')[0]}"
        values = {field: getattr(op, field) for field in ("run_id", "key", "identity", "digest", "payload")}
        await old.put(OpRow(op=name, **values))
    talk.journal = old
    assert (await talk.resume()).output == "seen 0.1 seen 1.2"
    assert talk.take() == ([2], [])


async def test_after_an_error_only_the_request_that_failed_is_made_again() -> None:
    """The third request fails: the first two and their tools are recalled, however often the run is resumed."""
    talk = Talk()
    talk.fails_at = {TURNS: 2}
    with pytest.raises(RunError):
        await talk.run()
    assert talk.take() == ([0, 1, 2], [0, 1])
    with pytest.raises(RunError):
        await talk.resume()
    assert talk.take() == ([2], [])
    run = await talk.resume()
    assert talk.take() == ([2], [])
    assert run.output == "seen 0.1 seen 1.2"
    assert (run.usage.requests, run.usage.tool_calls) == (3, 2)


async def test_a_tool_that_raised_is_run_again_and_nothing_else() -> None:
    """The model's request for it is recalled."""
    agent: Agent[None, str] = Agent(name="talk")
    broken = [True]
    talk = Talk(agent)

    @agent.tool_plain
    def work() -> str:
        if broken:
            raise OSError("no space left")
        return "worked"

    def model(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        talk.asked.append(turn(messages))
        return ModelResponse([TextPart("done") if turn(messages) else ToolCallPart("work", {})])

    talk.answer = model  # type: ignore[method-assign]
    with pytest.raises(RunError, match="no space left"):
        await talk.run()
    broken.clear()
    talk.take()
    assert (await talk.resume()).output == "done"
    assert talk.take() == ([1], [])


def test_after_a_timeout_the_call_goes_on_where_it_stood() -> None:
    """`Stage(timeout=)` ended the third request; the first two are not made again."""
    talk = Talk(timeout=600)
    slow = [True]

    async def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if slow and turn(messages) == TURNS:
            JumpingLoop.jump(600)
            await anyio.sleep_forever()
        return Talk.answer(talk, messages, info)

    talk.answer = model  # type: ignore[method-assign, assignment]

    async def main() -> None:
        with pytest.raises(RunError, match=r"longer than 600 s"):
            await talk.run()
        assert talk.take() == ([0, 1], [0, 1])
        slow.clear()
        assert (await talk.resume()).output == "seen 0.1 seen 1.2"
        assert talk.take() == ([2], [])

    JumpingLoop.run(main)


class Dies(BaseException):
    """The end of a process."""


async def test_the_next_attempt_goes_on_where_the_last_one_failed() -> None:
    """`Stage(retries=)` makes only the request that failed again, and what was recalled is counted once."""
    talk = Talk(retries=2)
    talk.fails_at = {1: 1, 2: 1}

    run = await talk.run()
    assert talk.take() == ([0, 1, 1, 2, 2], [0, 1])
    assert run.output == "seen 0.1 seen 1.2"
    assert (run.usage.requests, run.usage.tool_calls) == (3, 2)
    assert run.call("talk").attempts == 3


async def test_what_a_second_attempt_recorded_is_recalled() -> None:
    """A run that ended in its second attempt goes on there, not in the first."""
    talk = Talk(retries=1)
    talk.fails_at = {1: 1}
    dies = [True]

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if dies and turn(messages) == TURNS:
            raise Dies
        return Talk.answer(talk, messages, info)

    talk.answer = model  # type: ignore[method-assign]
    with pytest.raises(Dies):
        await talk.run()
    dies.clear()
    talk.take()
    run = await talk.resume()
    assert talk.take() == ([2], [])
    assert (run.output, run.usage.requests) == ("seen 0.1 seen 1.2", 3)


class Plan(BaseModel):
    """What a model has to fit."""

    steps: int


def planner(journal: Journal, retries: int, answers: list[str], asked: list[int]) -> tuple[Runner, Stage[str, Plan]]:
    agent = Agent(name="plan", output_type=Plan, retries=1)

    def model(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        asked.append(turn(messages))
        return ModelResponse([ToolCallPart(info.output_tools[0].name, json.loads(answers.pop(0)))])

    return Runner(FunctionModel(model), journal=journal), Stage(str, agent, retries=retries)


async def test_answers_that_made_a_call_fail_are_asked_for_anew() -> None:
    """Nothing but what failed is on record: recalling it would fail for ever."""
    asked: list[int] = []
    answers = ['{"steps": "a"}', '{"steps": "b"}', '{"steps": "c"}', '{"steps": "d"}', '{"steps": 5}']
    runner, stage = planner(MemoryJournal(), 0, answers, asked)
    with pytest.raises(RunError, match="no valid output"):
        await runner.run(stage, "x", run_id="r")
    with pytest.raises(RunError, match="no valid output"):
        await runner.resume("r", graph=stage)
    run = await runner.resume("r", graph=stage)
    assert asked == [0, 1, 0, 1, 0]
    assert run.output == Plan(steps=5)
    assert run.usage.requests == 5


async def test_an_attempt_after_answers_that_did_not_fit_asks_anew_and_is_recalled() -> None:
    """The second attempt begins again; what it was told before the process ended is kept."""
    asked: list[int] = []
    answers = ['{"steps": "a"}', '{"steps": "b"}', '{"steps": "c"}']
    journal = MemoryJournal()
    runner, stage = planner(journal, 1, answers, asked)
    with pytest.raises(RunError):  # there is no fourth answer
        await runner.run(stage, "x", run_id="r")
    assert asked == [0, 1, 0, 1]
    asked.clear()
    runner, stage = planner(journal, 1, ['{"steps": 6}'], asked)
    assert (await runner.resume("r", graph=stage)).output == Plan(steps=6)
    assert asked == [1]


async def test_a_validator_that_raised_is_asked_again_about_the_recorded_answer() -> None:
    """As long as it is not the answer's fault; when it is, the model is asked for another one."""
    agent: Agent[None, str] = Agent(name="talk")
    talk = Talk(agent)
    problems: list[Exception] = [OSError("away"), ModelRetry("shorter")]

    @agent.output_validator
    def check(text: str) -> str:
        if problems:
            raise problems.pop(0)
        return text

    with pytest.raises(RunError, match="away"):
        await talk.run()
    assert talk.take() == ([0, 1, 2], [0, 1])
    run = await talk.resume()
    assert talk.take() == ([3], [])
    assert run.output == "seen 0.1 seen 1.2"


async def test_a_validator_that_raises_at_a_recorded_answer_gets_another_one() -> None:
    """A resumed run is not bound for ever to an answer that breaks the program."""
    agent: Agent[None, str] = Agent(name="talk")
    said = ["bad", "good"]

    @agent.output_validator
    def check(text: str) -> str:
        return {"good": "fine"}[text]

    stage = Stage(str, agent)
    runner = Runner(
        FunctionModel(lambda _messages, _info: ModelResponse([TextPart(said.pop(0))])), journal=MemoryJournal()
    )
    with pytest.raises(RunError, match="KeyError"):
        await runner.run(stage, "x", run_id="r")
    assert (await runner.resume("r", graph=stage)).output == "fine"
