"""Lines that a type checker must refuse; each is marked."""

from pydantic import BaseModel
from pydantic_ai import Agent

from stagegraph import Graph, Runner, Stage, fan_out, step


class Spec(BaseModel):
    text: str


class Section(BaseModel):
    title: str


class Plan(BaseModel):
    sections: list[Section]


class Build(Graph[Section, str]):
    code = Stage(Section, Agent(output_type=str))

    async def flow(self, section: Section) -> str:
        return await self.code(section)


@step
async def count(text: str) -> int:
    return len(text)


class Whole(Graph[Spec, Plan]):
    plan = Stage(Spec, Agent(output_type=Plan))
    build = Build()
    count = count

    async def flow(self, spec: Spec) -> Plan:
        plan = await self.plan(spec)
        await self.plan(plan)  # error
        await self.build(spec)  # error
        await fan_out(self.build, [spec])  # error
        await fan_out(self.build, plan)  # error
        await self.count(3)  # error
        text: int = await self.build(plan.sections[0])  # error
        return text  # error


class Wrong(Graph[Spec, Plan]):
    async def flow(self, spec: Section) -> Plan:  # error
        raise NotImplementedError


async def runs(runner: Runner) -> None:
    await runner.run(Whole(), Section(title="x"))  # error
    await runner.run(Build.code, Spec(text="x"))  # error
    run = await runner.run(Whole(), Spec(text="x"))
    run.output.text  # error
    run.calls(Build.code)[0].output.sections  # error
