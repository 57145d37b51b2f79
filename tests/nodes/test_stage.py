"""Agents as nodes: models, deps, rendering, timeouts and retries."""

from __future__ import annotations

import anyio
import anyio.lowlevel
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent, ModelRetry, RunContext
from pydantic_ai.agent import WrapperAgent
from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.fallback import FallbackModel
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel

from scripted import JumpingLoop, Turnstile, asked, echo, fails, says, submits
from stagegraph import (
    DeclarationError,
    Graph,
    Limits,
    NotRunningError,
    RunError,
    Runner,
    Stage,
    StageError,
    current_call,
    fan_out,
    gather,
)
from stagegraph.data.events import CallRetried


class Section(BaseModel):
    title: str
    words: int


class Code(BaseModel):
    text: str


class Build(Graph[Section, Code]):
    """One stage with types."""

    code = Stage(Section, Agent(output_type=Code, instructions="Implement this section."))

    async def flow(self, section: Section) -> Code:
        return await self.code(section)


class Texts(Graph[list[str], list[str]]):
    """One stage over many texts."""

    write = Stage(str, Agent(output_type=str), retries=1)

    async def flow(self, texts: list[str]) -> list[str]:
        return await fan_out(self.write, texts)


def rate_limited(seconds: int = 0) -> ModelHTTPError:
    return ModelHTTPError(429, "m", headers={"retry-after": str(seconds)})


def text_stage(**options) -> Stage[str, str]:
    agent = options.pop("agent", None) or Agent(output_type=str, name="write")
    return Stage(str, agent, **options)


async def test_a_single_stage_can_be_run_by_itself():
    """`runner.run(Build.code, section)` runs just that stage, under its own name."""
    run = await Runner(model=submits(text="pass")).run(Build.code, Section(title="a", words=3))
    assert run.output == Code(text="pass")
    assert [(call.key, call.path, call.kind) for call in run.calls(Build.code)] == [("code", "code", "stage")]


async def test_a_stage_asks_with_the_agents_instructions_and_the_input():
    """A text goes as it is, a model as XML with its fields; the agent's instructions are sent unchanged."""
    seen: list[tuple[str | None, str]] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append((info.instructions, asked(messages)))
        return ModelResponse([ToolCallPart(info.output_tools[0].name, {"text": "x"})])

    await Build().run(Section(title="a<b", words=3), model=FunctionModel(answer))
    instructions, prompt = seen[0]
    assert instructions == "Implement this section."
    assert "<Section>" in prompt
    assert "<title>a&lt;b</title>" in prompt
    assert (await Runner(model=echo()).run(text_stage(), "a<b")).output == "a<b"


def model_called(name: str) -> TestModel:
    return TestModel(custom_output_text=name)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"path", "stage", "agent", "run", "runner"}, "path"),
        ({"stage", "agent", "run", "runner"}, "stage"),
        ({"agent", "run", "runner"}, "agent"),
        ({"run", "runner"}, "run"),
        ({"runner"}, "runner"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_the_more_particular_model_wins(given: set[str], expected: str):
    """models={path} goes before Stage(model=), the agent's own, run(model=) and Runner(model=), in this order."""

    def model(name: str) -> TestModel | None:
        return model_called(name) if name in given else None

    class Uses(Graph[str, str]):
        def __init__(self) -> None:
            self.write = text_stage(agent=Agent(model("agent"), output_type=str), model=model("stage"))

        async def flow(self, text: str) -> str:
            return await self.write(text)

    chosen = model("path")
    runner = Runner(model=model("runner"), models={"write": chosen} if chosen else None)
    assert (await runner.run(Uses(), "x", model=model("run"))).output == expected


async def test_models_are_chosen_by_path_in_nested_graphs():
    """The path of a nested stage names it in `models=`."""

    class Pair(Graph[Section, str]):
        first = Build()
        second = Build()

        async def flow(self, section: Section) -> str:
            return (await self.first(section)).text + (await self.second(section)).text

    runner = Runner(model=submits(text="a"), models={"second.code": submits(text="b")})
    assert (await runner.run(Pair(), Section(title="t", words=1))).output == "ab"


async def test_an_agent_may_be_overridden_in_a_test():
    """Pydantic AI's own `agent.override(model=...)` still wins, so users' tests work as they are."""
    with Build.code.agent.override(model=submits(text="o")):
        run = await Build().run(Section(title="a", words=1), model=submits(text="x"))
    assert run.output == Code(text="o")


async def test_no_model_anywhere_says_where_to_say_it():
    """Without any model the error names the stage and the places where a model can be given."""
    with pytest.raises(RunError) as caught:
        await Build().run(Section(title="a", words=1))
    assert "stage `code` failed: no model is set" in str(caught.value)
    assert "Runner(model=" in str(caught.value)


@pytest.mark.parametrize("name", ["nonsense", "openai:gpt-5-mini", "local:nothing"])
async def test_a_model_that_cannot_be_made_is_an_error_of_the_stage(name: str, monkeypatch: pytest.MonkeyPatch):
    """An unknown name, or a provider without a key or package, says which stage, which name and how names look."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with pytest.raises(RunError) as caught:
        await Build().run(Section(title="a", words=1), model=name)
    assert "stage `code`" in str(caught.value)
    assert repr(name) in str(caught.value) or name.removeprefix("local:") in str(caught.value)
    assert isinstance(caught.value.__cause__, StageError)


async def test_model_settings_are_merged_over_the_agents_own():
    """`Stage(model_settings=)` wins where both say something, and the agent's stay where it does not."""
    seen: list[object] = []

    def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append(dict(info.model_settings or {}))
        return ModelResponse([TextPart("x")])

    agent = Agent(output_type=str, model_settings={"temperature": 0.1, "max_tokens": 5})
    await Runner(model=FunctionModel(answer)).run(Stage(str, agent, model_settings={"temperature": 0.9}), "x")
    assert seen == [{"temperature": 0.9, "max_tokens": 5}]


async def test_tools_and_current_call_see_the_run():
    """A tool, async or not, sees the deps and the key of the call that it serves."""
    seen: list[tuple[object, str, str]] = []
    agent = Agent(output_type=str, deps_type=int)

    @agent.tool
    async def look(ctx: RunContext[int]) -> str:
        seen.append((ctx.deps, current_call().key, current_call().path))
        return "ok"

    @agent.tool
    def look_in_a_thread(ctx: RunContext[int]) -> str:
        seen.append((ctx.deps, current_call().key, current_call().path))
        return "ok"

    class Uses(Graph[str, str]):
        write = Stage(str, agent, deps=lambda deps: deps["n"])

        async def flow(self, text: str) -> str:
            return await self.write(text)

    await Uses().run("x", model=TestModel(), deps={"n": 4})
    assert seen == [(4, "write", "write")] * 2


@pytest.mark.parametrize(
    ("errors", "retries", "attempts", "said"),
    [
        ([rate_limited()] * 2, 2, 3, ""),
        ([rate_limited()] * 9, 1, 2, "stage `write` failed after 2 attempts: status_code: 429"),
        ([rate_limited()], 0, 1, "status_code: 429"),
        *(([ModelHTTPError(status, "m")], 5, 1, f"status_code: {status}") for status in (400, 401, 403, 404, 422)),
        (None, 5, 1, "no model is set"),
    ],
)
async def test_a_failed_attempt_is_repeated_and_counted(
    errors: list[Exception] | None, retries: int, attempts: int, said: str
):
    """`retries=2` makes up to three attempts, none is the default; what would fail again, or is missing, fails at once."""
    runner, stage = (
        Runner(model=fails(*errors) if errors else None),
        text_stage(**{"retries": retries} if retries else {}),
    )
    if said:
        with pytest.raises(RunError, match=said) as caught:
            await runner.run(stage, "x")
        run = caught.value.run
    else:
        run = await runner.run(stage, "x")
        assert run.output == "done"
    assert run.call("write").attempts == attempts


async def test_a_provider_that_asks_to_wait_is_asked_again_after_that_time():
    """The wait before the next attempt is the provider's `retry-after`."""
    async with Runner(model=fails(rate_limited(0), rate_limited(0))) as runner:
        live = runner.start(text_stage(retries=5), "x")
        retried = [event async for event in live.events() if isinstance(event, CallRetried)]
    assert [(event.key, event.attempt, event.wait) for event in retried] == [("write", 1, 0), ("write", 2, 0)]
    assert "429" in retried[0].error


def test_without_a_hint_the_wait_grows():
    """A provider that says nothing is asked again later and later, up to half a minute apart, each by chance."""

    async def main() -> None:
        live = Runner(model=fails(*[ModelConnectionError("m", "no route")] * 8)).start(text_stage(retries=8), "x")
        waits: list[float] = []
        async for event in live.events():
            if isinstance(event, CallRetried):
                waits.append(event.wait)
                await anyio.wait_all_tasks_blocked()
                JumpingLoop.jump(event.wait)
        usual = [0.5, 1, 2, 4, 8, 16, 30, 30]
        assert [0.75 * one <= wait <= 1.25 * one for one, wait in zip(usual, waits, strict=True)] == [True] * 8
        assert waits != usual
        assert (await live.result()).output == "done"

    JumpingLoop.run(main)


async def test_cancelling_ends_the_wait_before_the_next_attempt():
    """A call that waits to be tried again ends at once when its run is cancelled."""
    live = Runner(model=fails(ModelHTTPError(429, "m", headers={"retry-after": "3600"}))).start(
        text_stage(retries=5), "x"
    )
    with anyio.fail_after(30):
        async for event in live.events():
            if isinstance(event, CallRetried):
                assert event.wait >= 30
                await live.cancel()
    assert live.run.call("write").status == "cancelled"


FAR = "Fri, 31 Dec 9999 23:59:59 GMT"


@pytest.mark.parametrize(
    ("headers", "timeout", "least", "most"),
    [
        ({"retry-after": "20"}, None, 20, 25),
        ({"retry-after": "86400"}, None, 60, 75),
        ({"retry-after": FAR}, None, 60, 75),
        ({"retry-after-ms": "86400000"}, None, 60, 75),
        ({"retry-after": "Fri, 31 Dec 1999 23:59:59 GMT"}, None, 0, 0),
        *(({"retry-after": odd}, None, 0.375, 0.625) for odd in ("-5", "soon", "", "nan", "1e9999", "9" * 5000)),
        ({"retry-after": "86400"}, 2, 1.5, 2),
        ({"retry-after": FAR}, 2, 1.5, 2),
        ({}, 0.4, 0.3, 0.4),
    ],
)
def test_a_wait_is_bounded_whatever_the_provider_asks_for(
    headers: dict[str, str], timeout: float | None, least: float, most: float
):
    """A provider is obeyed up to a minute and a jitter, and `Stage(timeout=)` is longer than any wait."""

    async def main() -> None:
        live = Runner(model=fails(ModelHTTPError(429, "m", headers=headers))).start(
            text_stage(retries=1, timeout=timeout), "x"
        )
        async for event in live.events():
            if isinstance(event, CallRetried):
                assert least <= event.wait <= most
                await anyio.wait_all_tasks_blocked()
                JumpingLoop.jump(event.wait)
        assert (await live.result()).output == "done"

    JumpingLoop.run(main)


def test_all_waits_of_a_call_share_its_timeout():
    """However often a provider puts a call off, it waits no longer than `Stage(timeout=)` in all."""

    async def main() -> None:
        put_off = [ModelHTTPError(429, "m", headers={"retry-after": "20"})] * 4
        live = Runner(model=fails(*put_off)).start(text_stage(retries=4, timeout=30), "x")
        waits: list[float] = []
        async for event in live.events():
            if isinstance(event, CallRetried):
                waits.append(event.wait)
                await anyio.wait_all_tasks_blocked()
                JumpingLoop.jump(event.wait)
        assert (await live.result()).output == "done"
        assert len(waits) == 4
        assert 20 <= sum(waits) <= 30

    JumpingLoop.run(main)


def test_calls_that_failed_together_do_not_come_back_together():
    """A hundred calls refused at once are spread over the time until they ask again."""

    async def main() -> None:
        live = Runner(model=fails(*[ModelHTTPError(429, "m", headers={"retry-after": "20"})] * 100)).start(
            Texts(), [str(number) for number in range(100)]
        )
        waits: set[float] = set()
        async for event in live.events():
            if isinstance(event, CallRetried):
                waits.add(event.wait)
                if len(waits) == 64:  # the width of the fan-out
                    break
        assert max(waits) - min(waits) > 1
        await live.cancel()

    JumpingLoop.run(main)


async def test_output_that_never_validates_counts_as_a_failed_attempt():
    """A stage with retries starts over when the model gave no valid output, and may then succeed."""
    answers = [{"text": 1}, {"text": 2}, {"text": "good"}]

    def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart(info.output_tools[0].name, answers.pop(0))])

    stage = Stage(str, Agent(output_type=Code, name="write", retries=1), retries=1)
    live = Runner(model=FunctionModel(answer)).start(stage, "x")
    async for event in live.events():
        if isinstance(event, CallRetried):
            assert event.attempt == 1
            assert "output" in event.error
            break
    run = await live.result()
    assert run.output == Code(text="good")
    assert run.call("write").attempts == 2
    assert run.usage.requests == 3


async def test_every_model_of_a_fallback_failing_is_retried_and_told():
    """Where a fallback model ran out of models, the error holds what each said, and a new attempt is made."""
    busy = [fails(*[ModelHTTPError(code, "m", headers={"retry-after": "0"})] * 3) for code in (429, 503)]
    run = await Runner(model=FallbackModel(*busy)).run(text_stage(retries=3), "x")
    assert (run.output, run.call("write").attempts) == ("done", 4)

    dead = FallbackModel(fails(ModelHTTPError(401, "m")), fails(ModelHTTPError(404, "m")))
    with pytest.raises(RunError) as caught:
        await Runner(model=dead).run(text_stage(retries=3), "x")
    assert "status_code: 401" in str(caught.value)
    assert "status_code: 404" in str(caught.value)
    assert caught.value.run.call("write").attempts == 1


def test_a_stage_that_takes_too_long_is_ended():
    """`timeout=` ends the attempt, and the error names the stage, the seconds and the remedy."""

    async def main() -> None:
        gate = Turnstile()
        live = Runner(model=gate.model).start(text_stage(timeout=60), "x")
        await gate.crowd(1)
        JumpingLoop.jump(59)
        await anyio.wait_all_tasks_blocked()
        assert not live.done
        JumpingLoop.jump(2)
        with pytest.raises(RunError) as caught:
            await live.result()
        assert "stage `write` failed: it took longer than 60 s; raise `Stage(timeout=)`" in str(caught.value)
        assert gate.inside == []

    JumpingLoop.run(main)


def test_each_attempt_has_its_own_time():
    """What the first attempt took is not taken from the second."""
    turns: list[int] = []

    async def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        turns.append(1)
        if len(turns) == 1:
            await anyio.sleep(100)
        JumpingLoop.jump(50)
        await anyio.lowlevel.checkpoint()
        return ModelResponse([TextPart("second")])

    async def main() -> None:
        live = Runner(model=FunctionModel(answer)).start(text_stage(timeout=60, retries=1), "x")
        await anyio.wait_all_tasks_blocked()
        JumpingLoop.jump(61)
        async for event in live.events():
            if isinstance(event, CallRetried):
                assert "longer than 60 s" in event.error
                await anyio.wait_all_tasks_blocked()
                JumpingLoop.jump(event.wait)
        run = await live.result()
        assert (run.output, run.call("write").attempts) == ("second", 2)

    JumpingLoop.run(main)


@pytest.mark.parametrize("reason", ["slot", "limit"])
def test_waiting_its_turn_does_not_count_against_the_timeout(reason: str):
    """Stages that a busy runner, or a limit, holds back do not time out: only their own attempt is timed."""

    async def main() -> None:
        gate = Turnstile()
        options = {"max_concurrency": 1} if reason == "slot" else {"limits": Limits(tokens=10**6)}

        class Two(Graph[str, list[str]]):
            write = text_stage()
            quick = text_stage(timeout=60)

            async def flow(self, text: str) -> list[str]:
                return list(await gather(self.write("slow"), self.quick("quick")))

        live = Runner(model=gate.model, **options).start(Two(), "x")
        await gate.crowd(1)
        for _ in range(100):  # the other agent starts once the first has the slot, and then waits for it
            await anyio.wait_all_tasks_blocked()
        JumpingLoop.jump(3600)
        await anyio.wait_all_tasks_blocked()
        assert (gate.inside, live.done) == (["slow"], False)
        gate.open()
        assert (await live.result()).output == ["slow", "quick"]

    JumpingLoop.run(main)


def test_after_waiting_its_turn_the_timeout_counts_again():
    """A stage that had to wait is still ended when its own attempt takes too long."""

    async def main() -> None:
        first, second = Turnstile(), Turnstile()
        runner = Runner(max_concurrency=1)
        slow = runner.start(text_stage(), "slow", model=first.model)
        await first.crowd(1)
        late = runner.start(text_stage(timeout=60), "late", model=second.model)
        await anyio.wait_all_tasks_blocked()
        JumpingLoop.jump(3600)
        first.open()
        await slow.result()
        await second.crowd(1)
        JumpingLoop.jump(61)
        with pytest.raises(RunError, match="longer than 60 s"):
            await late.result()

    JumpingLoop.run(main)


async def test_the_agents_own_validators_and_retries_stay_inside_an_attempt():
    """A validator that asks again is the agent's business: one attempt, several requests, all messages kept."""
    agent = Agent(output_type=str, name="write", retries={"output": 2})

    @agent.output_validator
    def long_enough(text: str) -> str:
        if len(text) < 4:
            raise ModelRetry("longer, please")
        return text

    run = await Runner(model=says("a", "aa", "aaaa")).run(Stage(str, agent), "x")
    call = run.call("write")
    assert (call.output, call.attempts, call.usage.requests) == ("aaaa", 1, 3)
    assert "longer, please" in str(call.messages)


def test_a_stage_outside_a_run_says_how_to_run_it():
    """Called where no run is going on, the error names the stage and the two ways to call it."""
    with pytest.raises(NotRunningError, match=r"stage `code` was called outside a run.*run\(code, value\)"):
        Build.code(Section(title="a", words=1))


def test_what_can_be_no_stage_is_refused():
    """`system_prompt` cannot be tuned or deployed; the error says what to write instead, also for functions of one."""
    with pytest.raises(DeclarationError, match=r"'old' uses `system_prompt`.*Agent\(instructions=\.\.\.\)"):
        Stage(str, Agent(output_type=str, system_prompt="You are old.", name="old"))
    agent = Agent(output_type=str)
    agent.system_prompt(lambda: "dynamic")
    with pytest.raises(DeclarationError, match="system_prompt"):
        Stage(str, WrapperAgent(agent))
    for wrong in ("openai:gpt-5", Agent, None):  # a model name or an agent class in place of an agent
        with pytest.raises(DeclarationError, match=r"write Stage\(Spec, Agent\(output_type=Plan\)\)"):
            Stage(str, wrong)
    for name, number in (("timeout", 0), ("timeout", -1), ("retries", -1)):
        with pytest.raises(DeclarationError, match=rf"Stage\({name}="):
            text_stage(**{name: number})


async def test_any_agent_is_a_stage():
    """One that wraps another, such as a durable one, and one that may answer in several types: a union of them."""
    stage = Stage(str, WrapperAgent(Agent(output_type=str, name="deep", instructions="Be kind.")))
    assert stage.instructions == "Be kind."
    assert (await Runner(model=echo()).run(stage, "hi")).output == "hi"
    stage = Stage(str, Agent(output_type=[Section, Code], name="either"))

    def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart(info.output_tools[1].name, {"text": "x"})])

    assert (await Runner(model=FunctionModel(answer)).run(stage, "x")).output == Code(text="x")


def test_a_stage_knows_its_name_version_and_types():
    """The attribute it is declared as names it; it shows what it takes and gives."""
    assert repr(Build.code) == "<stage code: Section -> Code>"
    assert (text_stage(version="b").version, text_stage().version) == ("b", 1)
    assert text_stage().__node__.name == "write"


async def test_nested_agents_inside_tools_work_and_are_counted():
    """An agent that delegates to another in a tool reports the usage of both when it passes its usage on."""
    helper = Agent(TestModel(custom_output_text="helped"), output_type=str)
    agent = Agent(output_type=str, name="write")

    @agent.tool
    async def delegate(ctx: RunContext[None]) -> str:
        return (await helper.run("help", usage=ctx.usage)).output

    run = await Runner(model=TestModel()).run(Stage(str, agent), "x")
    assert run.usage.requests == 3
    assert "helped" in str(run.call("write").messages)
