"""What `redact=` takes out is gone, what it leaves can be read, and nobody goes on with a masked value unawares."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent, ToolApproved
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from scripted import careful
from stagegraph import (
    Graph,
    JournalError,
    Limits,
    Prompt,
    Prompts,
    ReplayError,
    RunError,
    Runner,
    Stage,
    feedback,
    step,
)
from stagegraph.journal import SqliteJournal

broken: set[str] = set()


@step
async def gate(text: str) -> str:
    if broken:
        raise RuntimeError(text)
    return text


class Flow(Graph[str, str]):
    ask = Stage(str, careful)
    gate = gate

    async def flow(self, text: str) -> str:
        return await self.gate(await self.ask(text))


class Model:
    def __init__(self) -> None:
        self.asked: list[str] = []

    def __call__(self, messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        text = str(messages[0].parts[0].content)  # type: ignore[union-attr]
        self.asked.append(text)
        if text == "approve" and len(messages) == 1:
            return ModelResponse([ToolCallPart("delete", {"path": "SECRET"}, tool_call_id="c1")])
        return ModelResponse([TextPart("done")])


def mask(value: Any) -> Any:
    return json.loads(json.dumps(value).replace("SECRET", "***"))


def mask_every_text(value: Any) -> Any:
    match value:
        case str():
            return "***"
        case list():
            return [mask_every_text(one) for one in value]  # pyright: ignore[reportUnknownVariableType]
        case dict():
            return {name: mask_every_text(one) for name, one in value.items()}  # pyright: ignore[reportUnknownVariableType]
        case _:
            return value


def fail(_value: Any) -> Any:
    msg = "what SECRET is this"
    raise ValueError(msg)


def fail_at_messages(value: Any) -> Any:
    return fail(value) if isinstance(value, dict) and "parts" in value else value


@pytest.mark.parametrize("redact", [mask, mask_every_text, lambda _: "***", lambda _: None])
async def test_a_run_does_not_go_on_with_a_masked_input(tmp_path: Path, redact: Callable[[Any], Any]) -> None:
    """Resuming says so, and what to do; the record can be looked into and scored, however little is left of it."""
    journal = SqliteJournal(tmp_path / "runs.db", redact=redact)
    model = Model()
    runner = Runner(FunctionModel(model), journal=journal)
    broken.add("gate")
    with pytest.raises(RunError):
        await runner.run(Flow(), "my SECRET", run_id="r", tags=("SECRET",), metadata={"a": "SECRET"}, user_id="SECRET")
    broken.clear()
    with pytest.raises(ReplayError, match=r"changed the input of run 'r'.*replay='r'"):
        await runner.resume("r")
    assert model.asked == ["my SECRET"]
    await feedback("r", "helpful", 1, comment="no SECRET", runner=runner)
    await runner.run(Flow(), "my SECRET", run_id="whole", replay="r")
    assert (await runner.resume("whole")).status == "succeeded"
    await journal.aclose()
    assert b"SECRET" not in (tmp_path / "runs.db").read_bytes()


async def test_a_run_does_not_go_on_with_masked_prompts(tmp_path: Path) -> None:
    """Unless it is told with which."""
    journal = SqliteJournal(tmp_path / "runs.db", redact=mask)
    runner = Runner(FunctionModel(Model()), journal=journal)
    prompts = Prompts({"ask": Prompt(instructions="The SECRET way.")})
    broken.add("gate")
    with pytest.raises(RunError):
        await runner.run(Flow(), "x", run_id="r", prompts=prompts)
    broken.clear()
    with pytest.raises(ReplayError, match="changed the prompts"):
        await runner.resume("r")
    assert (await runner.resume("r", prompts=prompts)).output == "done"
    await journal.aclose()


@step
async def find(text: str) -> str:
    return f"{text} SECRET"


class Finds(Graph[str, str]):
    find = find
    ask = Stage(str, Agent())
    gate = gate

    async def flow(self, text: str) -> str:
        return await self.gate(await self.ask(await self.find(text)))


async def test_a_masked_output_is_no_output(tmp_path: Path) -> None:
    """Its call runs again, and what depends on it sees the same as before."""
    journal = SqliteJournal(tmp_path / "runs.db", redact=mask)
    asked: list[str] = []

    def model(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        asked.append(str(messages[0].parts[0].content))  # type: ignore[union-attr]
        return ModelResponse([TextPart(asked[-1])])

    async with Runner(FunctionModel(model), journal=journal) as runner:
        broken.add("gate")
        with pytest.raises(RunError):
            await runner.run(Finds(), "the", run_id="r")
        broken.clear()
        run = await runner.resume("r")
    assert (run.output, asked) == ("the SECRET", ["the SECRET"] * 2)
    assert run.rerun == {"find": "the output cannot be written down whole", "ask": "the input"}


async def test_a_question_survives_what_is_masked_in_it(tmp_path: Path) -> None:
    """Its arguments are masked; who asks is not, so it can be answered, but no tool runs with a mask."""
    journal = SqliteJournal(tmp_path / "runs.db", redact=mask)
    runner = Runner(FunctionModel(Model()), journal=journal)
    await runner.run(Flow(), "approve", run_id="r", metadata={"a": 1}, user_id="ann")
    [question] = (await runner.resume("r")).pending
    assert (question.args, question.masked) == ({"path": "***"}, True)
    for answer in (True, ToolApproved()):
        with pytest.raises(ReplayError, match=r"arguments that `redact=` has masked.*override_args"):
            await runner.resume("r", answers={"c1": answer})
    run = await runner.resume("r", answers={"c1": ToolApproved(override_args={"path": "old.log"})})
    assert (run.output, run.metadata, run.user_id) == ("done", {"a": 1}, "ann")
    returned = [
        part for message in run.calls(Flow.ask)[0].messages for part in message.parts if part.part_kind == "tool-return"
    ]
    assert [part.content for part in returned] == ["old.log is gone"]
    await journal.aclose()


async def test_an_answer_that_would_be_masked_is_asked_for_again(tmp_path: Path) -> None:
    """After a failure, nobody goes on with what is left of it."""
    journal = SqliteJournal(tmp_path / "runs.db", redact=mask)
    runner = Runner(FunctionModel(Model()), journal=journal)
    await runner.run(Flow(), "approve", run_id="r")
    broken.add("gate")
    answers = {"c1": ToolApproved(override_args={"path": "SECRET"})}
    with pytest.raises(RunError):
        await runner.resume("r", answers=answers, limits=Limits(requests=1))
    broken.clear()
    assert [one.id for one in (await runner.resume("r", limits=Limits(requests=9))).pending] == ["ask:c1"]
    await journal.aclose()


@pytest.mark.parametrize("value", [None, {"path": "plain"}])
async def test_an_unmasked_question_is_approved_as_ever(tmp_path: Path, value: object) -> None:
    """`redact=` that leaves the arguments alone is in nobody's way."""
    journal = SqliteJournal(tmp_path / "runs.db", redact=lambda data: data)
    runner = Runner(FunctionModel(Model()), journal=journal)
    suspended = await runner.run(Flow(), "approve", run_id="r")
    assert [one.masked for one in suspended.pending] == [False]
    answer = True if value is None else ToolApproved(override_args={"path": "plain"})
    assert (await runner.resume("r", answers={"c1": answer})).output == "done"
    await journal.aclose()


@pytest.mark.parametrize("redact", [fail, fail_at_messages, lambda _: object()])
async def test_a_redact_that_fails_is_named_and_nothing_is_written(
    tmp_path: Path, redact: Callable[[Any], Any]
) -> None:
    """It is not taken for a fault of the stage, and its own words, which may hold the secret, are only the cause."""
    journal = SqliteJournal(tmp_path / "runs.db", redact=redact)
    runner = Runner(FunctionModel(Model()), journal=journal)
    with pytest.raises((JournalError, RunError), match="`redact=` failed with") as caught:
        await runner.run(Flow(), "approve")
    assert "SECRET" not in str(caught.value)
    assert "a tool, a validator" not in str(caught.value)
    await journal.aclose()
    assert b"SECRET" not in (tmp_path / "runs.db").read_bytes()
