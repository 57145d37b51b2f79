"""What a run may spend: nothing goes over, however wide it is."""

from __future__ import annotations

import contextlib
import math
from decimal import Decimal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_ai import Agent, RunContext
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.usage import RequestUsage

from scripted import JumpingLoop, Turnstile, asked, echo, fails, others, priced
from stagegraph import Graph, LimitError, Limits, RunError, Runner, Stage, fan_out, gather, settle, step


@step
async def note(text: str) -> str:
    return text


class Wide(Graph[int, list[str]]):
    """As many stages at once as the input says."""

    note = note
    write = Stage(str, Agent(output_type=str))

    async def flow(self, width: int) -> list[str]:
        await self.note("before")
        return await fan_out(self.write, (str(number) for number in range(width)), limit=width)


async def run(width: int, model: FunctionModel, limits: Limits | None, **options):
    with anyio.fail_after(30):
        return await Runner(model=model, limits=limits, **options).run(Wide(), width)


@pytest.mark.parametrize(
    ("limits", "allowed"),
    [
        (Limits(requests=7), 7),
        (Limits(usd=0.05), 5),
        (Limits(usd=Decimal("0.05")), 5),
        (Limits(usd=0.055), 5),
        (Limits(tokens=100), 10),
        (Limits(tokens=109), 10),
        (Limits(requests=3, usd=1, tokens=50), 3),
        (Limits(requests=0), 0),
        (Limits(usd=0), 0),
        (Limits(tokens=0), 0),
    ],
    ids=repr,
)
async def test_fifty_stages_at_once_do_not_go_over_a_limit(limits: Limits, allowed: int):
    """Fifty at once make exactly as many requests as fit; then the run ends, and no answer that was paid for is lost."""
    model, prompts = priced("0.01", tokens=10)
    with pytest.raises(LimitError) as caught:
        await run(50, model, limits)
    assert len(prompts) == allowed
    record = caught.value.run
    assert (record.status, record.output) == ("failed", None)
    assert [call.output for call in record.calls(Wide.write) if call.ok] == ["paid"] * allowed
    assert record.usage.requests == allowed
    assert record.call("note").output == "before"


@pytest.mark.parametrize(
    "limits",
    [
        Limits(),
        Limits(requests=50),
        Limits(usd=0.5),
        Limits(tokens=500),
        Limits(seconds=60),
        Limits(usd=0.5, requests=50),
    ],
    ids=repr,
)
async def test_a_run_that_fits_its_limits_is_not_disturbed(limits: Limits):
    """Limits that are just enough let everything through."""
    model, prompts = priced("0.01", tokens=10)
    record = await run(50, model, limits)
    assert record.output == ["paid"] * 50
    assert sorted(prompts, key=int) == [str(number) for number in range(50)]
    assert record.cost == Decimal("0.50")


@given(st.integers(1, 30), st.integers(1, 30), st.sampled_from(["requests", "tokens", "usd"]))
@settings(deadline=None, max_examples=40)
def test_no_width_goes_over_any_limit(width: int, fits: int, what: str):
    """For requests of equal price, a limit of *n* requests' worth lets exactly `min(width, n)` through."""

    async def main() -> None:
        model, prompts = priced("0.01", tokens=10)
        limits = {
            "requests": Limits(requests=fits),
            "tokens": Limits(tokens=10 * fits),
            "usd": Limits(usd=Decimal(fits) / 100),
        }
        try:
            record = await run(width, model, limits[what])
        except LimitError:
            assert width > fits
        else:
            assert width <= fits
            assert len(record.output) == width
        assert len(prompts) == min(width, fits)

    anyio.run(main)


async def test_within_an_amount_requests_still_run_side_by_side():
    """After the first of a stage has shown what one costs, the others go together, as many as fit."""
    gate = Turnstile()
    live = Runner(model=gate.model, limits=Limits(tokens=10**6)).start(Wide(), 20)
    with anyio.fail_after(30):
        await gate.crowd(1)
        await anyio.wait_all_tasks_blocked()
        assert gate.inside == ["0"]
        gate.open()
        await live.result()
    assert len(gate.seen) == 20


async def test_a_first_request_that_is_answered_lets_the_others_go():
    """They wait for the first request of a stage, not for what its call does next."""
    second_asked = anyio.Event()
    agent = Agent(output_type=str)

    @agent.tool_plain
    async def wait_for_the_other() -> str:
        await second_asked.wait()
        return "it came"

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        if asked(messages) == "second":
            second_asked.set()
        elif len(messages) == 1:
            return ModelResponse([ToolCallPart("wait_for_the_other", {})])
        return ModelResponse([TextPart("x")])

    class Both(Graph[str, list[str]]):
        write = Stage(str, agent)

        async def flow(self, text: str) -> list[str]:
            return await fan_out(self.write, ["first", "second"])

    with anyio.fail_after(30):
        run = await Runner(model=FunctionModel(answer)).run(Both(), "x", limits=Limits(tokens=10**6))
    assert run.output == ["x", "x"]


async def test_one_wide_stage_after_another_fits():
    """What waited in an earlier fan-out does not count in a later one."""
    model, prompts = priced()

    class Stages(Graph[int, int]):
        one = Stage(str, Agent(output_type=str))
        two = Stage(str, Agent(output_type=str))

        async def flow(self, width: int) -> int:
            names = [str(number) for number in range(width)]
            return len(await fan_out(self.one, names)) + len(await fan_out(self.two, names))

    with anyio.fail_after(30):
        assert (await Runner(model=model).run(Stages(), 10, limits=Limits(usd=1))).output == 20
    assert len(prompts) == 20


async def test_a_dearer_stage_is_estimated_by_itself():
    """What one stage costs says nothing about another: the first request of each goes alone."""
    inside = most = 0

    def model(tokens: int) -> FunctionModel:
        async def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            await anyio.lowlevel.checkpoint()
            inside -= 1
            return ModelResponse([TextPart("x")], usage=RequestUsage(input_tokens=tokens))

        return FunctionModel(answer)

    class Two(Graph[str, str]):
        cheap = Stage(str, Agent(model(1), output_type=str))
        dear = Stage(str, Agent(model(600), output_type=str))

        async def flow(self, text: str) -> str:
            await gather(self.cheap(text), self.dear(text))
            await gather(self.dear(text), self.dear(text))
            return text

    with pytest.raises(LimitError, match="601 of 1000 tokens are spent, and the next request is expected to need 600"):
        await Runner(limits=Limits(tokens=1000)).run(Two(), "x")
    assert most == 1


async def test_what_is_on_its_way_when_a_limit_is_reached_is_answered_first():
    """The run ends with the limit when the requests that were already made have their answers in the record."""
    gate = Turnstile()
    live = Runner(model=gate.model).start(Wide(), 20, limits=Limits(requests=4))
    with anyio.fail_after(30):
        await gate.crowd(4)
        await anyio.wait_all_tasks_blocked()
        assert not live.done
        gate.open()
        with pytest.raises(LimitError):
            await live.result()
    assert len(gate.seen) == 4
    statuses = [call.status for call in live.run.calls(Wide.write)]
    assert statuses == ["succeeded"] * 4 + ["cancelled"] * 16


async def test_a_limit_does_not_wait_for_a_provider_that_asked_for_patience():
    """A call that waits an hour before its next attempt does not keep a run alive that has reached its limit."""

    async def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        if asked(messages) == "0":
            await anyio.wait_all_tasks_blocked()  # the others have come to the limit
            raise ModelHTTPError(429, "m", headers={"retry-after": "3600"})
        return ModelResponse([TextPart("x")])

    class Patient(Graph[int, list[str]]):
        write = Stage(str, Agent(output_type=str), retries=5)

        async def flow(self, width: int) -> list[str]:
            return await fan_out(self.write, map(str, range(width)))

    with anyio.fail_after(30), pytest.raises(LimitError):
        await Runner(model=FunctionModel(answer)).run(Patient(), 5, limits=Limits(requests=3))


async def test_every_request_of_an_agents_loop_counts():
    """A tool loop inside one call is stopped too, and its messages say how far it came; retries of a provider count."""
    agent = Agent(output_type=str, name="loop")

    @agent.tool_plain
    def again() -> str:
        return "go on"

    def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart("again", {})])

    with pytest.raises(LimitError, match="3 model requests were made, and the limit is 3") as caught:
        await Runner(model=FunctionModel(answer)).run(Stage(str, agent), "x", limits=Limits(requests=3))
    call = caught.value.run.call("loop")
    assert call.usage.requests == 3
    assert str(call.messages).count("go on") == 3
    stage = Stage(str, Agent(output_type=str, name="w"), retries=10)
    busy = [ModelHTTPError(429, "m", headers={"retry-after": "0"}) for _ in range(10)]
    with pytest.raises(LimitError, match="3 model requests"):
        await Runner(model=fails(*busy)).run(stage, "x", limits=Limits(requests=3))


async def test_a_limit_says_what_was_reached_where_and_what_to_do():
    """The `RunError` names the run, the amount, the limit and the remedy; what was cut off is cancelled, not failed."""
    model, _ = priced()
    with pytest.raises(RunError) as caught:
        await run(5, model, Limits(usd=0.02))
    assert isinstance(caught.value, LimitError)
    assert "was not allowed to ask its model" in str(caught.value.__cause__)
    text = str(caught.value)
    assert "the run of Wide reached a limit" in text
    assert "0.02 of 0.02 US dollars are spent" in text
    assert "raise `Limits`" in text
    assert caught.value.run.error.type == "LimitError"
    assert caught.value.run.cost == Decimal("0.02")
    assert caught.value.failures == []
    assert {call.status for call in caught.value.run.calls(Wide.write)} == {"succeeded", "cancelled"}


def test_the_seconds_of_a_run_are_limited():
    """A run that takes too long ends with everything in it, and says so."""

    async def main() -> None:
        gate = Turnstile()
        before = others()
        live = Runner(model=gate.model).start(Wide(), 3, limits=Limits(seconds=60))
        await gate.crowd(3)
        JumpingLoop.jump(61)
        with pytest.raises(LimitError, match=r"the run of Wide reached a limit: it took longer than 60 s") as caught:
            await live.result()
        assert gate.inside == []
        assert others() <= before
        assert [call.status for call in caught.value.run.calls(Wide.write)] == ["cancelled"] * 3
        assert caught.value.run.call("note").status == "succeeded"

    JumpingLoop.run(main)


class Stubborn(Graph[str, str]):
    """Goes on whatever is raised."""

    write = Stage(str, Agent(output_type=str))

    async def flow(self, text: str) -> str:
        while True:
            with contextlib.suppress(Exception):
                await settle(self.write, ["a", "b"])


def test_a_flow_that_catches_a_limit_cannot_go_on():
    """Whatever the flow does with the error, no further request is made and the run ends with the limit."""

    async def main() -> None:
        model, prompts = priced()
        with anyio.fail_after(30), pytest.raises(LimitError, match="2 model requests were made"):
            await Runner(model=model).run(Stubborn(), "x", limits=Limits(requests=2))
        assert len(prompts) == 2
        gate = Turnstile()
        live = Runner(model=gate.model).start(Stubborn(), "x", limits=Limits(seconds=60))
        await gate.crowd(2)
        JumpingLoop.jump(61)
        with pytest.raises(LimitError, match="longer than 60 s"):
            await live.result()

    JumpingLoop.run(main)


async def test_a_dollar_limit_needs_known_prices():
    """A model without a price ends the run at its first request, since nobody could keep the limit."""
    model, prompts = priced(None)
    with pytest.raises(LimitError) as caught:
        await run(50, model, Limits(usd=5))
    assert "no price is known for the model of `write`" in str(caught.value)
    assert "limit requests or tokens instead" in str(caught.value)
    assert len(prompts) == 1


async def test_a_cancelled_request_gives_its_reservation_back():
    """Requests that a flow cancels do not keep later ones waiting for ever."""
    gate = Turnstile()

    class Impatient(Graph[str, str]):
        write = Wide.write

        async def flow(self, text: str) -> str:
            async with anyio.create_task_group() as group:
                group.start_soon(self.write, "slow")
                await gate.crowd(1)
                group.cancel_scope.cancel()
            gate.open()
            return await self.write("quick")

    with anyio.fail_after(30):
        assert (await Runner(model=gate.model).run(Impatient(), "x", limits=Limits(tokens=10**6))).output == "quick"


async def test_limits_belong_to_a_run():
    """`run(limits=)` goes before the runner's; runs do not spend each other's; one request at a time overshoots no more."""
    model, _ = priced()
    runner = Runner(model=model, limits=Limits(requests=1))
    assert len((await runner.run(Wide(), 3, limits=Limits(requests=3))).output) == 3
    with pytest.raises(LimitError):
        await runner.run(Wide(), 3)
    runner = Runner(model=model, limits=Limits(usd=0.05))
    lives = [runner.start(Wide(), 5) for _ in range(4)]
    assert [len((await live.result()).output) for live in lives] == [5] * 4
    model, prompts = priced()
    with pytest.raises(LimitError):
        await run(20, model, Limits(usd=0.05), max_concurrency=1)
    assert len(prompts) == 5


@pytest.mark.parametrize(
    "fields", [{"requests": -1}, {"tokens": -1}, {"usd": -0.1}, {"usd": math.nan}, {"seconds": -1}]
)
def test_a_limit_that_makes_no_sense_is_refused(fields: dict[str, float]):
    """The error names the field and its bounds."""
    with pytest.raises(ValueError, match=rf"Limits\({next(iter(fields))}=.*a limit is 0 or more"):
        Limits(**fields)


async def test_a_limit_reached_in_a_nested_graph_ends_the_whole_run():
    """The limit is the run's, wherever it is reached."""

    class Outer(Graph[int, list[list[str]]]):
        wide = Wide()

        async def flow(self, width: int) -> list[list[str]]:
            outcomes = await settle(self.wide, [width] * 3)
            return [outcome.value for outcome in outcomes if outcome.ok]

    model, prompts = priced()
    with anyio.fail_after(30), pytest.raises(LimitError, match="the run of Outer reached a limit"):
        await Runner(model=model).run(Outer(), 5, limits=Limits(requests=7))
    assert len(prompts) == 7


@pytest.mark.parametrize("limits", [Limits(tokens=1000), Limits(usd=1)], ids=repr)
async def test_requests_that_grow_dearer_do_not_go_over_by_the_width(limits: Limits):
    """After one cheap request the others go out slowly, and what nobody could foresee is one dear answer."""
    sizes: list[int] = []

    async def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        tokens = 1000 if sizes else 10
        sizes.append(tokens)
        await anyio.lowlevel.checkpoint()
        return ModelResponse([TextPart("x")], usage=RequestUsage(input_tokens=tokens, cost=Decimal(tokens) / 1000))

    with pytest.raises(LimitError) as caught:
        await run(50, FunctionModel(answer), limits)
    assert sizes == [10, 1000]
    assert not caught.value.timed_out


async def test_a_run_that_went_over_has_not_succeeded():
    """Its last answer took it over: the record is whole, and the run says that it reached its limit."""

    def answer(_messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart("long")], usage=RequestUsage(input_tokens=150))

    with pytest.raises(LimitError, match="150 tokens were spent, and the limit is 100") as caught:
        await run(1, FunctionModel(answer), Limits(tokens=100))
    assert [call.output for call in caught.value.run.calls(Wide.write)] == ["long"]


async def test_what_tools_ask_of_other_agents_counts():
    """Agents that a tool runs on its agent's account (`usage=ctx.usage`) spend the run's limit, too."""
    helper = Agent(echo(), output_type=str)
    agent = Agent(output_type=str)

    @agent.tool
    async def ask(ctx: RunContext[object], question: str) -> str:
        return (await helper.run(question, usage=ctx.usage)).output

    def lead(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        if len(messages) > 1:
            return ModelResponse([TextPart("done")])
        return ModelResponse([ToolCallPart("ask", {"question": str(number)}) for number in range(5)])

    stage = Stage(str, agent)
    assert (await Runner(FunctionModel(lead), limits=Limits(requests=7)).run(stage, "x")).usage.requests == 7
    for few in (2, 6):
        with pytest.raises(LimitError, match=f"6 model requests were made, and the limit is {few}"):
            await Runner(FunctionModel(lead), limits=Limits(requests=few)).run(stage, "x")


@pytest.mark.parametrize("way", ["swallows", "replaces"])
async def test_a_flow_cannot_talk_its_way_out_of_a_time_limit(way: str):
    """Whatever it makes of being cancelled, the run took longer than it may."""

    @step
    async def for_ever(number: int) -> int:
        await anyio.sleep_forever()
        return number

    class Stubborn(Graph[int, int]):
        wait = for_ever

        async def flow(self, number: int) -> int:
            try:
                return await self.wait(number)
            except BaseException:  # noqa: BLE001 - that is what this flow does
                if way == "replaces":
                    raise ValueError("cleaning up failed") from None
                return 7

    with pytest.raises(LimitError, match=r"took longer than 0\.05 s") as caught:
        await Runner(limits=Limits(seconds=0.05)).run(Stubborn(), 1)
    assert caught.value.timed_out
