"""Training data is what was served: the conversations of the calls, by stage. The training itself is a stub."""

import json
from typing import Any

import dspy
import pytest
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import AgentInfo, FunctionModel
from words import ROWS, Plan, Words, asked, scripted

from stagegraph import Example, Graph, Run, Stage
from stagegraph.optimize import BootstrapFinetune, GraphModule, dspy_metric, lm, to_dspy

pytestmark = pytest.mark.filterwarnings("ignore")  # of DSPy's own


class Collecting(BootstrapFinetune):
    """Keeps the rows of each job instead of paying for it."""

    @staticmethod
    def finetune_lms(finetune_dict: dict[Any, Any]) -> dict[Any, Any]:
        JOBS.extend(json.loads(json.dumps(job["train_data"])) for job in finetune_dict.values())
        return {key: job["lm"] for key, job in finetune_dict.items()}


JOBS: list[list[dict[str, Any]]] = []


def jobs(graph: Graph[Any, Any], model: FunctionModel, rows: list[Example[Any]], metric: Any, **options: Any) -> Any:
    JOBS.clear()
    module = GraphModule(graph, model=model)
    module.set_lm(lm(model))
    better = Collecting(metric=dspy_metric(metric), num_threads=2, **options).compile(module, to_dspy(rows, graph))
    assert isinstance(better, GraphModule)
    return list(JOBS)


def short(_example: Example[Any], run: Run[Any, Any]) -> bool:
    return len(run.output.ratings) < 3


@pytest.mark.parametrize("multitask", [True, False])
def test_rows_are_the_calls_of_good_runs(multitask: bool) -> None:
    """One for each call of a fan-out, with the very instructions; by stage when each has a model of its own."""
    found = jobs(Words(), scripted(), ROWS, short, multitask=multitask)
    rows = [row["messages"] for job in found for row in job]
    plans = [row for row in rows if row[0]["content"] == "List the words."]
    rates = [row for row in rows if row[0]["content"] == "Rate the word."]
    assert [len(job) for job in found] == ([8] if multitask else [3, 5])
    assert (len(plans), len(rates)) == (3, 5)  # "a bc", "def gh" and "no"; "i jkl m" has three words
    assert {row[1]["content"] for row in rates} == {"a", "bc", "def", "gh", "no"}
    row = next(row for row in rates if row[1]["content"] == "gh")
    assert [turn["role"] for turn in row] == ["system", "user", "assistant"]
    (call,) = row[-1]["tool_calls"]
    assert call["function"]["name"] == "final_result"
    assert json.loads(call["function"]["arguments"]) == {"word": "gh", "score": 2}
    if not multitask:
        assert all(row["messages"][0]["content"] == "List the words." for row in found[0])


class Answer(BaseModel):
    text: str


def test_a_tool_loop_is_one_conversation() -> None:
    """With what the tool was asked and gave; an answer that was refused is there, and not learned."""
    agent = Agent(output_type=[Plan, str], instructions="Look it up.")

    @agent.tool_plain
    def look(word: str) -> str:
        return f"{word}!"

    @agent.output_validator
    def check(output: Any) -> Any:
        if isinstance(output, str) and "bad" in output:
            from pydantic_ai import ModelRetry

            raise ModelRetry("not good")
        return output

    class Looked(Graph[str, Any]):
        look = Stage(str, agent)

        async def flow(self, text: str) -> Any:
            return await self.look(text)

    def answer(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
        step = sum(isinstance(message, ModelResponse) for message in messages)
        said = [ToolCallPart("look", {"word": asked(messages)}), TextPart("bad"), TextPart("good")]
        return ModelResponse([said[step]])

    ((row,),) = jobs(Looked(), FunctionModel(answer), [Example("x")], lambda _example, _run: True)
    turns = row["messages"]
    assert [turn["role"] for turn in turns] == ["system", "user", "assistant", "tool", "assistant", "user", "assistant"]
    assert turns[3]["content"] == "x!"
    assert turns[3]["tool_call_id"] == turns[2]["tool_calls"][0]["id"]
    assert [turn.get("weight") for turn in turns if turn["role"] == "assistant"] == [None, 0, None]
    assert turns[-1]["content"] == "good"


def test_dspy_would_train_on_something_else() -> None:
    """The reason for a class of our own: its rows are in the words of its adapter."""
    module = GraphModule(Words(), model=scripted())
    rows = dspy.ChatAdapter().format_finetune_data(
        module.plan.signature, [], {"text": "a"}, dspy.Prediction(words=["a"])
    )
    assert "[[ ## text ## ]]" in str(rows)
