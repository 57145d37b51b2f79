"""Tuning from the front door: what it gives, what it refuses, and how it goes on after it was killed."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from rules import POOL, TRAIN, VAL, Chain, coupled, learner, rows, student, tuned, verdict
from words import shaky

from forked import python
from stagegraph import Example, Graph, Prompt, Prompts, Run, Runner, Stage, TuningError
from stagegraph.journal import MemoryJournal
from stagegraph.optimize import Budget, Candidates, Preview, Proposal, preview

pytestmark = pytest.mark.anyio

TEST = rows("test", 7)


async def test_a_tuning_ends_with_prompts_and_a_verdict_on_held_out_examples(tmp_path: Path) -> None:
    """What comes out can be deployed, says where it comes from, and what judged it: what decided nothing, if it can."""
    result = await tuned(test=TEST)
    assert result.held_out
    assert str(result.comparison).startswith("better by 1.00 to 1.00; 7 won")
    assert "held-out" in str(result)
    assert {row.example for row in result.report.rows} == {row.id for row in TEST}
    result.save(tmp_path / "best.yaml")
    assert Prompts.load(tmp_path / "best.yaml")["a"].instructions == "a: RULE-a"
    assert '"metric": "separate"' in (tmp_path / "best.tuning.json").read_text("utf-8")
    assert result.provenance["model"] == "function:student"
    assert len(result.found.candidates) == 4
    flattered = await tuned()
    assert not flattered.held_out
    assert "which also chose it" in str(flattered)


async def test_nothing_better_is_said_plainly() -> None:
    """A pool without a better text leaves the seed, which is not run twice to be compared with itself."""
    model, requests = student()
    result = await tuned(proposer=Candidates({"a": ["a: worse"]}), stagnation=2, model=model)
    assert result.prompts == result.found.seed
    assert "nothing better than the start" in str(result)
    assert requests["a"] <= 3 + 3 * 6 + 3


@pytest.mark.parametrize("when", [30, 64, 70])
async def test_a_provider_that_is_gone_costs_nothing_that_was_found(when: int) -> None:
    """The best until then is given, with what chose it as the verdict, and the error says what happened."""
    model = shaky(student()[0], ModelHTTPError(503, "student"), lambda number: number > when)[0]
    result = await tuned(model=model, test=TEST)
    assert "503" in str(result.found.error)
    assert not result.held_out
    assert result.comparison.after.mean == result.found.candidates[result.found.best].mean


async def test_a_child_replays_what_its_change_does_not_touch() -> None:
    """Changing the last stage asks only the last stage again; validation asks everything."""
    model, requests = student()

    def metric(_example: Example[str], run: Run[str, str]) -> Any:
        return 1.0 if "cok" in run.output else 0.0

    result = await tuned(metric, model=model, proposer=Candidates({"c": ["c: RULE-c"]}), stagnation=6)
    traced = result.spent.runs - 2 * 3
    assert result.found.candidates[result.found.best].mean == 1
    assert requests["c"] > requests["a"]
    assert requests["a"] < 4 * 3 + traced


@pytest.mark.parametrize("runner", [None, Runner(), Runner(journal=MemoryJournal())])
async def test_every_runner_will_do(runner: Runner | None) -> None:
    """Without a journal of its own it is given one for the search, and is left as it was."""
    journal = None if runner is None else runner.journal
    result = await tuned(runner=runner)
    assert result.found.candidates[result.found.best].mean == 1
    assert runner is None or runner.journal is journal


@pytest.mark.parametrize("limit", [{"runs": 3}, {"runs": 10}, {"runs": 25}, {"runs": 47}])
@pytest.mark.parametrize("minibatch", [1, 3])
async def test_the_runs_never_exceed_the_budget(limit: dict[str, int], minibatch: int) -> None:
    """Whatever the step would take, with merges too."""
    result = await tuned(verdict, budget=Budget(**limit), minibatch=minibatch)
    assert result.spent.runs <= limit["runs"]
    assert result.found.stopped


class Mute(Graph[str, str]):
    """A stage without instructions."""

    a = Stage(str, Agent())

    async def flow(self, text: str) -> str:
        return await self.a(text)


def raises(_example: Any, _run: Any) -> float:
    raise KeyError("gold")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"train": []}, "there are no training examples"),
        ({"val": []}, "there are no validation examples"),
        ({"test": []}, "there are no test examples"),
        ({"val": [*VAL, VAL[0]]}, "ids have to differ, and these do not: 'v-0'"),
        ({"val": [*VAL, Example("t1", id="again")]}, "1 examples of `val` .*'again' .in `train`"),
        ({"test": [*TEST, VAL[0]]}, "1 examples of `test` .*'v-0' .in `val`"),
        ({"train": ["t"]}, "training examples: number 1 is str, not an Example"),
        ({"val": [*VAL, Example(3, id="three")]}, "validation examples: 'three' does not fit str"),
        ({"budget": 300}, r"budget=300: write Budget\(runs=300\)"),
        ({"proposer": Candidates({"d": ["D"]})}, "texts for `d`, which is not tuned"),
        ({"proposer": Candidates({"a": "A"})}, "one text for `a`; write a list"),
        ({"graph": Mute()}, "no stage of Mute has instructions"),
        ({"budget": Budget(runs=2)}, "does not even pay for the seed on 3"),
        ({"proposer": None}, "say who writes new texts"),
        ({"proposer": "magic"}, "it is a function"),
        ({"proposer": 3}, "it is a function"),
        ({"minibatch": 0}, "minibatch=0: at least 1 is needed"),
        ({"stagnation": 0}, "stagnation=0: at least 1 is needed"),
        ({"concurrency": 0}, "concurrency=0: at least 1 is needed"),
        ({"graph": Chain}, r"write Chain\(\)"),
        ({"proposer": None, "reflection_model": 3}, "run Pydantic AI models, and int"),
        ({"optimizer": "mipro"}, "only 'gepa' is built in"),
        ({"metric": raises}, "raised KeyError"),
        ({"metric": lambda *_: float("nan")}, "finite number"),
        ({"metric": lambda *_: None}, "forget `return`"),
        ({"metric": lambda *_: "good"}, "gave str 'good'"),
        ({"metric": 3}, "a metric is a function"),
    ],
)
async def test_what_cannot_work_is_refused_with_the_reason(options: dict[str, Any], message: str) -> None:
    """Before anything is paid for, where that can be known."""
    with pytest.raises(TuningError, match=message):
        await tuned(**options)


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({}, "needs a limit"),
        ({"runs": 0}, "at least 1 is needed"),
        ({"usd": -1.0}, "has to be above 0"),
        ({"seconds": float("nan")}, "has to be above 0"),
        ({"runs": "5"}, "runs='5'.: it is a whole number"),
        ({"runs": True}, "runs=True.: it is a whole number"),
        ({"runs": 2.5}, "runs=2.5.: it is a whole number"),
        ({"usd": "5"}, "usd='5'.: it is a number"),
    ],
)
def test_a_budget_has_a_limit_above_nothing(limits: dict[str, Any], message: str) -> None:
    """No limit is a mistake, and so is one that nothing fits in, or that is no number."""
    with pytest.raises(TuningError, match=message):
        Budget(**limits)


async def test_a_mistake_that_cost_nothing_does_not_spoil_the_folder(tmp_path: Path) -> None:
    """What was refused before the first run is corrected in the same folder; a folder of something else is left alone."""
    with pytest.raises(TuningError, match="texts for `d`"):
        await tuned(proposer=Candidates({"d": ["D"]}), run_dir=tmp_path / "mine")
    assert (await tuned(run_dir=tmp_path / "mine")).found.error is None
    theirs = tmp_path / "manifest.json"
    for text in ('{"name": "app"}', "[]", "{"):
        theirs.write_text(text)
        with pytest.raises(TuningError, match="no manifest of a tuning; choose another folder"):
            await tuned(run_dir=tmp_path)
        assert theirs.read_text() == text


async def test_what_cannot_be_read_in_the_folder_is_paid_for_again(tmp_path: Path) -> None:
    """Lines of something else, and scores that are none, end no tuning."""
    first = await tuned(run_dir=tmp_path)
    file = tmp_path / "paid.jsonl"
    rows = [json.loads(line) for line in file.read_text("utf-8").splitlines()]
    odd = [None, {}, {"notes": 3}, {"value": "much", "notes": []}]
    lines = [json.dumps(row | {"score": odd[place % 4]} if "score" in row else row) for place, row in enumerate(rows)]
    file.write_text("\n".join(["null", "[]", "7", "{", "{}", '{"key": 1}', *lines, ""]), "utf-8")
    again = await tuned(run_dir=tmp_path)
    assert (again.found.error, again.prompts) == (None, first.prompts)


async def test_proposers_are_functions_of_all_kinds() -> None:
    """Sync, async, with wrong answers and with errors: the last two end the search with what it has."""

    async def waits_first(proposal: Proposal) -> str:
        return f"{proposal.path}: RULE-{proposal.path}"

    assert (await tuned(proposer=waits_first)).found.error is None
    assert "gives a text or None" in str((await tuned(proposer=lambda _: 3)).found.error)
    assert "raised ZeroDivisionError" in str((await tuned(proposer=lambda _: 1 / 0)).found.error)


async def test_the_preview_measures_the_width_of_a_fan_out() -> None:
    """It counts the calls of a few real runs and multiplies."""
    found = await preview(Chain(), TRAIN, Budget(runs=50), model=student(cost="0.01")[0])
    assert found.stage_calls == {"a": 1, "b": 2, "c": 1}
    assert (found.requests_a_run, found.dollars_a_run) == (4, pytest.approx(0.04))
    assert "up to 50 runs, about 200 model requests, $2.00" in str(found)


async def test_a_tuning_is_begun_when_it_is_confirmed(tmp_path: Path) -> None:
    """Two runs are measured and shown, no more are made after a no, and a tuning that goes on is not asked about."""
    model, requests = student(cost="0.01")
    seen: list[Preview] = []

    def confirm(preview: Preview) -> bool:
        seen.append(preview)
        return len(seen) > 1

    with pytest.raises(TuningError, match="`confirm` said no"):
        await tuned(model=model, confirm=confirm, run_dir=tmp_path)
    assert requests == {"a": 2, "b": 4, "c": 2}
    assert seen[0].components == ("a", "b", "c")
    assert (await tuned(model=model)).preview.stage_calls == {"a": 1, "b": 2, "c": 1}
    assert "$4.00; calls a run: a 1.0, b 2.0, c 1.0; 3 texts to change: a, b, c" in str(seen[0])
    for _ in range(2):
        result = await tuned(model=model, confirm=confirm, run_dir=tmp_path)
        assert result.candidates[result.found.best].mean == 1
        assert result.preview.stage_calls == {"a": 1, "b": 2, "c": 1}
    assert len(seen) == 2
    with pytest.raises(TuningError, match="in `train`"):
        await tuned(train=VAL, confirm=confirm)
    assert len(seen) == 2


TUNING = """
import asyncio, os, signal, sys
sys.path.insert(0, {folder!r})
from pathlib import Path
from rules import Chain, rows, separate, student
from words import before
from stagegraph.optimize import Budget, tune
log, kill = Path(sys.argv[2]), int(sys.argv[3])
def propose(proposal):
    with open(str(log) + ".proposed", "a") as file:
        file.write(proposal.path + "\\n")
    return f"{{proposal.path}}: RULE-{{proposal.path}}"
def act(messages, info):
    if kill and log.exists() and len(log.read_text().splitlines()) >= kill:
        os.kill(os.getpid(), signal.SIGKILL)
async def main():
    found = await tune(Chain(), separate, train=rows("t", 4), val=rows("v", 3), test=rows("test", 2), proposer=propose,
        budget=Budget(runs=100), model=before(student(log)[0], act), run_dir=sys.argv[1], concurrency=1)
    print(found.prompts.digest, [one.scores for one in found.found.candidates], found.spent.runs, found.comparison)
asyncio.run(main())
"""


def in_a_process(folder: Path, name: str, kill: int = 0) -> Any:
    code = TUNING.format(folder=str(Path(__file__).parents[1]))
    return python("-c", code, folder / name, folder / f"{name}.log", str(kill))


def test_a_killed_tuning_goes_on_without_asking_again(tmp_path: Path) -> None:
    """Killed again and again with SIGKILL, it asks in all what an uninterrupted one asks, and ends like it.

    Only the answer that was on its way to the disk when the process was killed may be asked again.
    """
    whole = in_a_process(tmp_path, "whole")
    assert whole.returncode == 0, whole.stderr
    requests = (tmp_path / "whole.log").read_text().splitlines()
    for kill in (6, 33, len(requests) - 9):
        assert in_a_process(tmp_path, "killed", kill).returncode == -signal.SIGKILL
    done = in_a_process(tmp_path, "killed")
    assert done.returncode == 0, done.stderr
    assert done.stdout == whole.stdout
    asked = len((tmp_path / "killed.log").read_text().splitlines())
    assert len(requests) <= asked <= len(requests) + 3
    proposed = [(tmp_path / f"{name}.log.proposed").read_text() for name in ("killed", "whole")]
    assert proposed[0] == proposed[1]
    again = in_a_process(tmp_path, "killed")
    assert again.stdout == whole.stdout
    assert len((tmp_path / "killed.log").read_text().splitlines()) == asked


async def test_a_run_dir_of_something_else_is_refused(tmp_path: Path) -> None:
    """Another metric, other data or other texts cannot go on, and the error names what changed."""
    await tuned(run_dir=tmp_path)
    for change, name in (
        ({"metric": coupled}, "the metric"),
        ({"train": rows("t", 5)}, "the training examples"),
        ({"val": rows("v", 4)}, "the validation examples"),
        ({"graph": Mute(), "prompts": Prompts().replace({"a": "a: say"})}, "the graph"),
        ({"prompts": Prompts().replace({"a": "a: other"})}, "the texts to start from"),
        ({"seed": 3}, "the seed"),
        ({"proposer": None, "reflection_model": learner()}, "the proposer"),
    ):
        with pytest.raises(TuningError, match=f"cannot go on: since then.*{name}"):
            await tuned(run_dir=tmp_path, **change)


async def test_what_is_saved_tells_of_every_candidate(tmp_path: Path) -> None:
    """Parents, what changed, scores and objectives by example, and what the search spent."""
    result = await tuned(model=student(cost="0.01")[0])
    result.save(tmp_path / "best.yaml")
    saved = json.loads((tmp_path / "best.tuning.json").read_text("utf-8"))
    spent = result.spent
    assert saved["spent"]["runs"] == spent.runs
    assert (saved["spent"]["requests"], saved["spent"]["tokens"]) == (spent.requests, spent.tokens)
    assert (saved["spent"]["usd"], saved["spent"]["unpriced"]) == (pytest.approx(spent.usd), 0)
    start, *others = saved["candidates"]
    assert (start["parents"], start["changes"]) == ([], {})
    assert start["scores"] == {"v-0": 0.0, "v-1": 0.0, "v-2": 0.0}
    assert start["objectives"]["v-1"]["score"] == 0
    assert start["objectives"]["v-1"]["blame:b"] < 0
    for place, one in enumerate(others, 1):
        (parent,) = one["parents"]
        before = saved["candidates"][parent]["texts"]
        ((name, text),) = one["changes"].items()
        assert before | {name: text} == one["texts"]
        assert result.found.changes(place) == one["changes"]
        assert result.candidates[place].parents == (parent,)


async def test_a_minibatch_larger_than_the_data_is_all_of_it() -> None:
    """It does not keep the search from beginning."""
    result = await tuned(minibatch=50, budget=Budget(runs=60))
    assert result.candidates[result.found.best].mean == 1


async def test_it_starts_from_what_the_runner_deploys() -> None:
    """As `evaluate` and `GraphModule` do; `prompts=` goes before it."""
    runner = Runner(prompts=Prompts({"a": Prompt("a: deployed")}))
    result = await tuned(runner=runner, stagnation=2)
    assert result.candidates[0].texts == {"a": "a: deployed", "b": "b: go on", "c": "c: end"}
    assert result.found.seed["a"].instructions == "a: deployed"
    assert result.prompts.graph == "Chain"
    given = await tuned(runner=runner, prompts=Prompts({"a": Prompt("a: given")}), stagnation=2)
    assert given.candidates[0].texts["a"] == "a: given"


@pytest.mark.parametrize("where", ["run", "validated", "proposing", "accepted"])
async def test_who_is_told_cannot_end_a_tuning(where: str, caplog: pytest.LogCaptureFixture) -> None:
    """What it raises is logged once, with the traceback, and what is paid for goes on."""

    def callback(event: str, _data: Any) -> None:
        if event == where:
            raise ValueError("the progress bar is gone")

    result = await tuned(callback=callback)
    assert result.found.error is None
    assert result.candidates[result.found.best].mean == 1
    (record,) = [record for record in caplog.records if record.name == "stagegraph.optimize"]
    assert f"`callback` failed at the event '{where}'" in record.message
    assert record.exc_info is not None


async def test_money_alone_is_no_limit_for_a_model_without_a_price(caplog: pytest.LogCaptureFixture) -> None:
    """The search ends after the start with an error; with another limit it goes on, and says what was not counted."""
    alone = await tuned(budget=Budget(usd=5))
    assert "does not hold: the price of 3 runs" in str(alone.found.error)
    assert len(alone.candidates) == 1
    assert alone.spent.runs == 3
    assert "does not hold" in str(alone)
    assert not caplog.records
    limited = await tuned(budget=Budget(usd=5, runs=100))
    assert limited.candidates[limited.found.best].mean == 1
    assert "cost unknown" in str(limited)
    assert "Beware: Budget(usd=5) did not count what has no known price." in str(limited)
    (record,) = caplog.records
    assert "they are not counted" in record.message
    priced = await tuned(budget=Budget(usd=5), model=student(cost="0.01")[0])
    assert "$" in str(priced)
    assert not priced.found.warnings


class HalfMute(Chain):
    """One of its stages has no instructions."""

    a = Stage(str, Agent())


async def test_a_stage_without_a_text_is_told_when_it_earns_notes() -> None:
    """It is left out of the search, and the result says so."""
    pool = {path: texts for path, texts in POOL.texts.items() if path != "a"}
    result = await tuned(graph=HalfMute(), proposer=Candidates(pool))
    earned = [note for row in result.candidates[result.found.best].rows for note in row.stages if note == "a"]
    warning = f"Beware: `a` earned {len(earned)} notes and was left as it is, since it has no instructions."
    assert (warning in str(result)) == bool(earned)
    assert earned


async def test_what_a_tuning_gives_fits_a_screen() -> None:
    """However long texts and outputs are: a candidate shows its score, its parents and the beginning of each text."""

    class Parrot(Graph[str, list[str]]):
        def __init__(self) -> None:
            self.stages = [Stage(str, Agent(instructions=f"{number}\n" * 2_000)) for number in range(14)]

        async def flow(self, text: str) -> list[str]:
            return [await stage(text * 2_000) for stage in self.stages]

    asked: list[Proposal] = []

    def propose(proposal: Proposal) -> str:
        asked.append(proposal)
        return "better " * 5_000

    result = await tuned(lambda *_: 0.5, Parrot(), proposer=propose, budget=Budget(runs=12), stagnation=1)
    start = result.candidates[0]
    for one in (
        asked[0],
        start,
        result.candidates,
        result.found,
        result.report.rows[0],
        result.comparison,
        result.preview,
    ):
        for text in (str(one), repr(one)):
            assert len(text.splitlines()) < 24
            assert len(text) < 24 * 100
    assert str(start).startswith("<Candidate (the start): 0.500 on 3 examples>\n")
    assert "stages.0: 0 0 0 0" in str(start)
    assert "and 2 more texts" in str(start)
    better = (await tuned()).candidates[-1]
    assert str(better).splitlines()[0] == "<Candidate (made from 2): 1.000 on 3 examples>"
    assert "b: b: RULE-b" in str(better)
