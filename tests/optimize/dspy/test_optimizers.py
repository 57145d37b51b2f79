"""DSPy's own optimizers on a graph with a fan-out: offline, with the real agents and scripted models."""

import json
import random
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import dspy
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from words import ROWS, Rated, Upper, Words, asked, before, grade, scripted, shaky

from stagegraph import Example, Graph, Run, Score, Stage, fan_out
from stagegraph.optimize import GraphModule, TuningStopped, dspy_metric, lm, to_dspy

DATA = to_dspy(ROWS, Words())

pytestmark = pytest.mark.filterwarnings("ignore")  # DSPy's optimizers use what their own dependencies deprecate


@pytest.fixture
def module() -> GraphModule:
    return GraphModule(Words(), model=scripted())


def writer(text: Callable[[str], str]) -> FunctionModel:
    """Answers in the form that DSPy's adapters ask for: every field that is asked for gets the same text."""

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        prompt = "\n".join(str(getattr(part, "content", "")) for message in messages for part in message.parts)
        tail = prompt[prompt.rfind("Respond with") :]
        said = text(prompt)
        if "JSON object" in tail:
            names = re.findall(r"`(\w+)`", tail)
            return ModelResponse([TextPart(json.dumps(dict.fromkeys(names, said)))])
        names = re.findall(r"\[\[ ## (\w+) ## \]\]", tail)
        return ModelResponse([TextPart("\n\n".join(f"[[ ## {name} ## ]]\n{said}" for name in dict.fromkeys(names)))])

    return FunctionModel(answer, model_name="writer")


def improver() -> FunctionModel:
    """Writes what the feedback says."""
    return writer(lambda prompt: "DOUBLE it." if "write DOUBLE" in prompt else "Do it well.")


def score_of(module: Any) -> float:
    return dspy.Evaluate(devset=DATA, metric=dspy_metric(grade), num_threads=2)(module).score


def test_gepa_finds_the_rule_that_the_notes_tell(module: GraphModule) -> None:
    """Out of the box: the feedback of a stage has all its calls, and the result is a prompts file."""
    prompts: list[str] = []

    def reflect(prompt: str) -> str:
        prompts.append(prompt)
        return "DOUBLE it." if "write DOUBLE" in prompt else "List the words."

    optimizer = dspy.GEPA(
        metric=dspy_metric(grade), reflection_lm=lm(writer(reflect)), max_metric_calls=40, num_threads=2,
        reflection_minibatch_size=4,
    )  # fmt: skip
    better = optimizer.compile(module, trainset=DATA, valset=DATA)
    assert score_of(better) == 100.0
    assert better.prompts()["rate.judge"].instructions == "DOUBLE it."
    assert score_of(module) == 0.0
    told = next(prompt for prompt in prompts if "write DOUBLE" in prompt and "jkl" in prompt)
    assert all(f"{word}: expected" in told for word in ("i", "jkl", "m"))


def test_gepa_reflects_on_failed_runs_as_well() -> None:
    """DSPy drops a run that raises; here its record stays, with the error at the call that failed."""
    prompts: list[str] = []

    def act(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse | None:
        if asked(messages) == "jkl" and "DOUBLE" not in (info.instructions or ""):
            return ModelResponse([ToolCallPart(info.output_tools[0].name, {"word": 1, "score": "?"})])
        return None

    def reflect(prompt: str) -> str:
        prompts.append(prompt)
        return "DOUBLE it."

    module = GraphModule(Words(), model=before(scripted(), act))
    only = DATA[2:3]
    optimizer = dspy.GEPA(
        metric=dspy_metric(grade), reflection_lm=lm(writer(reflect)), max_metric_calls=20, num_threads=1
    )
    better = optimizer.compile(module, trainset=only, valset=only)
    assert dspy.Evaluate(devset=only, metric=dspy_metric(grade))(better).score == 100.0
    assert any("gave no valid output" in prompt for prompt in prompts)


def test_gepa_is_stopped_by_a_provider_that_stays_away() -> None:
    """No candidate is scored by the weather."""
    module = GraphModule(Words(), model=shaky(scripted(), ModelHTTPError(429, "busy"))[0], retry_delays=())
    optimizer = dspy.GEPA(metric=dspy_metric(grade), reflection_lm=lm(improver()), max_metric_calls=20, num_threads=2)
    with pytest.raises(TuningStopped, match="429"):
        optimizer.compile(module, trainset=DATA, valset=DATA)


def test_gepa_goes_on_from_its_log(module: GraphModule, tmp_path: Path) -> None:
    """What it keeps on disk (candidates, scores, best outputs) can be written and read back."""
    for _ in range(2):
        optimizer = dspy.GEPA(
            metric=dspy_metric(grade), reflection_lm=lm(improver()), max_metric_calls=20, num_threads=2,
            log_dir=str(tmp_path), track_stats=True, track_best_outputs=True,
        )  # fmt: skip
        better = optimizer.compile(module, trainset=DATA, valset=DATA)
        assert better.detailed_results.val_aggregate_scores == [0.0, 1.0]
        assert better.prompts()["rate.judge"].instructions == "DOUBLE it."


def test_gepa_takes_objectives(module: GraphModule) -> None:
    """A score's objectives are GEPA's frontier."""

    def brief(example: Example[Any], run: Run[Any, Rated]) -> Score:
        return replace(grade(example, run), objectives={"brevity": -float(len(run.calls()))})

    optimizer = dspy.GEPA(
        metric=dspy_metric(brief), reflection_lm=lm(improver()), max_metric_calls=20, num_threads=2,
        gepa_kwargs={"frontier_type": "hybrid"},
    )  # fmt: skip
    assert score_of(optimizer.compile(module, trainset=DATA, valset=DATA)) == 100.0


class Pair(BaseModel):
    word: str
    score: int


class Twice(Graph[str, int]):
    """Two stages with the same fields and the same text: DSPy alone would mix up their feedback."""

    first = Stage(str, Agent(output_type=Pair, instructions="Rate."))
    second = Stage(str, Agent(output_type=Pair, instructions="Rate."))

    async def flow(self, text: str) -> int:
        ratings = await fan_out(self.first, [f"first-{text}", f"first-{text}{text}"])
        return (await self.second(f"second-{text}")).score + ratings[0].score


def test_stages_with_equal_signatures_get_their_own_feedback() -> None:
    """Each reflection on one stage shows that stage's inputs only, and its notes only."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart(info.output_tools[0].name, {"word": asked(messages), "score": 1})])

    def notes(_example: Example[str], run: Run[str, int]) -> Score:
        return Score(0.5, notes=[call.note(f"note about {call.path}") for call in run.calls()])

    seen: list[str] = []

    def reflect(prompt: str) -> str:
        seen.append(prompt)
        return f"Rate, version {len(seen)}."

    module = GraphModule(Twice(), model=FunctionModel(answer))
    rows = to_dspy([Example(text) for text in "abcd"], Twice())
    optimizer = dspy.GEPA(
        metric=dspy_metric(notes), reflection_lm=lm(writer(reflect)), max_metric_calls=60, num_threads=4
    )
    optimizer.compile(module, trainset=rows, valset=rows)
    assert len(seen) > 4
    kinds = [{name for name in ("first", "second") if f"note about {name}" in prompt} for prompt in seen]
    assert all(len(kind) == 1 for kind in kinds)
    assert {"first"} in kinds
    assert {"second"} in kinds
    for kind, prompt in zip(kinds, seen, strict=True):
        (other,) = {"first", "second"} - kind
        assert f"{other}-" not in prompt


def right(example: Example[Any], run: Run[Any, Rated]) -> float:
    """Whether the total is what it is when nothing is doubled."""
    return float(run.output.total * 2 == example.expected["total"])


def test_bootstrapped_demos_are_of_their_own_stage(module: GraphModule) -> None:
    """What a stage was given and answered in good runs, and the model is shown it."""
    better = dspy.BootstrapFewShot(metric=dspy_metric(right), max_bootstrapped_demos=2, max_labeled_demos=0).compile(
        module, trainset=DATA
    )
    prompts = better.prompts()
    prompts.check(Words())
    assert len(prompts["plan"].demos) == 2
    assert all(demo.output["score"] == len(demo.input) for demo in prompts["rate.judge"].demos)
    assert prompts["rate.judge"].demos
    assert module.prompts()["plan"].demos == ()


def test_failures_never_become_demos(module: GraphModule) -> None:
    """A score of 0.0 is false."""
    better = dspy.BootstrapFewShot(metric=dspy_metric(grade), max_labeled_demos=0).compile(module, trainset=DATA)
    assert all(not prompt.demos for prompt in better.prompts().values())


def test_examples_of_the_whole_program_are_no_demos_of_its_stages(module: GraphModule) -> None:
    """`LabeledFewShot` puts them everywhere; what does not fit a stage is not shown to it."""
    better = dspy.LabeledFewShot(k=3).compile(module, trainset=DATA)
    assert len(better.plan.demos) == 3
    assert all(not prompt.demos for prompt in better.prompts().values())
    better(text="a")


def test_labeled_demos_of_a_single_stage() -> None:
    """Where the fields are the same, they are shown."""
    module = GraphModule(Upper(), model=scripted())
    rows = to_dspy([Example("a", {"output": "A"}), Example("b", {"output": "B"})], Upper())
    better = dspy.LabeledFewShot(k=2).compile(module, trainset=rows)
    assert {demo.output for demo in better.prompts()["upper"].demos} == {"A", "B"}


def test_copro(module: GraphModule) -> None:
    """Proposes instructions stage by stage; its prompt model gives several answers to one request."""
    optimizer = dspy.COPRO(
        metric=dspy_metric(grade),
        prompt_model=lm(writer(lambda _: "DOUBLE it.")),
        breadth=2,
        depth=1,
        init_temperature=1.0,
    )
    better = optimizer.compile(module, trainset=DATA, eval_kwargs={"num_threads": 2, "display_progress": False})
    assert score_of(better) == 100.0


def test_bootstrapping_with_random_search(module: GraphModule) -> None:
    """Candidates with other demos, evaluated side by side."""
    optimizer = dspy.BootstrapFewShotWithRandomSearch(
        metric=dspy_metric(right),
        max_bootstrapped_demos=1,
        max_labeled_demos=0,
        num_candidate_programs=2,
        num_threads=2,
    )
    better = optimizer.compile(module, trainset=DATA, valset=DATA)
    better.prompts().check(Words())
    assert dspy.Evaluate(devset=DATA, metric=dspy_metric(right))(better).score == 100.0


def test_inferred_rules(module: GraphModule) -> None:
    """It writes into the signature class itself; the student stays as it was."""
    dspy.configure(lm=lm(writer(lambda _: "DOUBLE it.")))  # the module's own model goes before what is configured
    try:
        optimizer = dspy.InferRules(metric=dspy_metric(right), num_candidates=1, num_rules=1, num_threads=2)
        better = optimizer.compile(module, trainset=DATA, valset=DATA)
    finally:
        dspy.configure(lm=None)
    better.prompts().check(Words())
    assert "DOUBLE" not in module.prompts()["rate.judge"].instructions


def adviser() -> FunctionModel:
    """Advises one stage, by the name of its predictor, in the form that SIMBA asks for."""

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        prompt = "\n".join(str(getattr(part, "content", "")) for message in messages for part in message.parts)
        names = re.findall(r"\[\[ ## (\w+) ## \]\]", prompt[prompt.rfind("Respond with") :])
        said = {"module_advice": json.dumps({"rate__judge": "DOUBLE it."})}
        fields = [f"[[ ## {name} ## ]]\n{said.get(name, 'so')}" for name in dict.fromkeys(names)]
        return ModelResponse([TextPart("\n\n".join(fields))])

    return FunctionModel(answer, model_name="adviser")


def wavering() -> FunctionModel:
    """At a temperature, every other answer doubles by chance."""
    count = Counter[str]()

    def act(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse | None:
        word = asked(messages)
        count[word] += 1
        if (info.model_settings or {}).get("temperature") and count[word] % 2 and "text" not in word:
            args = {"word": word, "score": 2 * len(word)}
            return ModelResponse([ToolCallPart(info.output_tools[0].name, args)])
        return None

    return before(scripted(), act)


@pytest.mark.skipif(find_spec("numpy") is None, reason="SIMBA needs numpy")
@pytest.mark.parametrize("max_demos", [0, 2])
def test_simba(max_demos: int) -> None:
    """Samples the program's own model, learns a rule from what came out well, and appends it to the right stage."""
    random.seed(0)
    module = GraphModule(Words(), model=wavering())
    rows = to_dspy([Example(row.input, row.expected, f"{row.id}{n}") for n in range(2) for row in ROWS], Words())
    optimizer = dspy.SIMBA(
        metric=dspy_metric(grade), bsize=4, num_candidates=3, max_steps=3, max_demos=max_demos, num_threads=1,
        prompt_model=lm(adviser()),
    )  # fmt: skip
    better = optimizer.compile(module, trainset=rows, seed=0)
    better.prompts().check(Words())
    assert isinstance(better, GraphModule)
    if not max_demos:
        assert score_of(better) == 100.0
        assert better.prompts()["rate.judge"].instructions == "Rate the word.\n\nDOUBLE it."
        assert better.prompts()["plan"].instructions == "List the words."


@pytest.mark.skipif(find_spec("optuna") is None, reason="MIPROv2 needs optuna")
@pytest.mark.parametrize("minibatch", [False, True])
def test_mipro(module: GraphModule, minibatch: bool) -> None:
    """Proposes instructions and demos, and searches their combinations."""
    optimizer = dspy.MIPROv2(
        metric=dspy_metric(grade),
        prompt_model=lm(writer(lambda _: "DOUBLE it.")),
        task_model=module.get_lm(),
        auto=None,
        num_candidates=3,
        num_threads=2,
    )
    better = optimizer.compile(
        module, trainset=DATA, valset=DATA, num_trials=6, max_bootstrapped_demos=1, max_labeled_demos=1,
        minibatch=minibatch, minibatch_size=2,
    )  # fmt: skip
    assert score_of(better) == 100.0
    assert better.prompts()["rate.judge"].instructions == "DOUBLE it."
    assert score_of(module) == 0.0


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
