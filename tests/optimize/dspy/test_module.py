"""A graph as a DSPy program: what optimizers read, write, copy and save, and what runs."""

import asyncio
import contextvars
import copy
import inspect
import json
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from dspy.dsp.utils.settings import main_thread_config
from dspy.propose.utils import get_dspy_source_code
from dspy.utils.callback import BaseCallback
from pydantic import BaseModel, Field
from pydantic_ai import Agent
from pydantic_ai.exceptions import ModelConnectionError, ModelHTTPError
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from words import ROWS, Doc, Plan, Rate, Words, asked, before, grade, scripted, shaky, told

from stagegraph import (
    DeclarationError,
    Demo,
    Example,
    Graph,
    InputError,
    NotRunningError,
    Prompt,
    PromptError,
    Prompts,
    RunError,
    Runner,
    Stage,
    TuningError,
    fan_out,
    settle,
)
from stagegraph.optimize import GraphModule, TuningStopped, dspy_metric, lm, to_dspy
from stagegraph.optimize.dspy.program import Flights
from stagegraph.optimize.lms.loop import await_here, submit


@pytest.fixture
def module() -> GraphModule:
    return GraphModule(Words(), model=scripted())


def texts(module: GraphModule) -> dict[str, str]:
    return {name: predictor.signature.instructions for name, predictor in module.named_predictors()}


def test_predictors_are_flat_and_named_by_path(module: GraphModule) -> None:
    """Each stage is one attribute: `rate.judge` is `rate__judge`; its signature has the fields of its types."""
    assert texts(module) == {"plan": "List the words.", "rate__judge": "Rate the word."}
    signature = module.rate__judge.signature
    assert (list(signature.input_fields), list(signature.output_fields)) == (["input"], ["word", "score"])
    assert module.rate__judge.path == "rate.judge"


def test_a_call_runs_the_graph_and_gives_its_output(module: GraphModule) -> None:
    """The prediction has the fields of the output, the typed output and the run."""
    prediction = module(text="a bc")
    assert (prediction.total, prediction.output.total) == (3, 3)
    assert [call.key for call in prediction.run.calls(Rate.judge)] == ["rate[0].judge", "rate[1].judge"]
    assert prediction.error is None
    assert prediction.items() == [("total", 3), ("ratings", prediction.output.ratings)]


def test_prompts_of_predictors_reach_the_agents_which_stay_as_they_are(module: GraphModule) -> None:
    """What an optimizer writes is what the run says; the graph is never touched."""
    module.rate__judge.signature = module.rate__judge.signature.with_instructions("DOUBLE it.")
    assert module(text="a bc").total == 6
    assert Words().run_sync(Doc(text="a bc"), model=scripted()).output.total == 3
    assert module.prompts()["rate.judge"] == Prompt("DOUBLE it.")


def test_prompts_go_both_ways() -> None:
    """Instructions, demos, tools and fields of a prompts file come back out as they went in."""
    demo = Demo("word", {"word": "word", "score": 4})
    text = "  First line.\n\n    Indented.\n"
    prompts = Prompts({"rate.judge": Prompt(text, (demo,), {"search": "Look it up."}, {"score": "Its length."})})
    module = GraphModule(Words(), model=scripted(), prompts=prompts)
    assert module.prompts()["rate.judge"] == prompts["rate.judge"]
    assert module.prompts()["plan"] == Prompt("List the words.")
    assert module.rate__judge.demos[0].score == 4
    GraphModule(Words(), model=scripted()).prompts().check(Words())


def test_it_starts_from_what_a_runner_deploys_or_from_given_prompts() -> None:
    """What is deployed is what is tuned further; a typing mistake is found before anything runs."""
    runner = Runner(scripted(), prompts=Prompts({"rate.judge": Prompt("DOUBLE")}))
    module = GraphModule(Words(), runner=runner)
    assert module(text="a").total == 2
    with pytest.raises(PromptError, match=r"rate\.judge"):
        GraphModule(Words(), prompts=Prompts({"rate.juge": Prompt("x")}))


def test_demos_are_revalidated_and_incomplete_ones_dropped(module: GraphModule) -> None:
    """Dicts and examples are accepted; raw examples of the whole program, which fit no stage, are left out."""
    module.rate__judge.demos = [
        {"input": "x", "word": "x", "score": "2"},
        dspy.Example(input="y", word="y", score=1, augmented=True),
        dspy.Example(text="a program-level example", total=3).with_inputs("text"),
        {"input": "z", "word": "z"},
        {"input": "z", "word": "z", "score": "many"},
    ]
    demos = module.prompts()["rate.judge"].demos
    assert [(demo.input, demo.output["score"]) for demo in demos] == [("x", 2), ("y", 1)]


class Approve(BaseModel):
    reason: str


class Reject(BaseModel):
    reason: str


class Decide(Graph[str, str]):
    """A union whose members have equal fields."""

    decide = Stage(str, Agent(output_type=[Approve, Reject], instructions="Decide."), demos="messages")

    async def flow(self, text: str) -> str:
        return type(await self.decide(text)).__name__


def test_a_demo_never_becomes_the_other_member_of_a_union(tmp_path: Path) -> None:
    """A rejection that an optimizer found is not shown to the model as an approval, also not after save and load."""
    shown: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        parts = [part for message in messages for part in message.parts if isinstance(part, ToolCallPart)]
        shown.extend(part.tool_name for part in parts)
        return ModelResponse([ToolCallPart(info.output_tools[1].name, {"reason": "no"})])

    module, loaded = (GraphModule(Decide(), model=FunctionModel(answer)) for _ in range(2))
    optimizer = dspy.BootstrapFewShot(metric=dspy_metric(lambda _example, _run: True), max_labeled_demos=0)
    better = optimizer.compile(module, trainset=[dspy.Example(input=text).with_inputs("input") for text in "ab"])
    assert [type(demo["output"]) for demo in better.decide.demos] == [Reject, Reject]
    better.save(tmp_path / "better.json")
    loaded.load(tmp_path / "better.json")
    for one in (better, loaded):
        assert one(input="c").output == "Reject"
        assert one.prompts()["decide"].demos == ()
    assert shown == []


def test_demos_that_an_optimizer_found_are_bounded() -> None:
    """What does not fit into the characters of a stage is left out of its prompt; what a person wrote is not."""
    written = Demo("w" * 500, {"word": "w" * 500, "score": 1})
    prompts = Prompts({"rate.judge": Prompt("Rate.", (written,))})
    module = GraphModule(Words(), model=scripted(), prompts=prompts, demo_limit=300)
    found = [{"input": word, "word": word, "score": 1} for word in ("a" * 1_000_000, "b" * 100, "c" * 100, "d" * 10)]
    module.rate__judge.demos += [dspy.Example(**one) for one in found]
    for one in (module, module.deepcopy(), module.with_prompts(module.prompts())):
        assert [demo.input[0] for demo in one.prompts()["rate.judge"].demos] == ["w", "b", "d"]
    assert len(module.rate__judge.demos) == 5


class Turns(Graph[Doc, Plan]):
    """Its demos are earlier turns of the conversation."""

    plan = Stage(Doc, Agent(output_type=Plan, instructions="List the words."), demos="messages")

    async def flow(self, doc: Doc) -> Plan:
        return await self.plan(doc)


def test_demos_that_were_found_become_messages_where_a_stage_wants_that() -> None:
    """In the shape that the model answers in: a question, the call of the output tool, and what it returned."""
    seen: list[list[ModelMessage]] = []
    model = before(scripted(), lambda messages, _: seen.append(messages))
    rows = to_dspy([Example(Doc(text=text), {"words": text.split()}) for text in ("a bc", "d")], Turns())
    optimizer = dspy.BootstrapFewShot(metric=dspy_metric(lambda _example, _run: True), max_labeled_demos=0)
    better = optimizer.compile(GraphModule(Turns(), model=model), trainset=rows)
    assert len(better.prompts()["plan"].demos) == 2
    assert better(text="x y").output == Plan(words=["x", "y"])
    parts = [part for message in seen[-1] for part in message.parts]
    kinds = ["user-prompt", "tool-call", "tool-return"] * 2 + ["user-prompt"]
    assert [part.part_kind for part in parts] == kinds
    assert [part.args for part in parts if isinstance(part, ToolCallPart)] == [{"words": ["a", "bc"]}, {"words": ["d"]}]


def test_demos_reach_the_model() -> None:
    """They are rendered by the stage's own renderer, as in serving."""
    seen: list[str] = []
    module = GraphModule(Words(), model=scripted(lambda text, instructions: seen.append(instructions)))
    module.plan.demos = [dspy.Example(text="x y", words=["x", "y"])]
    module(text="a")
    assert "<text>x y</text>" in seen[0]
    assert '{"words": ["x", "y"]}' in seen[0]


def test_the_trace_is_filled_in_declared_order(module: GraphModule) -> None:
    """Stages as declared, calls by key, whatever order they ended in; each entry names its predictor itself."""
    for _ in range(3):
        with dspy.context(trace=[]):
            module(text="a bc d")
            trace = dspy.settings.trace
        assert [entry[0] for entry in trace] == [module.plan, *[module.rate__judge] * 3]
        assert [entry[1] for entry in trace] == [{"text": "a bc d"}, {"input": "a"}, {"input": "bc"}, {"input": "d"}]
        assert [entry[2].score for entry in trace[1:]] == [1, 2, 1]
        assert [entry[2].stage_call.key for entry in trace[1:]] == [f"rate[{index}].judge" for index in range(3)]


def test_a_trace_is_kept_where_it_is_open_and_honours_its_limit(module: GraphModule) -> None:
    """The oldest entries make room; DSPy's global trace would hold every input for ever."""
    before = len(main_thread_config["trace"])
    module(text="a")
    with dspy.context(max_trace_size=10):  # a context copies every setting, the trace as well
        module(text="a")
    assert len(main_thread_config["trace"]) == before
    with dspy.context(trace=[], max_trace_size=2):
        module(text="a bc d")
        assert [entry[1] for entry in dspy.settings.trace] == [{"input": "bc"}, {"input": "d"}]


class Twins(Graph[str, str]):
    """Two stages that DSPy could not tell apart: the same fields, the same text."""

    first = Stage(str, Agent(instructions="Answer."))
    second = Stage(str, Agent(instructions="Answer."))

    async def flow(self, text: str) -> str:
        return await self.second(await self.first(text) + "!")


def test_stages_with_equal_signatures_are_told_apart() -> None:
    """`Signature.equals` sees the mark, which survives copies, new instructions and loading."""
    module = GraphModule(Twins(), model=FunctionModel(lambda messages, _: ModelResponse([TextPart(asked(messages))])))
    other = module.deepcopy()
    other.load_state(module.dump_state())
    for one in (module, other, module.reset_copy()):
        assert not one.first.signature.equals(one.second.signature)
        assert one.first.signature.equals(module.first.signature)
        renamed = one.second.signature.with_instructions("Answer.")
        assert renamed.equals(module.second.signature)
        assert not renamed.equals(module.first.signature)
    with dspy.context(trace=[]):
        assert module(input="a").output == "a!"
        assert [(entry[0].path, entry[1]["input"]) for entry in dspy.settings.trace] == [
            ("first", "a"),
            ("second", "a!"),
        ]


def test_a_copy_shares_graph_and_agents_but_no_prompt(module: GraphModule) -> None:
    """Candidates are isolated: what one says never reaches another."""
    other = module.deepcopy()
    assert other.graph is module.graph
    assert other.rate__judge.node.agent is module.rate__judge.node.agent
    other.rate__judge.demos.append({"input": "x", "word": "x", "score": 1})
    other.rate__judge.signature.instructions = "DOUBLE"  # in place, as InferRules does
    assert texts(module)["rate__judge"] == "Rate the word."
    assert module.rate__judge.demos == []
    assert (module(text="abc").total, other(text="abc").total) == (3, 6)


def test_a_copy_made_during_an_evaluation_runs_its_own_prompts(module: GraphModule) -> None:
    """DSPy leaves a patched `forward` on the module; a copy must not keep it."""
    module.forward = module.forward
    other = module.deepcopy()
    other.rate__judge.signature = other.rate__judge.signature.with_instructions("DOUBLE")
    assert other(text="abc").total == 6


def test_reset_copy_keeps_instructions_and_drops_demos(module: GraphModule) -> None:
    """As every DSPy module does."""
    module.rate__judge.signature = module.rate__judge.signature.with_instructions("DOUBLE")
    module.rate__judge.demos = [{"input": "x", "word": "x", "score": 1}]
    other = module.reset_copy()
    assert texts(other)["rate__judge"] == "DOUBLE"
    assert other.rate__judge.demos == []
    assert len(module.rate__judge.demos) == 1


def test_a_saved_program_says_the_same_when_it_is_loaded(module: GraphModule, tmp_path: Path) -> None:
    """`save` and `load` keep instructions and demos as JSON; no model and no agent is in the file."""
    module.plan.signature = module.plan.signature.with_instructions("List the words.\n\n  All of them.")
    module.rate__judge.demos = [dspy.Example(input="x", word="x", score=1)]
    module.set_lm(lm(scripted()))
    module.save(tmp_path / "program.json")
    other = GraphModule(Words(), model=scripted())
    other.load(tmp_path / "program.json")
    assert other.prompts() == module.prompts()
    assert other.prompts()["rate.judge"].demos == (Demo("x", {"word": "x", "score": 1}),)
    assert json.loads((tmp_path / "program.json").read_text())["plan"]["lm"] is None
    assert module.plan.lm is not None


def test_a_saved_program_keeps_what_it_says_about_fields(tmp_path: Path) -> None:
    """A search may have changed it; another program that is loaded into forgets its own."""
    told = Prompts({"plan": Prompt("List.", fields={"words": "At most three."}), "rate.judge": Prompt("Rate.")})
    module = GraphModule(Words(), model=scripted(), prompts=told)
    module.save(tmp_path / "program.json")
    own = Prompts({"rate.judge": Prompt("Rate.", fields={"score": "Twice the length."})})
    other = GraphModule(Words(), model=scripted(), prompts=own)
    other.load(tmp_path / "program.json")
    assert other.prompts() == module.prompts()
    assert other.deepcopy().prompts()["plan"].fields == {"words": "At most three."}
    assert other.prompts()["rate.judge"].fields == {}

    state = json.loads((tmp_path / "program.json").read_text())
    state["plan"]["described"] = {"fields": {"words": 3}}
    (tmp_path / "program.json").write_text(json.dumps(state))
    with pytest.raises(PromptError, match=r"the saved program: `plan`: fields.words"):
        other.load(tmp_path / "program.json")


def test_a_program_saved_from_another_graph_is_refused(module: GraphModule, tmp_path: Path) -> None:
    """The error names the stages, and nothing is half loaded."""
    module.save(tmp_path / "program.json")
    other = GraphModule(Twins())
    with pytest.raises(PromptError, match=r"`first` is missing.*no `plan`"):
        other.load(tmp_path / "program.json")


def test_evaluate_runs_threads_on_one_loop(module: GraphModule) -> None:
    """`dspy.Evaluate` gives the same score with one thread and with eight."""
    data = to_dspy(ROWS * 4, Words())
    for threads in (1, 8):
        result = dspy.Evaluate(devset=data, metric=dspy_metric(grade), num_threads=threads)(module)
        assert result.score == 0.0
    better = module.deepcopy()
    better.rate__judge.signature = better.rate__judge.signature.with_instructions("DOUBLE")
    assert dspy.Evaluate(devset=data, metric=dspy_metric(grade), num_threads=8)(better).score == 100.0


def test_candidates_in_threads_are_isolated(module: GraphModule) -> None:
    """Eight candidates on one graph and one agent, all at once, each with its own words."""
    found: dict[int, tuple[int, int]] = {}

    def run(number: int) -> None:
        mine = module.deepcopy()
        if number % 2:
            mine.rate__judge.signature = mine.rate__judge.signature.with_instructions("DOUBLE")
        with dspy.context(trace=[]):
            totals = {mine(text="abc de").total for _ in range(5)}
            assert {id(entry[0]) for entry in dspy.settings.trace} == {id(mine.plan), id(mine.rate__judge)}
            found[number] = (totals.pop(), len(dspy.settings.trace))

    threads = [threading.Thread(target=run, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {number: (10 if number % 2 else 5, 15) for number in range(8)}


def test_usage_is_tracked_by_model(module: GraphModule) -> None:
    """`track_usage` counts what each model was sent and gave."""
    with dspy.context(track_usage=True):
        prediction = module(text="a bc")
    assert prediction.get_lm_usage()["scripted"]["prompt_tokens"] == 30
    assert prediction.get_lm_usage()["scripted"]["completion_tokens"] == 6


def test_another_lm_can_be_used_for_a_while(module: GraphModule) -> None:
    """`dspy.context(lm=)` and `set_lm` go before the module's model, with their own settings."""
    settings: list[Any] = []
    other = lm(before(scripted(), lambda _, info: settings.append(info.model_settings)), temperature=0.3)
    with dspy.context(lm=other):
        module(text="a")
    assert [one["temperature"] for one in settings] == [0.3, 0.3]
    module(text="a")
    assert len(settings) == 2
    copied = module.deepcopy()
    copied.set_lm(other.copy(rollout_id=1, temperature=1.0))
    copied(text="a")
    assert [one["temperature"] for one in settings[2:]] == [1.0, 1.0]


def test_the_modules_own_model_is_its_lm(module: GraphModule) -> None:
    """Optimizers that sample ask a program for its LM, and copy it."""
    copied = module.get_lm().copy(rollout_id=3, temperature=1.0)
    module.set_lm(copied)
    assert module.get_lm() is copied
    assert module(text="abc").total == 3


def test_a_predictor_runs_its_stage_alone(module: GraphModule) -> None:
    """With its own prompt, and traced."""
    module.rate__judge.signature = module.rate__judge.signature.with_instructions("DOUBLE")
    with dspy.context(trace=[]):
        assert module.rate__judge(input="abc").score == 6
        assert [entry[0] for entry in dspy.settings.trace] == [module.rate__judge]
    assert asyncio.run(module.rate__judge.acall(input="ab")).score == 4


def failing(*words: str, error: Exception | None = None) -> FunctionModel:
    """Cannot rate these words."""

    def act(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse | None:
        if asked(messages) not in words:
            return None
        if error is not None:
            raise error
        return ModelResponse([ToolCallPart(info.output_tools[0].name, {"word": "?", "score": "none"})])

    return before(scripted(), act)


def test_a_failed_stage_is_in_the_trace_and_the_prediction_says_why() -> None:
    """No exception, so that reflection sees it: the entry has a `stage_error`, the prediction the partial run."""
    module = GraphModule(Words(), model=failing("bc"))
    with dspy.context(trace=[]):
        prediction = module(text="bc a")
        trace = dspy.settings.trace
    assert prediction.output is None
    assert prediction.total is None
    assert "rate[0].judge" in (prediction.error or "")
    assert prediction.run.failures()[0].key == "rate[0].judge"
    failed = next(entry for entry in trace if entry[1] == {"input": "bc"})
    assert list(failed[2].keys()) == ["stage_error"]
    assert "valid output" in failed[2].stage_error
    assert dspy_metric(grade)(to_dspy(ROWS[:1], Words())[0], prediction) == 0.0


class Careful(Graph[list[str], int]):
    """Goes on without what failed."""

    judge = Stage(str, Agent(output_type=int, instructions="Rate."))

    async def flow(self, words: list[str]) -> int:
        return sum(outcome.value for outcome in await settle(self.judge, words) if outcome.ok)


def test_calls_that_failed_in_a_run_that_did_not_are_in_the_trace() -> None:
    """`settle` goes on; the stage still hears about it."""

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        value: object = 1 if asked(messages) == "good" else "none"
        return ModelResponse([ToolCallPart(info.output_tools[0].name, {"response": value})])

    module = GraphModule(Careful(), model=FunctionModel(answer))
    with dspy.context(trace=[]):
        assert module(input=["bad", "good"]).output == 1
        assert [list(entry[2].keys()) for entry in dspy.settings.trace] == [["stage_error"], ["output"]]


def test_a_busy_provider_is_asked_again() -> None:
    """A 429 is no failure of the candidate."""
    busy = shaky(scripted(), ModelHTTPError(429, "busy", {"error": "slow down"}), lambda number: number <= 2)[0]
    assert GraphModule(Words(), model=busy, retry_delays=(0, 0))(text="abc").total == 3


@pytest.mark.parametrize(
    "error", [ModelHTTPError(429, "busy"), ModelConnectionError("m", "refused")], ids=["429", "connection"]
)
def test_a_provider_that_stays_away_is_an_error(error: Exception) -> None:
    """The run's own error, with its record, for whoever called."""
    module = GraphModule(Words(), model=failing("abc", error=error), retry_delays=(0,))
    with pytest.raises(RunError) as caught:
        module(text="abc")
    assert [call.key for call in caught.value.failures] == ["rate[0].judge"]
    with pytest.raises(RunError):
        asyncio.run(module.acall(text="abc"))


class Around(dspy.Module):
    """A program around a graph."""

    def __init__(self, inner: GraphModule) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, **inputs: Any) -> Any:
        return self.inner(**inputs)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("wrap", [lambda module: module, Around], ids=["alone", "inside a program"])
def test_a_provider_that_stays_away_is_never_a_score(threads: int, wrap: Callable[[GraphModule], Any]) -> None:
    """DSPy's evaluations take every exception for a score of 0; this one ends them, and a call alone is none of them."""
    module = wrap(GraphModule(Words(), model=failing("no", error=ModelHTTPError(429, "busy")), retry_delays=()))
    for _ in range(2):
        with pytest.raises(TuningStopped, match="429") as caught:
            dspy.Evaluate(devset=to_dspy(ROWS, Words()), metric=dspy_metric(grade), num_threads=threads)(module)
        assert isinstance(caught.value.__cause__, RunError)
        with pytest.raises(RunError, match="429"):
            module(text="no")


@pytest.mark.parametrize("threads", [1, 2])
def test_who_watches_dspy_changes_nothing_about_that(threads: int) -> None:
    """Callbacks, as MLflow installs them, hide who calls: an evaluation still ends, and a call alone still does not."""
    module = GraphModule(Words(), model=failing("no", error=ModelHTTPError(429, "busy")), retry_delays=())

    def check() -> None:
        with dspy.context(callbacks=[BaseCallback()]):
            for _ in range(2):
                with pytest.raises(RunError, match="429"):
                    module(text="no")
                with pytest.raises(TuningStopped, match="429"):
                    dspy.Evaluate(devset=to_dspy(ROWS, Words()), metric=dspy_metric(grade), num_threads=threads)(module)

    contextvars.copy_context().run(check)  # DSPy leaves a variable of its callbacks behind


@pytest.mark.parametrize("broken", ["the provider", "the metric"])
def test_what_an_ended_evaluation_had_queued_is_not_run(broken: str) -> None:
    """Each thread ends with the example that it was at."""
    runs: list[str] = []

    def act(messages: list[ModelMessage], _info: AgentInfo) -> None:
        runs.append(asked(messages))
        if broken == "the provider":
            raise ModelHTTPError(503, "gone")

    def metric(_example: Any, _run: Any) -> float:
        raise KeyError("gone")

    others = set(threading.enumerate())
    rows = to_dspy([Example(Doc(text="a"), id=str(number)) for number in range(60)], Words())
    module = GraphModule(Words(), model=before(scripted(), act), retry_delays=())
    with pytest.raises(TuningStopped, match="gone"):
        dspy.Evaluate(devset=rows, metric=dspy_metric(metric), num_threads=3)(module)
    for thread in set(threading.enumerate()) - others:
        if thread.name.startswith("ThreadPoolExecutor"):
            thread.join()
    assert len(runs) <= 3 * 3


def test_a_mistake_is_not_tried_again_and_no_score() -> None:
    """Waiting helps against trouble, not against a bad key or no model at all; the error says what is missing."""
    model, count = shaky(scripted(), ModelHTTPError(401, "m"))
    with pytest.raises(RunError, match="API key"):
        GraphModule(Words(), model=model, retry_delays=(0, 0))(text="a")
    assert count["all"] == 1
    with pytest.raises(RunError, match="no model is set"):
        GraphModule(Words(), retry_delays=())(text="a")


def test_bad_input_is_an_error(module: GraphModule) -> None:
    """Of the caller, at once, and it says what is taken."""
    with pytest.raises(TypeError, match="no input `txt`; it takes: text"):
        module(txt="a")
    with pytest.raises(InputError, match="text"):
        module()
    with pytest.raises(TypeError, match="input="):
        GraphModule(Twins(), model=scripted())()


def test_a_blocking_call_on_the_background_loop_is_refused(module: GraphModule) -> None:
    """It would wait for itself; awaiting works there."""

    async def inside() -> None:
        with pytest.raises(NotRunningError, match="acall"):
            module(text="a")
        assert (await module.acall(text="abc")).total == 3

    submit(inside()).result(timeout=20)


def test_calls_work_on_every_loop(module: GraphModule) -> None:
    """Blocking, in a notebook for one, and awaited: the work is done on the loop in the background."""

    async def notebook() -> list[int]:
        return [module(text="abc").total, (await module.acall(text="abc")).total]

    for _ in range(2):
        assert asyncio.run(notebook()) == [3, 3]


def test_context_variables_come_along(module: GraphModule) -> None:
    """What a caller set is seen by tools and steps, though they run on another thread."""
    from contextvars import ContextVar

    tenant: ContextVar[str] = ContextVar("tenant", default="nobody")
    seen: list[str] = []
    module = GraphModule(Words(), model=scripted(lambda *_: seen.append(tenant.get())))
    tenant.set("acme")
    module(text="a")
    assert set(seen) == {"acme"}


def test_cancelling_the_wait_cancels_the_run() -> None:
    """Nothing goes on unseen."""
    ended = threading.Event()

    async def forever() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    async def caller() -> None:
        task = asyncio.ensure_future(await_here(forever()))
        await asyncio.wait({task}, timeout=0)
        await asyncio.wrap_future(submit(asyncio.sleep(0)))  # by now it has begun
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    asyncio.run(caller())
    assert ended.wait(timeout=20)


class Reserved(BaseModel):
    signature: str


def test_names_that_dspy_keeps_for_itself_are_refused() -> None:
    """The error says which field, where, and what to do."""

    class Bad(Graph[str, str]):
        sign = Stage(Reserved, Agent(instructions="Sign."))

        async def flow(self, text: str) -> str:
            return await self.sign(Reserved(signature=text))

    with pytest.raises(DeclarationError, match=r"stage `sign`: the field `signature` of Reserved.*rename it"):
        GraphModule(Bad())


class Same(BaseModel):
    text: str
    items: list[str] = Field(default_factory=list)


def test_a_field_on_both_sides_keeps_its_value_on_both() -> None:
    """DSPy has one namespace for inputs and outputs, so the output's is `output_<name>`."""

    class Rewrite(Graph[Same, Same]):
        rewrite = Stage(Same, Agent(output_type=Same, instructions="Rewrite."))

        async def flow(self, given: Same) -> Same:
            return await self.rewrite(given)

    def answer(_messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        return ModelResponse([ToolCallPart(info.output_tools[0].name, {"text": "new", "items": ["x"]})])

    module = GraphModule(Rewrite(), model=FunctionModel(answer))
    with dspy.context(trace=[]):
        assert module(text="old").output == Same(text="new", items=["x"])
        predictor, given, made = dspy.settings.trace[0]
    assert (given["text"], made.output_text) == ("old", "new")
    predictor.demos = [dspy.Example(**given, **made)]
    assert module.prompts()["rewrite"].demos == (Demo({"text": "old", "items": []}, {"text": "new", "items": ["x"]}),)


def test_a_stage_named_like_a_part_of_a_module_gets_another_attribute() -> None:
    """`load` stays the method."""

    class Odd(Graph[str, str]):
        load = Stage(str, Agent(instructions="Load."))
        crew = (Stage(str, Agent(instructions="One.")), Stage(str, Agent(instructions="Two.")))

        async def flow(self, text: str) -> str:
            return text

    module = GraphModule(Odd())
    assert list(texts(module)) == ["load_", "crew__0", "crew__1"]
    assert set(module.prompts()) == {"load", "crew.0", "crew.1"}


def test_a_single_stage_is_a_program_as_well() -> None:
    """Tuned alone, by its own name."""
    module = GraphModule(Words.plan, model=scripted())
    assert module(text="a b").words == ["a", "b"]
    assert set(module.prompts()) == {"plan"}


def test_what_is_no_graph_is_refused() -> None:
    """A class, above all."""
    with pytest.raises(DeclarationError, match=r"write Words\(\)"):
        GraphModule(Words)  # type: ignore[arg-type]

    class Empty(Graph[str, str]):
        async def flow(self, text: str) -> str:
            return text

    with pytest.raises(DeclarationError, match="no stages"):
        GraphModule(Empty())


def test_predictions_can_be_copied_and_stored(module: GraphModule) -> None:
    """Copies share the record behind; what GEPA stores of the best outputs has the fields and the output, and no run."""
    prediction = module(text="a")
    for other in (copy.copy(prediction), copy.deepcopy(prediction)):
        assert (other.total, other.run, other.output) == (1, prediction.run, prediction.output)
    stored = pickle.loads(pickle.dumps(prediction))  # noqa: S301 - our own
    assert (stored.total, stored.output.total, stored.error) == (1, 1, None)
    with pytest.raises(TuningError, match="record of its run"):
        _ = stored.run


def test_proposers_read_the_graphs_own_source(module: GraphModule) -> None:
    """Some look up the source of a program's class: it is the user's graph and not this wrapper."""
    assert "await fan_out(self.rate, plan.words)" in inspect.getsource(type(module))
    assert isinstance(module.deepcopy(), GraphModule)
    assert type(module.deepcopy()) is type(module)
    assert get_dspy_source_code(module)


def test_instructions_that_were_not_changed_are_as_they_were_written() -> None:
    """DSPy trims and dedents texts; what nobody tuned stays out of the diff."""
    text = "Rate.\n    - kindly\n    - quickly\n"

    class One(Graph[str, str]):
        rate = Stage(str, Agent(instructions=text))

        async def flow(self, word: str) -> str:
            return await self.rate(word)

    assert GraphModule(One()).prompts() == Prompts.of(One())
    assert GraphModule(One()).deepcopy().prompts() == Prompts.of(One())


def test_told_is_what_the_model_saw() -> None:
    """A stage without instructions of its own can be given some."""
    seen: list[str] = []

    def answer(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        seen.append(told(info))
        return ModelResponse([TextPart("ok")])

    class Bare(Graph[str, list[str]]):
        say = Stage(str, Agent())

        async def flow(self, word: str) -> list[str]:
            return await fan_out(self.say, [word])

    module = GraphModule(Bare(), model=FunctionModel(answer))
    module(input="a")
    module.say.signature = module.say.signature.with_instructions("Say it.")
    module(input="a")
    assert seen == ["", "Say it."]


def test_a_slow_call_is_joined_and_not_made_again() -> None:
    """DSPy submits the last calls of an evaluation again when they take two minutes; they are paid for once."""
    made: list[int] = []

    def race(flights: Flights) -> list[Any]:
        opened, entered = threading.Event(), threading.Event()

        async def work() -> int:
            made.append(1)
            entered.set()
            await asyncio.to_thread(opened.wait)
            return len(made)

        results: list[Any] = []
        threads = [threading.Thread(target=lambda: results.append(flights.run("call", work, ""))) for _ in range(2)]
        threads[0].start()
        entered.wait()
        entered.clear()
        threads[1].start()
        while len(made) == 1 and not flights.joined:
            pass
        opened.set()
        for thread in threads:
            thread.join()
        return results

    assert race(Flights(after=0)) == [1, 1]
    made.clear()
    race(Flights(after=1e9))
    assert len(made) == 2


def test_bad_rows_end_an_evaluation(module: GraphModule) -> None:
    """They are no candidate's fault, so they are no score."""
    rows = [dspy.Example(text=["not", "text"], total=1).with_inputs("text")]
    with pytest.raises(TuningStopped, match="text"):
        dspy.Evaluate(devset=rows, metric=dspy_metric(grade), num_threads=1)(module)
