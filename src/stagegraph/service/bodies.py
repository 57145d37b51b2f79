"""The bodies of requests and responses, besides the graph's own types."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

from pydantic import BaseModel, ConfigDict, Field, JsonValue, create_model
from pydantic_core import PydanticSerializationError, to_jsonable_python

from stagegraph.data.call import ShownStatus
from stagegraph.record.mermaid import declared_chart

from .problems import Problem

if TYPE_CHECKING:
    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run
    from stagegraph.schema.schema import Schema


class Spent(BaseModel):
    """What a run has used so far."""

    requests: int
    input_tokens: int
    output_tokens: int
    cost: str | None = None
    """US dollars; `null` when a price is not known."""


class Question(BaseModel):
    """An approval or a tool result that a suspended run waits for; `POST /runs/{id}/answers` answers it by its `id`."""

    id: str
    key: str
    kind: Literal["approval", "external"]
    tool: str
    args: JsonValue


class RunFacts(BaseModel):
    """What a run's state and a list of runs say of a run."""

    run_id: str
    status: ShownStatus
    usage: Spent
    """What it has spent so far."""
    started: datetime
    duration: float
    detail: str | None = None
    """Why a run does not continue, where the reason is its process."""


class RunView(RunFacts):
    """The state of a run."""

    pending: list[Question] = []
    failed_at: str | None = None
    """The key of the call that failed first."""


def view_type(graph: Node[Any, Any]) -> type[RunView]:
    """A run's state with the graph's own output type, for the OpenAPI document."""
    name = f"{''.join(c if c.isalnum() else '_' for c in graph.__node__.name)}Run"
    output: Any = (Optional[graph.__node__.output_type.type], None)  # noqa: UP045 - the type is only known now
    return create_model(name, __base__=RunView, __doc__=f"A run of {graph.__node__.name}.", output=output)


def run_json(graph: Node[Any, Any], run: Run[Any, Any], status: ShownStatus, detail: str | None = None) -> bytes:
    """A run's state as JSON.

    Raises:
        Problem: the output cannot be written as JSON.
    """
    failures = run.failures() if run.status == "failed" else []
    state = {
        "run_id": run.id,
        "status": status,
        "usage": {
            **{name: getattr(run.usage, name) for name in ("requests", "input_tokens", "output_tokens")},
            "cost": None if run.cost is None else str(run.cost),
        },
        "started": run.started.isoformat(),
        "duration": run.duration,
        "pending": [
            {name: to_jsonable_python(getattr(one, name), fallback=repr) for name in Question.model_fields}
            for one in run.pending
        ],
        "failed_at": failures[0].key if failures else None,
        "detail": detail,
    }
    try:
        output = _output(graph.__node__.output_type, run.output) if status == "succeeded" else b"null"
    except (ValueError, TypeError):
        text = "the run succeeded, but its output cannot be written as JSON"
        raise Problem(500, "output", text, run_id=run.id) from None
    return json.dumps(state, ensure_ascii=False).encode(errors="replace")[:-1] + b', "output": ' + output + b"}"


def _output(schema: Schema, value: object) -> bytes:
    """An output as JSON; half of a character, which models do send, is written as its escape."""
    try:
        return schema.show_json(value)
    except PydanticSerializationError:
        return json.dumps(schema.show(value)).encode()


class Denied(BaseModel):
    """A denied approval, with the reason for the model."""

    model_config = ConfigDict(extra="forbid")

    approved: Literal[False]
    message: str = "The tool call was denied."


class Answers(BaseModel):
    """Answers for a suspended run: the id of each question with `true`, `false` or a denial, or a tool's result."""

    model_config = ConfigDict(extra="forbid")

    answers: dict[str, JsonValue] = Field(min_length=1, max_length=1000)


class FeedbackBody(BaseModel):
    """A score for a run, or for one call of it; it replaces an earlier score of the same name for the same call."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=200, pattern=r"\S")
    value: bool | Annotated[float, Field(allow_inf_nan=False)] | Annotated[str, Field(max_length=10_000)]
    key: str | None = Field(None, max_length=1000)
    comment: str | None = Field(None, max_length=10_000)


class NodeInfo(BaseModel):
    """One node of a graph."""

    path: str
    kind: Literal["stage", "step", "graph"]
    label: str
    input: str
    output: str


class GraphInfo(BaseModel):
    """What a graph declares."""

    name: str
    description: str | None
    nodes: list[NodeInfo]
    input_schema: dict[str, JsonValue]
    output_schema: dict[str, JsonValue]
    mermaid: str


def graph_info(graph: Node[Any, Any]) -> GraphInfo:
    """The declared tree, without any prompt."""
    own = graph.__node__
    nodes = [
        NodeInfo(
            path=path,
            kind=node.__node__.kind,
            label=node.__node__.name,
            input=node.__node__.input_type.name,
            output=node.__node__.output_type.name,
        )
        for path, node in own.tree.nodes.items()
    ]
    return GraphInfo(
        name=own.name,
        description=type(graph).__doc__ if own.kind == "graph" else None,
        nodes=nodes,
        input_schema=own.input_type.adapter.json_schema(),
        output_schema=own.output_type.adapter.json_schema(mode="serialization"),
        mermaid=declared_chart(graph),
    )


class Health(BaseModel):
    """Whether the service is running, and whether it accepts runs."""

    status: Literal["alive", "ready", "draining"]
