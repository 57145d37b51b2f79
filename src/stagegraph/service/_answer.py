"""What the endpoints take and give besides the graph's own types."""

from __future__ import annotations

import json
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal, Optional

from pydantic import BaseModel, ConfigDict, Field, JsonValue, create_model
from pydantic_core import PydanticSerializationError, to_jsonable_python

from ._problems import Problem

if TYPE_CHECKING:
    from stagegraph import Node, Run

__all__ = ["Answers", "FeedbackBody", "GraphInfo", "Health", "RunState", "answer_type", "graph_info", "state_json"]

RunStatus = Literal["running", "succeeded", "failed", "cancelled", "suspended", "interrupted"]
"""As a run's own, and `interrupted`: its process is gone, and another one may take it up."""


class Spent(BaseModel):
    """What a run has used so far."""

    requests: int
    input_tokens: int
    output_tokens: int
    cost: str | None = None
    """US dollars; `null` when a price is not known."""


class Question(BaseModel):
    """What a suspended run asks; `POST /runs/{id}/answers` with its `id` goes on."""

    id: str
    key: str
    kind: Literal["approval", "external"]
    tool: str
    args: JsonValue


class RunState(BaseModel):
    """A run as it stands."""

    run_id: str
    status: RunStatus
    usage: Spent
    started: datetime
    duration: float
    pending: list[Question] = []
    failed_at: str | None = None
    """The key of the call that failed first."""
    detail: str | None = None
    """Why a run does not go on by itself, where its process is what failed."""


def answer_type(graph: Node[Any, Any]) -> type[RunState]:
    """A run's state with the graph's own output type, for the OpenAPI document."""
    name = f"{''.join(c if c.isalnum() else '_' for c in graph.__node__.name)}Run"
    output: Any = (Optional[graph.__node__.output_type.type], None)  # noqa: UP045 - the type is only known now
    return create_model(name, __base__=RunState, __doc__=f"A run of {graph.__node__.name}.", output=output)


def state_json(graph: Node[Any, Any], run: Run[Any, Any], status: RunStatus, detail: str | None = None) -> bytes:
    """A run's state as it is sent."""
    usage, failures = run.usage, run.failures() if run.status == "failed" else []
    pending = [
        {"id": one.id, "key": one.key, "kind": one.kind, "tool": one.tool, "args": one.args} for one in run.pending
    ]
    spent = {
        "requests": usage.requests,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cost": None if run.cost is None else str(run.cost),
    }
    state = {
        "run_id": run.id,
        "status": status,
        "usage": spent,
        "started": run.started.isoformat(),
        "duration": run.duration,
        "pending": to_jsonable_python(pending, fallback=repr),
        "failed_at": failures[0].key if failures else None,
        "detail": detail,
    }
    try:
        output = graph.__node__.output_type.show_json(run.output) if status == "succeeded" else b"null"
    except PydanticSerializationError:
        raise Problem(
            500, "output", "the run succeeded, but its output cannot be written as JSON", run_id=run.id
        ) from None
    return json.dumps(state).encode()[:-1] + b', "output": ' + output + b"}"


class Denied(BaseModel):
    """An approval that is not given, with the reason for the model."""

    model_config = ConfigDict(extra="forbid")

    approved: Literal[False]
    message: str = "The tool call was denied."


class Answers(BaseModel):
    """What a suspended run gets: the id of each question with `true`, `false` or a denial, or a tool's result."""

    model_config = ConfigDict(extra="forbid")

    answers: dict[str, JsonValue] = Field(min_length=1, max_length=1000)


class FeedbackBody(BaseModel):
    """A score for a run, or for one call of it; the same name on the same call replaces the score that was there."""

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
    from stagegraph.record.mermaid import declared_chart  # noqa: PLC0415

    nodes = [
        NodeInfo(
            path=path,
            kind=node.__node__.kind,
            label=node.__node__.name,
            input=node.__node__.input_type.name,
            output=node.__node__.output_type.name,
        )
        for path, node in graph.__node__.tree.nodes.items()
    ]
    return GraphInfo(
        name=graph.__node__.name,
        description=type(graph).__doc__ if graph.__node__.kind == "graph" else None,
        nodes=nodes,
        input_schema=graph.__node__.input_type.adapter.json_schema(),
        output_schema=graph.__node__.output_type.adapter.json_schema(mode="serialization"),
        mermaid=declared_chart(graph),
    )


class Health(BaseModel):
    """Whether the service is there, and whether it takes runs."""

    status: Literal["alive", "ready", "draining"]
