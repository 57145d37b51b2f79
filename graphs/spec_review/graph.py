"""The flagship: a specification in, reviewed and tested code out, with as many sections as the plan has."""

from __future__ import annotations

from pydantic import BaseModel, Field, field_validator
from pydantic_ai import Agent

from spec_review_sandbox import run_tests as run_in_sandbox
from stagegraph import Graph, Stage, fan_out, step


class Spec(BaseModel):
    """A specification that a customer wrote."""

    text: str


class Requirements(BaseModel):
    """What has to be true of the result."""

    requirements: list[str] = Field(max_length=40, description="Short, testable statements.")


class Section(BaseModel):
    """One part of the work that can be written by itself."""

    title: str = Field(description="Two or three words; different from the other titles.")
    task: str = Field(description="What this part has to do.")


class Plan(BaseModel):
    """The work, split up."""

    sections: list[Section] = Field(max_length=20, description="Independent parts, 2 to 20 of them.")

    @field_validator("sections")
    @classmethod
    def names_differ(cls, sections: list[Section]) -> list[Section]:
        """The titles name the branches; the model is asked again for others."""
        titles = [section.title for section in sections]
        if len(set(titles)) < len(titles):
            msg = "give every section a title of its own"
            raise ValueError(msg)
        return sections


class Assignment(BaseModel):
    """A section with what it has to satisfy, and with hints when it is written again."""

    section: Section
    requirements: Requirements
    hints: list[str] = []


class Code(BaseModel):
    """One Python module."""

    code: str = Field(description="The text of solution.py; standard library only.")


class Tests(BaseModel):
    """Tests for one module."""

    code: str = Field(description="The text of test_solution.py: functions test_*, which import from solution.")


class Attempt(BaseModel):
    """Code together with the tests that it has to pass."""

    section: Section
    code: Code
    tests: Tests


class Report(BaseModel):
    """What a real run of the tests gave."""

    passed: bool
    ran: int
    failed: int
    log: str


class Failure(BaseModel):
    """An attempt that did not pass, for whoever has to say why."""

    attempt: Attempt
    report: Report


class Critique(BaseModel):
    """What to change."""

    hints: list[str] = Field(max_length=5, description="Concrete changes to the code.")


class Built(BaseModel):
    """A section as far as it came."""

    attempt: Attempt
    report: Report
    rounds: int


class ReviewInput(BaseModel):
    """Everything a reviewer needs."""

    spec: Spec
    requirements: Requirements
    built: list[Built]


class Review(BaseModel):
    """The verdict on the whole."""

    approved: bool
    summary: str
    problems: list[str] = Field(default=[], max_length=20)


_SHOWN = 1_500
"""Characters of code or log that are put before a model that only judges them."""


def _cut(text: str, length: int = _SHOWN) -> str:
    return text if len(text) <= length else f"{text[: length // 2]}\n[...]\n{text[-length // 2 :]}"


def render_failure(failure: Failure) -> str:
    """An attempt for a critic: the code, the tests, and the end of the log."""
    attempt = failure.attempt
    parts = (("task", attempt.section.task), ("code", attempt.code.code), ("tests", attempt.tests.code))
    texts = [f"<{name}>\n{_cut(text)}\n</{name}>" for name, text in parts]
    return "\n".join([*texts, f"<log>\n{failure.report.log[-_SHOWN:]}\n</log>"])


def render_review(given: ReviewInput) -> str:
    """The whole for a reviewer, each section cut to its share."""
    share = max(200, 4 * _SHOWN // max(1, len(given.built)))
    lines = [f"<spec>\n{_cut(given.spec.text)}\n</spec>", "<requirements>"]
    lines += [f"- {_cut(one, 200)}" for one in given.requirements.requirements]
    lines.append("</requirements>")
    for one in given.built:
        state = "tests passed" if one.report.passed else f"tests FAILED: {one.report.log[-200:]}"
        code = _cut(one.attempt.code.code, share)
        lines.append(f"<section title={one.attempt.section.title!r} state={state!r}>\n{code}\n</section>")
    return "\n".join(lines)


@step
async def run_tests(attempt: Attempt) -> Report:
    """Run the tests for real, in a process with limits on time, memory and output."""
    verdict = await run_in_sandbox(attempt.code.code, attempt.tests.code)
    log = verdict.log if verdict.stopped is None else f"{verdict.log}\nstopped: {verdict.stopped}"
    return Report(passed=verdict.passed, ran=verdict.ran, failed=verdict.failed, log=log[-8_000:])


class Build(Graph[Assignment, Built]):
    """Write one section, test it, and write it again while the tests fail."""

    code = Stage(
        Assignment,
        Agent(
            output_type=Code,
            instructions=(
                "Write one Python module for the section, with the standard library alone. Follow the hints, where "
                "there are any. Give the whole module."
            ),
        ),
    )
    tests = Stage(
        Assignment,
        Agent(
            output_type=Tests,
            instructions=(
                "Write tests for the section as functions named test_*, without arguments, importing from `solution`. "
                "Test behaviour that the requirements ask for, and nothing else."
            ),
        ),
    )
    run_tests = run_tests
    critique = Stage(
        Failure,
        Agent(
            output_type=Critique,
            instructions="The tests failed. Say as a strict maintainer what to change in the code, in concrete hints.",
        ),
        render=render_failure,
    )

    def __init__(self, rounds: int = 3) -> None:
        self.rounds = rounds

    async def attempt(self, assignment: Assignment, tests: Tests) -> tuple[Attempt, Report]:
        """Write the code, and run the tests on it."""
        attempt = Attempt(section=assignment.section, code=await self.code(assignment), tests=tests)
        return attempt, await self.run_tests(attempt)

    async def flow(self, assignment: Assignment) -> Built:
        tests = await self.tests(assignment)
        attempt, report = await self.attempt(assignment, tests)
        rounds = 1
        while not report.passed and rounds < self.rounds:
            critique = await self.critique(Failure(attempt=attempt, report=report))
            attempt, report = await self.attempt(assignment.model_copy(update={"hints": critique.hints}), tests)
            rounds += 1
        return Built(attempt=attempt, report=report, rounds=rounds)


class SpecToReview(Graph[Spec, Review]):
    """Spec -> requirements -> plan -> code and tests per section -> review."""

    parse = Stage(
        Spec,
        Agent(output_type=Requirements, instructions="List what has to be true of the result, as testable statements."),
    )
    plan = Stage(
        Requirements,
        Agent(
            output_type=Plan,
            instructions="Split the work into sections that can be written and tested independently of each other.",
        ),
    )
    build = Build()
    review = Stage(
        ReviewInput,
        Agent(
            output_type=Review,
            instructions="Review the result against the specification. Approve only what satisfies every requirement.",
        ),
        render=render_review,
    )

    async def flow(self, spec: Spec) -> Review:
        requirements = await self.parse(spec)
        plan = await self.plan(requirements)
        work = [Assignment(section=section, requirements=requirements) for section in plan.sections]
        built = await fan_out(self.build, work, key=lambda one: one.section.title)
        return await self.review(ReviewInput(spec=spec, requirements=requirements, built=built))
