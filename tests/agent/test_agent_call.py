"""How a stage call ends: what the model said, what went wrong, and what to do about it."""

from __future__ import annotations

import urllib.error
from collections.abc import Callable
from email.message import Message
from typing import Any

import aiohttp
import anyio
import httpx
import httpx2
import pytest
import requests
from pydantic import BaseModel, Field
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.exceptions import (
    ModelConnectionError,
    ModelHTTPError,
    ModelQuotaExceededError,
    UsageLimitExceeded,
    UserError,
)
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from scripted import Tidy, asked, deletes, echo, fails, others, says
from stagegraph import DeclarationError, Graph, RunError, Runner, Stage, StageError, fan_out
from stagegraph.journal import MemoryJournal


class Plan(BaseModel):
    title: str
    steps: list[int] = Field(min_length=2)


class Make(Graph[list[str], list[Plan]]):
    """One stage over some texts."""

    plan = Stage(str, Agent(output_type=Plan, instructions="Plan."))

    async def flow(self, texts: list[str]) -> list[Plan]:
        return await fan_out(self.plan, texts)


class Write(Graph[list[str], list[str]]):
    """The same with text as the output."""

    write = Stage(str, Agent(output_type=str))

    async def flow(self, texts: list[str]) -> list[str]:
        return await fan_out(self.write, texts)


def submits_always(args: object) -> FunctionModel:
    def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart(info.output_tools[0].name, args)])

    return FunctionModel(answer)


async def failure(graph: Graph, model: FunctionModel, texts: tuple[str, ...] = ("a",)) -> RunError:
    with pytest.raises(RunError) as caught:
        await Runner(model=model).run(graph, list(texts))
    return caught.value


async def test_output_that_never_validates_says_what_the_model_answered_and_why_it_is_wrong():
    """The message has the key, the fields' problems, the model's own text and a remedy; the call has all that was said."""
    error = await failure(Make(), submits_always({"title": "Roadmap", "steps": [1]}))
    text = str(error)
    assert "stage `plan[0]` failed: the model gave no valid output" in text
    assert "steps: List should have at least 2 items" in text
    assert '"title":"Roadmap"' in text.replace(" ", "")
    assert "give the agent more `retries`" in text
    call = error.run.call("plan[0]")
    assert call.error.type == "StageError"
    assert "at least 2 items" in call.error.message
    assert str(call.messages).count("Roadmap") == 2
    assert "at least 2 items" in str(call.messages)
    assert (call.output, call.usage.requests, call.status) == (None, 2, "failed")


@pytest.mark.parametrize(
    ("model", "said"),
    [
        (says("I would rather talk about the weather."), "the model last answered: I would rather talk about"),
        (says("word " * 5000), "the model last answered: word word"),
        (submits_always('{"title": "cut off'), '{"title": "cut off'),
        (FunctionModel(lambda _messages, _info: ModelResponse([])), ""),
    ],
    ids=["chat", "long", "no json", "empty"],
)
async def test_what_is_no_output_is_shown_raw(model: FunctionModel, said: str):
    """A model that chats, breaks off or says nothing is quoted; the message stays short, the record has it all."""
    error = await failure(Make(), model)
    assert "stage `plan[0]` failed: the model gave no valid output" in str(error)
    assert said in str(error)
    assert len(str(error)) < 2000
    kept = str(error.run.call("plan[0]").messages)
    assert "rather talk" in kept or "cut off" in kept or len(kept) > 20_000 or not said


async def test_a_validator_that_is_never_content_says_its_reason():
    """The last complaint of the agent's own validator can be read in the call."""
    agent = Agent(output_type=str, name="strict")

    @agent.output_validator
    def never(_text: str) -> str:
        raise ModelRetry("mention the price")

    with pytest.raises(RunError) as caught:
        await Runner(model=says("nice weather")).run(Stage(str, agent), "x")
    assert "stage `strict` failed" in str(caught.value)
    assert "nice weather" in str(caught.value)
    assert "mention the price" in str(caught.value.run.call("strict").messages)


PROVIDER = [
    (ModelHTTPError(401, "m", {"error": "bad key"}), "check the provider's API key"),
    (ModelHTTPError(403, "m"), "check the provider's API key"),
    (ModelHTTPError(404, "m", {"error": "no such model"}), "check the model's name"),
    (ModelHTTPError(429, "m"), "lower `Runner(max_concurrency=)`, or try again with `Stage(retries=)`"),
    (ModelHTTPError(500, "m"), "try again with `Stage(retries=)`"),
    (ModelHTTPError(503, "m"), "try again with `Stage(retries=)`"),
    (ModelHTTPError(400, "m", {"error": "bad schema"}), "the provider refused the request"),
    (ModelConnectionError("m", "no route to host"), "try again with `Stage(retries=)`"),
    (ModelQuotaExceededError("m", "no credits"), "quota is used up"),
]


@pytest.mark.parametrize(("error", "remedy"), PROVIDER, ids=lambda value: str(value)[:40])
async def test_provider_errors_say_where_what_and_what_to_do(error: Exception, remedy: str):
    """Each has the key, what the provider said and a remedy; the provider's exception is chained."""
    found = await failure(Write(), fails(error))
    text = str(found)
    assert "Write failed: stage `write[0]` failed: " in text
    assert " ".join(str(error).split()) in text
    assert remedy in text
    assert isinstance(found.__cause__, StageError)
    assert (found.__cause__.key, found.__cause__.path) == ("write[0]", "write")
    assert found.__cause__.__cause__ is error


async def test_an_error_message_has_no_line_ends_of_a_provider():
    """An HTML page in place of an answer does not blow up the message."""
    found = await failure(Write(), fails(ModelHTTPError(502, "m", "<html>\n\n<body>" + "x" * 9000)))
    assert "\n" not in str(found)
    assert len(str(found)) < 1500


async def test_a_tool_that_raises_is_named_with_its_error():
    """What a tool raises ends the call with the tool's own error in the text and as the cause."""
    agent = Agent(output_type=str, name="write")

    @agent.tool_plain
    def look() -> str:
        raise ZeroDivisionError("by zero")

    with pytest.raises(RunError, match=r"stage `write` failed: ZeroDivisionError: by zero; a tool") as caught:
        await Runner(model=TestModel()).run(Stage(str, agent), "x")
    assert isinstance(caught.value.__cause__.__cause__, ZeroDivisionError)
    assert "look" in str(caught.value.run.call("write").messages)


@pytest.mark.parametrize(
    ("error", "said", "remedy"),
    [
        (UsageLimitExceeded("too many requests"), "too many requests", "look at its messages"),
        (UserError("bad toolset"), "bad toolset", "this is a mistake in how the agent is set up"),
    ],
)
async def test_pydantic_ais_own_errors_are_named(error: Exception, said: str, remedy: str):
    """A limit of the agent's own, and a mistake in it, are shown with the stage and the place to look at."""
    found = await failure(Write(), fails(error))
    assert f"stage `write[0]` failed: {said}" in str(found)
    assert remedy in str(found)


async def test_a_stage_error_can_be_caught_in_the_flow():
    """A flow may go on without a stage; the failed call stays in the record, the run succeeds."""

    class Careful(Graph[str, str]):
        write = Stage(str, Agent(output_type=str))

        async def flow(self, text: str) -> str:
            try:
                return await self.write(text)
            except StageError as error:
                return f"without {error.path}"

    run = await Runner(model=fails(ModelHTTPError(500, "m"))).run(Careful(), "x")
    assert (run.output, run.status) == ("without write", "succeeded")
    assert [call.key for call in run.failures()] == ["write"]


async def test_only_the_failed_branch_is_a_failure():
    """Of many branches, `failures` lists the failed one, with its own messages and usage."""

    async def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        await anyio.lowlevel.checkpoint()
        if asked(messages) == "c":
            raise ModelHTTPError(500, "m")
        return ModelResponse([TextPart("x")])

    found = await failure(Write(), FunctionModel(answer), ("a", "b", "c", "d"))
    assert [call.key for call in found.failures] == ["write[2]"]
    assert "(and" not in str(found)
    assert others() is not None


async def test_concurrent_calls_keep_their_own_messages():
    """Fifty calls of one stage at once: each call's messages hold its own prompt and answer, nothing else's."""
    run = await Runner(model=echo()).run(Write(), [f"<{number}>" for number in range(50)])
    for number in range(50):
        call = run.call(f"write[{number}]")
        assert [f"<{n}>" in str(call.messages) for n in range(50)] == [n == number for n in range(50)]


async def test_a_cancelled_call_keeps_what_was_said():
    """A call that was cut off in its second request still has the first in its messages and usage."""
    reached = anyio.Event()

    async def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        if len(messages) == 1:
            return ModelResponse([ToolCallPart("look", {})])
        reached.set()
        await anyio.sleep_forever()
        raise AssertionError

    agent = Agent(output_type=str, name="write")
    agent.tool_plain(lambda: "seen", name="look")
    live = Runner(model=FunctionModel(answer)).start(Stage(str, agent), "x")
    with anyio.fail_after(30):
        await reached.wait()
        await live.cancel()
    call = live.run.call("write")
    assert call.status == "cancelled"
    assert "seen" in str(call.messages)
    assert call.usage.requests == 1


async def test_a_question_without_a_journal_says_what_to_do():
    """An agent that needs an approval cannot wait in a run that is not recorded."""
    with pytest.raises(RunError, match=r"stage `clean`: the agent asks for an approval.*Runner\(journal="):
        await Runner(model=FunctionModel(deletes)).run(Tidy(), "x")


async def test_what_an_agent_does_not_own_is_left_alone():
    """A stage runs the user's agent as it is: its toolsets, settings and message history are untouched by runs."""
    agent = Agent(output_type=str, instructions="Own.", name="write")
    stage = Stage(str, agent)
    before = dict(vars(agent))
    await Runner(model=echo()).run(stage, "x")
    assert {name: value for name, value in vars(agent).items() if name in before} == before


def rendering(render: Callable[[str], Any]) -> Graph[str, str]:
    class Renders(Graph[str, str]):
        write = Stage(str, Agent(echo(), output_type=str), render=render)

        async def flow(self, text: str) -> str:
            return await self.write(text)

    return Renders()


async def late(text: str) -> str:
    return text


@pytest.mark.parametrize(
    ("render", "gave"),
    [
        (lambda text: None, r"and gave None: return one of these"),
        (lambda text: 3, r"and gave 3"),
        (lambda text: b"x", r"and gave b'x'"),
        (lambda text: late(text), r"and gave a coroutine: make it an ordinary function, without `async`"),  # noqa: PLW0108
    ],
)
async def test_a_renderer_that_gives_no_prompt_is_named(render: Callable[[str], Any], gave: str):
    """The error says which stage, which option and what it must give."""
    said = rf"stage `write`: its `render=` must give text or a list of content parts, {gave}"
    with pytest.raises(RunError, match=said) as caught:
        await Runner().run(rendering(render), "x")
    assert isinstance(caught.value.__cause__, StageError)


@pytest.mark.parametrize("option", ["render", "deps"])
async def test_a_function_of_a_stage_is_not_async(option: str):
    """Nobody would await it, so the declaration is refused."""
    with pytest.raises(
        DeclarationError, match=rf"Stage\({option}=\.\.\.\) takes an ordinary function .* remove its `async`"
    ):
        Stage(str, Agent(output_type=str), **{option: late})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("deps", "told"),
    [
        (None, r"the run was given no deps: pass `deps=`"),
        (3, r"the run's deps are of type int: pass what the selector"),
    ],
)
async def test_deps_that_a_stage_cannot_pick_from_are_named(deps: object, told: str):
    """A run without deps is the likeliest reason, and the error says so."""

    class Picks(Graph[str, str]):
        write = Stage(str, Agent(echo(), output_type=str), deps=lambda app: app.db)

        async def flow(self, text: str) -> str:
            return await self.write(text)

    with pytest.raises(
        RunError, match=rf"stage `write`: its `deps=` selector failed \(AttributeError: .*'db'\); {told}"
    ):
        await Picks().run("x", deps=deps)


def answered(status: int, **headers: str) -> httpx.HTTPStatusError:
    request = httpx.Request("GET", "http://shop.example")
    return httpx.HTTPStatusError("refused", request=request, response=httpx.Response(status, headers=headers))


def caused(error: Exception) -> Exception:
    wrapped = RuntimeError("the shop cannot be asked")
    wrapped.__cause__ = error
    return wrapped


NETWORK = [httpx.ConnectTimeout("x"), httpx.ReadTimeout("x"), httpx.ReadError("x"), httpx.PoolTimeout("x")]
NETWORK += [httpx.RemoteProtocolError("x"), httpx2.ConnectError("x"), answered(429), answered(500), answered(503)]
NETWORK += [ConnectionResetError(104, "reset"), TimeoutError(110, "timed out"), requests.ConnectionError("x")]
NETWORK += [aiohttp.ServerDisconnectedError(), urllib.error.HTTPError("http://x", 503, "busy", Message(), None)]
PASSING = [*NETWORK, *map(caused, NETWORK[:6]), ExceptionGroup("several", [caused(NETWORK[0]), ValueError("x")])]
LASTING = [answered(400), answered(404), httpx.UnsupportedProtocol("x"), httpx.LocalProtocolError("x")]
LASTING += [
    httpx.InvalidURL("x"),
    FileNotFoundError(2, "x"),
    NotADirectoryError(20, "x"),
    TimeoutError(),
    ValueError("x"),
]
LASTING += [urllib.error.HTTPError("http://x", 404, "none", Message(), None), answered(401)]


def looking_up(*errors: Exception, **options: Any) -> Stage[str, str]:
    """A stage whose tool fails with these errors in turn, then works."""
    agent, rest = Agent(TestModel(), output_type=str, name="write"), list(errors)

    @agent.tool_plain
    def look() -> str:
        if rest:
            raise rest.pop(0)
        return "found"

    return Stage(str, agent, **options)


@pytest.mark.parametrize(
    ("error", "transient"), [*((e, True) for e in PASSING), *((e, False) for e in LASTING)], ids=repr
)
async def test_trouble_in_the_network_of_a_tool_is_transient(error: Exception, transient: bool):
    """What may pass is marked so and tried again; a wrong address, a refusal and a bug are not."""
    with pytest.raises(RunError) as caught:
        await Runner().run(looking_up(error), "x")
    assert [call.error.transient for call in caught.value.failures] == [transient]


async def test_a_tool_is_asked_again_after_trouble_in_the_network():
    """`Stage(retries=)` repeats it, after the time that the server asks for."""
    run = await Runner().run(looking_up(answered(429, **{"Retry-After": "0"}), retries=1), "x")
    assert (run.output, run.call("write").attempts) == ('{"look":"found"}', 2)
    with pytest.raises(RunError, match=r"stage `write` failed: HTTPStatusError: refused; a tool, `look`, raised this$"):
        await Runner().run(looking_up(answered(404), retries=5), "x")


class Database:
    rows = 3


async def raises(stage: Stage[str, str], **options: Any) -> str:
    with pytest.raises(RunError) as caught:
        await Runner().run(stage, "x", **options)
    return str(caught.value)


async def test_the_part_of_an_agent_that_failed_is_named():
    """A failing model is not blamed on a tool, nor a validator on the model."""
    assert "the model raised this" in await raises(Stage(str, Agent(fails(ValueError("odd")), output_type=str)))
    agent = Agent(TestModel(), output_type=str)
    agent.output_validator(lambda output: output.nothing)
    assert "a validator, a function of instructions or a capability" in await raises(Stage(str, agent))
    group = ExceptionGroup("several", [ValueError("a"), KeyError("b")])
    assert "ValueError: a; KeyError: 'b'; a tool, `look`, raised this" in await raises(looking_up(group))


@pytest.mark.parametrize("declares", [True, False])
async def test_an_agent_that_lacks_its_deps_is_told_how_to_get_them(declares: bool):
    """Whether or not the agent declares the type of its deps; with deps nothing is said of them."""
    agent = Agent(TestModel(), output_type=str, **({"deps_type": Database} if declares else {}))

    @agent.tool
    def count(ctx: RunContext[Database]) -> int:
        return ctx.deps.rows

    stage = Stage(str, agent)
    told = "`deps_type=Database` and was given no deps: pass `deps=`" if declares else "about `ctx.deps`, pass `deps=`"
    assert told in await raises(stage)
    assert ("was given int: pass `deps=`" in await raises(stage, deps=3)) == declares
    assert (await Runner().run(stage, "x", deps=Database())).output == '{"count":3}'


@pytest.mark.parametrize("recorded", [True, False])
@pytest.mark.parametrize("in_tool", [True, False])
async def test_an_answer_that_is_too_long_is_an_error(recorded: bool, in_tool: bool):
    """It is refused before it is validated, recorded and traced; a long one below the bound is taken."""

    def answers(size: int) -> FunctionModel:
        def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
            if not in_tool:
                return ModelResponse([TextPart("x" * size)])
            return ModelResponse(
                [ToolCallPart(info.output_tools[0].name, f'{{"title": "{"x" * size}", "steps": [1, 2]}}')]
            )

        return FunctionModel(answer)

    stage = Stage(str, Agent(output_type=Plan if in_tool else str, name="write"))
    runner = Runner(journal=MemoryJournal() if recorded else None)
    with pytest.raises(
        RunError, match=r"the model answered with 5,1\d\d,\d\d\d characters, and no more than 5,000,000"
    ):
        await runner.run(stage, "x", model=answers(5_100_000))
    assert (await runner.run(stage, "x", model=answers(1_000_000))).status == "succeeded"
