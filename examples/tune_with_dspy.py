"""Tune a graph with DSPy's own GEPA: any DSPy optimizer takes a GraphModule. Runs offline, on scripted models."""

import json
import logging
import re
from typing import Any

import dspy
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, ToolCallPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Example, Graph, Run, Score, Stage, fan_out
from stagegraph.optimize import GraphModule, dspy_metric, lm, to_dspy


class Inbox(BaseModel):
    mails: list[str]


class Ticket(BaseModel):
    subject: str
    urgent: bool


class Triage(Graph[Inbox, list[Ticket]]):
    """An inbox -> a ticket for each mail, as many at once as there are."""

    sort = Stage(str, Agent(output_type=Ticket, instructions="Make a ticket of the mail."))

    async def flow(self, inbox: Inbox) -> list[Ticket]:
        return await fan_out(self.sort, inbox.mails)


def grade(example: Example[Inbox], run: Run[Inbox, list[Ticket]]) -> Score:
    """The share of tickets that are right; each wrong one has a note on the very call that made it."""
    calls = run.calls(Triage.sort)
    wrong = [
        call.note(f"urgent is {call.output.urgent}, but mails about an outage, and only those, are urgent")
        for call, urgent in zip(calls, example.expected, strict=True)
        if call.output.urgent != urgent
    ]
    return Score(1 - len(wrong) / len(calls), notes=wrong)


def student(messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
    """Instead of a real model: it calls every mail urgent until its instructions mention outages."""
    part = messages[-1].parts[-1]
    mail = str(part.content) if isinstance(part, UserPromptPart) else ""
    urgent = "outage" in mail if "outage" in (info.instructions or "") else True
    return ModelResponse([ToolCallPart(info.output_tools[0].name, {"subject": mail[:20], "urgent": urgent})])


def reflection(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """Instead of a strong model: it writes down the rule that the feedback tells it."""
    prompt = str(messages)
    rule = re.search(r"mails about an outage, and only those, are urgent", prompt)
    text = f"Make a ticket of the mail. Note: {rule[0]}." if rule else "Make a ticket of the mail."
    return ModelResponse([TextPart(json.dumps({"new_instruction": text}))])


EXAMPLES = [
    Example(Inbox(mails=["outage in Berlin", "lunch?"]), [True, False]),
    Example(Inbox(mails=["invoice 7", "your newsletter", "outage again"]), [False, False, True]),
    Example(Inbox(mails=["hello", "welcome"]), [False, False]),
    Example(Inbox(mails=["login outage", "all good"]), [True, False]),
]


def main() -> None:
    logging.getLogger("dspy").setLevel(logging.WARNING)
    graph = Triage()
    module = GraphModule(graph, model=FunctionModel(student))
    rows = to_dspy(EXAMPLES, graph)
    metric = dspy_metric(grade)

    optimizer: Any = dspy.GEPA(  # pyright: ignore[reportUnknownMemberType] - DSPy declares few types
        metric=metric, reflection_lm=lm(FunctionModel(reflection)), max_metric_calls=30, num_threads=4
    )
    better: GraphModule = optimizer.compile(module, trainset=rows[:2], valset=rows[2:])

    evaluate: Any = dspy.Evaluate(devset=rows, metric=metric, num_threads=4)
    print("before:", evaluate(module).score, "after:", evaluate(better).score)
    print(better.prompts().to_yaml())  # what people review, and a runner deploys


if __name__ == "__main__":
    main()
