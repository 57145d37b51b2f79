"""What a type checker must understand without help."""

from typing import Any, assert_type

from pydantic import BaseModel
from pydantic_ai import Agent, DeferredToolRequests, Tool

from stagegraph import (
    Call,
    Graph,
    LiveRun,
    Outcome,
    Run,
    Runner,
    Stage,
    Step,
    as_completed,
    fan_out,
    gather,
    settle,
    step,
)


class Section(BaseModel):
    title: str


class Code(BaseModel):
    text: str


class Plan(BaseModel):
    sections: list[Section]


class Built(BaseModel):
    code: Code


@step
async def check(code: Code) -> bool:
    return bool(code.text)


@step(version=2)
async def again(code: Code) -> int:
    return len(code.text)


class Build(Graph[Section, Built]):
    code = Stage(Section, Agent(output_type=Code))
    check = check

    async def flow(self, section: Section) -> Built:
        code = await self.code(section)
        assert_type(code, Code)
        assert_type(await self.check(code), bool)
        return Built(code=code)


class Whole(Graph[str, list[Built]]):
    plan = Stage(str, Agent(output_type=Plan))
    build = Build()

    async def branch(self, section: Section) -> int:
        return len(section.title)

    async def flow(self, spec: str) -> list[Built]:
        plan = await self.plan(spec)
        assert_type(await fan_out(self.branch, plan.sections), list[int])
        assert_type(await settle(self.build, plan.sections), list[Outcome[Built]])
        assert_type(await gather(self.plan(spec), self.build(plan.sections[0])), tuple[Plan, Built])
        async with as_completed(self.build, plan.sections) as outcomes:
            async for outcome in outcomes:
                assert_type(outcome.value, Built)
        return await fan_out(self.build, plan.sections)


assert_type(Build.code, Stage[Section, Code])
assert_type(check, Step[Code, bool])
assert_type(again, Step[Code, int])
assert_type(Stage(str, Agent(output_type=[str, DeferredToolRequests])), Stage[str, str])
assert_type(Stage(list[Section], Agent(output_type=list[Code])), Stage[list[Section], list[Code]])


async def runs(runner: Runner) -> None:
    run = await runner.run(Whole(), "spec")
    assert_type(run, Run[str, list[Built]])
    assert_type(run.output, list[Built])
    assert_type(run.calls(Build.code), list[Call[Section, Code]])
    assert_type(run.calls(Build.code)[0].output, Code)
    assert_type(await runner.run(Build.code, Section(title="x")), Run[Section, Code])
    assert_type(await runner.run(Build(), {"title": "x"}), Run[Section, Built])
    assert_type(runner.start(Whole(), "spec"), LiveRun[str, list[Built]])
    assert_type(Whole().run_sync("spec"), Run[str, list[Built]])
    assert_type(Run.from_json("", Whole()), Run[str, list[Built]])
    assert_type(Whole().as_tool(), Tool[Any])
    assert_type(Whole().as_agent(), Agent[Any, list[Built]])
    assert_type(Whole().as_agent(runner=runner, asks=True), Agent[Any, list[Built] | DeferredToolRequests])
    assert_type((await Whole().as_agent().run("spec")).output, list[Built])
