"""What a reflection model is asked: everything that it needs, and never more than it can read."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from pydantic import Field, create_model
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from pydantic_ai.models.test import TestModel
from rules import searched
from words import asked

from stagegraph import Example, Graph, Run, Score, Stage, fan_out
from stagegraph.optimize import Budget

pytestmark = pytest.mark.anyio

LONG = "".join(f"Rule {number}: be brief.\n" for number in range(8_000))
"""Instructions of about 200 kB."""
READABLE = 90_000
"""Characters of a question that any model of today can read."""


async def questions(graph: Graph[Any, Any], answer: Any, metric: Any, **options: Any) -> tuple[list[str], Any]:
    """What the reflection model was asked, and what came of it."""
    heard: list[str] = []

    def reflect(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        heard.append(asked(messages))
        return ModelResponse([TextPart(answer(heard[-1]))])

    known = {"model": TestModel(call_tools=[]), "proposer": None, "reflection_model": FunctionModel(reflect)}
    result = await searched(metric, graph, budget=Budget(runs=12), **known, **options)  # one step
    assert heard
    assert result.error is None
    return heard, result


class Verbose(Graph[str, str]):
    say = Stage(str, Agent(instructions=LONG))

    async def flow(self, text: str) -> str:
        return await self.say(text)


def wrong(_example: Example[Any], run: Run[Any, Any]) -> Score:
    return Score(0.0, [call.note("Too long. " * 3_000) for call in run.calls()])


async def test_a_huge_instruction_makes_no_huge_question() -> None:
    """Its middle is not shown, and the question says how much that is and what to do about it."""
    heard, _ = await questions(Verbose(), lambda _: "```\nShort.\n```", wrong)
    assert max(map(len, heard)) < READABLE
    assert f"[... {len(LONG.strip()) - 20_000 + 1} characters that are not shown ...]" in heard[0]
    assert "repeat it where that text is to stay" in heard[0]
    assert LONG[:100] in heard[0]
    assert LONG.strip()[-100:] in heard[0]


async def test_what_was_not_shown_stays_where_the_answer_says_so() -> None:
    """An answer that repeats the line has the whole old text but for what it changed; one without it has not."""
    texts: list[str] = []

    def edit(question: str) -> str:
        now = question.partition("```\n")[2].partition("\n```")[0]
        return "```\n" + now.replace("Rule 0: be brief.", "Rule 0: be kind.") + "\n```"

    def metric(_example: Example[str], run: Run[str, str]) -> Score:
        request = run.calls()[0].messages[0]
        texts.append(getattr(request, "instructions", None) or "")
        return Score(0.5, [run.calls()[0].note("Be kind.")])

    await questions(Verbose(), edit, metric)
    changed = LONG.strip().replace("Rule 0: be brief.", "Rule 0: be kind.")
    assert changed in texts
    assert set(texts) == {LONG.strip(), changed}


async def test_schemas_and_calls_that_have_no_room_are_counted() -> None:
    """A schema that is cut says so, and calls that are not shown are counted."""
    Wide: Any = create_model(  # noqa: N806 - a type
        "Wide", **{f"field_{number}": (str, Field("x", description="long " * 60)) for number in range(60)}
    )

    class Many(Graph[str, list[Any]]):
        each = Stage(str, Agent(output_type=Wide, instructions="each"))

        async def flow(self, text: str) -> list[Any]:
            return await fan_out(self.each, [f"{number} {text} " + "x" * 5_000 for number in range(20)])

    for components in (("instructions",), ("fields",)):
        heard, _ = await questions(Many(), lambda _: "```\nNew.\n```", wrong, components=components)
        assert max(map(len, heard)) < READABLE
        assert " characters)" in heard[0]
        shown = heard[0].count("## Call ")
        assert f"({3 * 20 - shown} more calls are not shown.)" in heard[0]


USES = """
import asyncio, sys
sys.modules[sys.argv[1]] = None
from pydantic_ai import Agent
from pydantic_ai.models.test import TestModel
from stagegraph import Example, Graph, Stage, TuningError, optimize
from stagegraph.optimize import Budget, Report, evaluate, examples
asked = []
class Say(Graph[str, str]):
    say = Stage(str, Agent(instructions="Say."))
    async def flow(self, text):
        asked.append(text)
        return await self.say(text)
def metric(example, run):
    return 1.0
rows, val, model = [Example("a", id="a")], [Example("b", id="b")], TestModel()
known = {"budget": Budget(runs=9), "proposer": "notes"}
for use in (
    lambda: asyncio.run(optimize.tune(Say(), metric, train=rows, val=val, model=model, **known)),
    lambda: optimize.GEPA(metric, **known).compile(optimize.GraphModule(Say(), model=model), trainset=rows, valset=val),
    lambda: optimize.from_dspy,
):
    asked.clear()
    try:
        use()
    except TuningError as error:
        assert isinstance(error, ImportError) and not asked
        print(error)
print(asyncio.run(evaluate(Say(), metric, val, model=model)).mean)
"""


@pytest.mark.parametrize(("package", "users"), [("dspy", ["GEPA", "from_dspy"]), ("gepa", ["tune", "GEPA"])])
def test_a_missing_package_is_named_with_what_to_install(package: str, users: list[str]) -> None:
    """Before anything is run, also when it is found out late; what needs neither works without them."""
    done = subprocess.run([sys.executable, "-c", USES, package], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    told = [f"{name} needs {package}, which is not installed: pip install 'stagegraph[optimize]'" for name in users]
    assert done.stdout.splitlines() == [*told, "1.0"]
