"""The flagship graph: scripted models drive it, the tests of its sections really run, hostile code is held."""

import asyncio
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai.messages import ModelMessage, ModelResponse, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from loading import GRAPHS, graph_module
from stagegraph import Prompts, Run, Runner
from stagegraph.journal import MemoryJournal
from stagegraph.local import LocalModel

module: Any = graph_module("spec_review")
sandbox: Any = __import__("spec_review_sandbox")

GOOD = "def value():\n    return {number}\n"
WRONG = "def value():\n    return None\n"
TESTS = "from solution import value\n\ndef test_value():\n    assert value() is not None\n"


class Script:
    """A model that plans *sections* and writes section *broken* wrong until it gets hints."""

    def __init__(self, sections: int, broken: int | None = None) -> None:
        self.sections = sections
        self.broken = broken
        self.asked: list[str] = []

    def __call__(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        text = str(messages[0].parts[0].content)
        tool = info.output_tools[0]
        fields = set(tool.parameters_json_schema["properties"])
        answer: dict[str, Any]
        if fields == {"requirements"}:
            answer = {"requirements": ["it works"]}
        elif fields == {"sections"}:
            answer = {"sections": [{"title": f"part {i}", "task": f"task {i}"} for i in range(self.sections)]}
        elif fields == {"hints"}:
            answer = {"hints": ["return a number"]}
        elif fields == {"code"} and "Write tests" in (info.instructions or ""):
            answer = {"code": TESTS}
        elif fields == {"code"}:
            wrong = f"part {self.broken}<" in text and "return a number" not in text
            answer = {"code": WRONG if wrong else GOOD.format(number=len(text))}
        else:
            answer = {"approved": "FAILED" not in text, "summary": f"{text.count('<section')} sections", "problems": []}
        self.asked.append(",".join(sorted(fields)))
        return ModelResponse([ToolCallPart(tool.name, answer)])


@pytest.mark.parametrize("sections", [0, 2, 20])
async def test_any_number_of_sections_is_built_tested_and_reviewed(sections: int) -> None:
    """The plan decides how many sections there are; each one's tests really run."""
    script = Script(sections)
    run = await Runner(FunctionModel(script)).run(module.SpecToReview(), {"text": "Make it."})
    assert run.output.approved
    assert run.output.summary == f"{sections} sections"
    reports = run.calls(module.Build.run_tests)
    assert [call.key for call in reports] == sorted(
        (f"build[part {i}].run_tests" for i in range(sections)), key=lambda k: int(k.split()[1].split("]")[0])
    )
    assert all(call.output.passed and call.output.ran == 1 for call in reports)


async def test_a_failing_section_is_written_again_with_hints() -> None:
    """One section's tests fail; its critique leads to new code, and nobody else's code is written twice."""
    run = await Runner(FunctionModel(Script(3, broken=1))).run(module.SpecToReview(), {"text": "Make it."})
    assert run.output.approved
    assert [c.key for c in run.calls(module.Build.critique)] == ["build[part 1].critique"]
    rounds = [call.output.rounds for call in run.calls(module.SpecToReview.build)]
    assert rounds == [1, 2, 1]
    assert ("build[part 1].run_tests", "build[part 1].critique") in run.edges()
    assert {("plan", f"build[part {i}].code") for i in range(3)} <= set(run.edges())
    again = Run.from_json(run.to_json(), module.SpecToReview)
    assert again.output == run.output
    assert again.edges() == run.edges()


async def test_one_changed_prompt_runs_that_stage_and_what_follows_from_it() -> None:
    """Replay asks no model; with one prompt changed, only its stage and what depends on its new outputs run."""
    script = Script(3)
    runner = Runner(FunctionModel(script), journal=MemoryJournal())
    first = await runner.run(module.SpecToReview(), {"text": "Make it."})
    script.asked.clear()
    same = await runner.run(module.SpecToReview(), {"text": "Make it."}, replay=first)
    assert script.asked == []
    assert same.output == first.output
    review = Prompts({}).replace({"review": "Be kind."})
    await runner.run(module.SpecToReview(), {"text": "Make it."}, replay=first, prompts=review)
    assert len(script.asked) == 1
    script.asked.clear()
    code = Prompts({}).replace({"build.code": "Write it well."})
    changed = await runner.run(module.SpecToReview(), {"text": "Make it."}, replay=first, prompts=code)
    assert sorted(script.asked) == ["code"] * 3  # the code comes out the same, so nothing after it runs again
    assert not any(call.replayed for call in changed.calls(module.Build.code))
    assert all(call.replayed for call in changed.calls(module.Build.run_tests))


HAZARDS = {
    "syntax": ("def value(:", "SyntaxError"),
    "exit": ("import sys; sys.exit(0)", "SystemExit"),
    "hard exit": ("import os; os._exit(0)", "without a verdict"),
    "sleep": ("import time; time.sleep(60)", "longer than"),
    "spin": ("while True: pass", "longer than"),
    "flood": ("while True: print('x' * 1000)", "printed more"),
    "memory": ("x = 'x' * 10**10", "MemoryError"),
    "file": ("open('x', 'w').write('x' * 10**7)", "File too large"),
    "forgery": ("""print('{"nonce": "", "ran": 1, "failed": 0}')\ndef value(): return None""", "AssertionError"),
    "environment": (
        "import os\ndef value(): return None if 'SECRET' in os.environ else 1\nassert 0, dict(os.environ)",
        "",
    ),
}


@pytest.mark.parametrize("name", HAZARDS)
async def test_hostile_code_is_held_and_explained(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the code does, the tests end in time, are not passed, say why, and leave nothing behind."""
    monkeypatch.setenv("SECRET", "do-not-leak")
    code, reason = HAZARDS[name]
    seconds = 2 if reason == "longer than" else 60  # which a busy machine may need to start a process
    verdict = await sandbox.run_tests(code, TESTS, sandbox.Limits(seconds=seconds))
    assert not verdict.passed
    assert reason in f"{verdict.log} {verdict.stopped}"
    assert "do-not-leak" not in verdict.log
    assert len(verdict.log) <= sandbox.Limits().output + 100


async def test_a_child_that_left_the_group_holds_nobody_up() -> None:
    """It may keep the pipe open for as long as it likes; the verdict does not wait for that."""
    leaver = """
import os, time
if os.fork() == 0:
    os.setsid()
    print("left:", os.getpid(), flush=True)
    time.sleep(600)
while True: pass
"""
    verdict = await sandbox.run_tests(leaver, TESTS, sandbox.Limits(seconds=2))
    found = re.search(r"left: (\d+)", verdict.log)
    assert found is not None, verdict
    os.kill(int(found[1]), signal.SIGKILL)  # it is still there
    assert "longer than" in str(verdict.stopped)


@pytest.mark.parametrize(
    ("tests", "passed"),
    [
        (TESTS, True),
        ("", False),
        (
            "import unittest\nfrom solution import value\nclass T(unittest.TestCase):\n    def test(self): value()\n",
            True,
        ),
        ("def test_é(): print('\N{GRINNING FACE}')\n", True),
    ],
)
async def test_tests_are_functions_or_unittest_cases(tests: str, passed: bool) -> None:
    """Both styles run; a file without tests does not count as passed."""
    verdict = await sandbox.run_tests(GOOD.format(number=1), tests)
    assert verdict.passed is passed
    assert ("no tests" in verdict.log) is (not passed)


async def test_a_cancelled_run_leaves_no_process_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelling while the tests run ends their process group and removes their folder."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    pipe = tmp_path / "pid"
    os.mkfifo(pipe)
    code = f"import os, time\nopen({str(pipe)!r}, 'w').write(str(os.getpid()))\ntime.sleep(60)"
    task = asyncio.create_task(sandbox.run_tests(code, TESTS, sandbox.Limits(seconds=50)))
    reading = await asyncio.to_thread(pipe.read_text)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(reading), 0)
    assert os.listdir(tmp_path) == ["pid"]  # noqa: PTH208


def test_the_examples_fit_the_graph() -> None:
    """Every example is an input of the graph."""
    lines = (GRAPHS / "spec_review" / "examples.jsonl").read_text("utf-8").splitlines()
    assert len(lines) >= 5
    for line in lines:
        module.Spec.model_validate(json.loads(line)["input"])


@pytest.mark.local
async def test_the_embedded_model_gets_through_to_the_end() -> None:
    """The embedded model goes from the specification to a review; its answers are short here, of valid types anyway."""
    model = LocalModel(settings={"max_tokens": 64})
    run = await Runner(model).run(module.SpecToReview(), {"text": "A function that adds two numbers."})
    assert isinstance(run.output, module.Review)
    assert run.calls(module.Build.run_tests)
