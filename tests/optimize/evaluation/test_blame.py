"""What a note or a score is blamed on, and what a model is shown of it."""

import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from words import Rate, asked, failing_run, rated, says

from stagegraph import Example, Graph, Note, Run, Score, Stage, fan_out, note, step
from stagegraph.optimize import credited, stage_feedback
from stagegraph.optimize.evaluation.blame import blame
from stagegraph.optimize.evaluation.report import Trial
from stagegraph.optimize.evaluation.shown import records

RUN = rated("a bc")


def test_feedback_has_all_calls_worst_first() -> None:
    """By the weight of their notes; then what was said of the stage and of the run."""
    run = RUN
    first, second = run.calls(Rate.judge)
    score = Score(
        0.5,
        notes=[first.note("small", 0.5), second.note("big", 2), note("rate.judge", "in general"), Note("", "overall")],
        objectives={"cost": -1.0},
    )
    text = stage_feedback(run, score, "rate.judge")
    order = ["scored 0.5", "cost: -1", "in general", "overall", "rate[1].judge", "big", "rate[0].judge", "small"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)
    other = stage_feedback(run, score, "plan")
    assert "overall" in other
    assert "big" not in other
    assert "Nothing was noted" in stage_feedback(run, Score(1.0), "plan")


def test_a_final_verdict_alone_still_shows_every_call() -> None:
    """With what each was given, answered, and what was made of it."""
    text = stage_feedback(RUN, Score(0.25), "rate.judge")
    assert "scored 0.25" in text
    assert all(f"Call `rate[{index}].judge`" in text for index in range(2))


def test_feedback_keeps_to_its_limit() -> None:
    """The worst calls stay, and it says how many were left out."""
    run = rated(" ".join(f"w{index}" for index in range(50)))
    notes = [call.note(f"note {index} " + "x" * 300, weight=index) for index, call in enumerate(run.calls(Rate.judge))]
    text = stage_feedback(run, Score(0, notes=notes), "rate.judge", limit=2_000)
    assert len(text) <= 2_000
    assert "note 49" in text
    assert "note 1 " not in text
    assert "more calls of this stage, " in text
    huge = Score(0, notes=[run.calls(Rate.judge)[0].note("y" * 10_000)])
    assert len(stage_feedback(run, huge, "rate.judge", limit=1_000)) <= 1_000


class Code(BaseModel):
    text: str


class Report(BaseModel):
    code: Code
    passed: bool


@step
async def check(code: Code) -> Report:
    return Report(code=code, passed="ok" in code.text)


class Coder(Graph[list[str], list[Report]]):
    """What a stage wrote is judged in a step."""

    write = Stage(str, Agent(output_type=str, instructions="Write."))
    check = check

    async def one(self, task: str) -> Report:
        return await self.check(Code(text=await self.write(task)))

    async def flow(self, tasks: list[str]) -> list[Report]:
        return await fan_out(self.one, tasks)


def test_what_is_noted_at_a_step_goes_to_the_stage_that_made_its_input() -> None:
    """Steps are never tuned; along the recorded edges the note finds who can do better."""
    long = "x" * 70

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(f"{asked(messages)} {long}")])

    run = Coder().run_sync(["ok", "bad"], model=FunctionModel(answer))
    notes = [call.note("tests failed") for call in run.calls(Coder.check) if not call.output.passed]
    assert list(credited(run, notes)) == ["write[1]"]
    text = stage_feedback(run, Score(0.5, notes=notes), "write")
    assert "seen at `check[1]`: tests failed" in text
    assert text.index("write[1]") < text.index("write[0]")
    assert "its answer went into `check[1]`, which gave" in text


class Cut(BaseModel):
    parts: list[str]


class Polish(Graph[str, str]):
    """Something that decides an `if`, something that is cut up and put together, and something that is said last."""

    gate = Stage(str, Agent(output_type=bool, instructions="gate"))
    cut = Stage(str, Agent(output_type=Cut, instructions="cut"))
    polish = Stage(str, Agent(instructions="polish"))

    async def flow(self, text: str) -> str:
        await self.gate(text)
        cut = await self.cut(text)
        return await self.polish(max(cut.parts, key=len))


def polished() -> Run[str, str]:
    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        if info.output_tools:
            args = {"response": True} if info.instructions == "gate" else {"parts": ["x", asked(messages) * 40]}
            return ModelResponse([ToolCallPart(info.output_tools[0].name, args)])
        return ModelResponse([TextPart(f"{asked(messages)} made shiny")])

    return Polish().run_sync("ab", model=FunctionModel(answer))


@pytest.mark.parametrize("stored", [False, True])
def test_a_verdict_goes_back_from_the_output(stored: bool) -> None:
    """What a call was given, answered, what was made of it, and more blame for those on the way."""
    run = polished()
    if stored:
        run = Run.from_json(run.to_json(), Polish())
    trial = Trial(Example("ab", "AB"), run, Score(0.25))
    assert blame(run, trial.score) == {"polish": 0.75, "cut": 0.75, "gate": 0.375}
    (record,) = records([trial], "cut")
    told = f"given: {record['input']}\nanswered: {record['output']}\n{record['feedback']}"
    for text in (told, stage_feedback(run, Score(0.25), "cut", expected="AB")):
        assert "given: ab\n" in text
        assert 'answered: {"parts": ["x", "abab' in text
        assert "its answer went into `polish`, which gave: abab" in text
        assert "scored 0.25" in text
        assert "Expected in the end: AB" in text


def test_the_way_back_from_a_failure_begins_where_it_failed() -> None:
    """A run without an output has no result to go back from."""
    run = failing_run()
    assert blame(run, Score(0.0)) == {"plan": 0.5, "rate.judge": 1.0}


@step
async def same(text: str) -> str:
    return text


class Twofold(Graph[str, str]):
    """A step that is two stages away from where it began."""

    plan = Stage(str, Agent(instructions="plan"))
    write = Stage(str, Agent(instructions="write"))
    other = Stage(str, Agent(instructions="other"))
    check = same

    async def flow(self, text: str) -> str:
        await self.other(text)
        return await self.check(await self.write(await self.plan(text)))


def test_the_nearest_stage_earns_most_of_what_a_step_found() -> None:
    """Those before it may be at fault as well, those that had no part in it are not."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([TextPart(f"{asked(messages)} {info.instructions}")])

    run = Twofold().run_sync("ab", model=FunctionModel(answer))
    notes = [run.call("check").note("wrong", 2.0)]
    assert blame(run, Score(0.5, notes)) == {"write": 1.0, "plan": 0.5}
    found = credited(run, notes)
    assert {key: [(one.target, one.weight) for one in earned] for key, earned in found.items()} == {
        "write": [("check", 1.0)],
        "plan": [("check", 0.5)],
    }
    assert "- later, seen at `check`: wrong" in stage_feedback(run, Score(0.5, notes), "plan")
    assert "Nothing was noted" in stage_feedback(run, Score(0.5, notes), "other")


def test_a_note_on_a_call_is_not_about_its_namesake() -> None:
    """The first call of a stage has the stage's path as its key; the second one did nothing."""

    class Again(Graph[str, str]):
        write = Stage(str, Agent(instructions="write"))

        async def flow(self, text: str) -> str:
            return await self.write(await self.write(text))

    run = Again().run_sync("ab", model=says("one", "two"))
    first, second = run.calls(Again.write)
    assert (first.key, second.key) == ("write", "write#1")
    assert list(credited(run, [first.note("bad")])) == ["write"]
    assert list(credited(run, [second.note("bad")])) == ["write#1"]


def test_a_note_on_a_graph_is_for_the_stages_inside() -> None:
    """`rate[1]` is one branch."""
    found = credited(RUN, [note("rate[1]", "odd")])
    assert list(found) == ["rate[1].judge"]
