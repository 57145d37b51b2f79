"""A run as JSON and back: every value through the type that the graph declares for it."""

from __future__ import annotations

import json
from decimal import Decimal
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

from pydantic import AwareDatetime, BaseModel, ConfigDict, PydanticUserError, TypeAdapter, ValidationError
from pydantic_ai.messages import ModelMessagesTypeAdapter
from pydantic_ai.usage import RunUsage
from pydantic_core import to_jsonable_python

from stagegraph.data.call import Call, CallError, Pending, Status
from stagegraph.data.score import Feedback
from stagegraph.nodes.node import Tree
from stagegraph.schema.schema import plain
from stagegraph.schema.serialize import escaped

from .run import ReplayError, RunError

if TYPE_CHECKING:
    from stagegraph.nodes.node import Node

    from .run import Run

__all__ = ["dump", "load"]

FORMAT = 1
_USAGE: TypeAdapter[RunUsage] = TypeAdapter(RunUsage)


def dump(run: Run[Any, Any]) -> str:
    data = {
        "format": FORMAT,
        "id": run.id,
        "graph": run.graph,
        "status": run.status,
        "error": _error_data(run.error),
        "started": run.started.isoformat(),
        "duration": run.duration,
        "metadata": dict(run.metadata),
        "tags": list(run.tags),
        "session_id": run.session_id,
        "user_id": run.user_id,
        "prompts_digest": run.prompts_digest,
        "pending": to_jsonable_python(run.pending),
        "feedback": to_jsonable_python(run.feedback),
        "rerun": dict(run.rerun),
        "edges": run.edges(),
        "root": _call_data(run.root, run.tree),
    }
    try:
        return json.dumps(data, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:  # a number in the metadata or in a message that JSON cannot say
        return json.dumps(plain(json.loads(json.dumps(data, default=str))), ensure_ascii=False)


def _call_data(call: Call, tree: Tree) -> dict[str, Any]:
    node = tree.nodes[call.path]
    try:
        given, output = (
            node.__node__.input_type.dump(call.input),
            None if call.output is None else node.__node__.output_type.dump(call.output),
        )
        json.dumps([given, output], ensure_ascii=False).encode()  # what no file or request could hold is found here
    except (ValueError, TypeError, PydanticUserError) as error:
        reason = str(error).splitlines()[0]
        hint = "give it a serializer"
        if "utf-8" in reason and "surrogates" not in reason:
            hint = "give its model `ConfigDict(ser_json_bytes='base64', val_json_bytes='base64')`"
        msg = f"call `{call.key or node.__node__.name}`: a value cannot be written as JSON: {reason}; {hint}"
        raise RunError(msg) from error
    return {
        "path": call.path,
        "key": call.key,
        "status": call.status,
        "input": given,
        "output": output,
        "error": _error_data(call.error),
        "usage": _USAGE.dump_python(call.usage, mode="json", exclude_defaults=True),
        "cost": None if call.cost is None else str(call.cost),
        "started": call.started.isoformat(),
        "duration": call.duration,
        "attempts": call.attempts,
        "replayed": call.replayed,
        "messages": ModelMessagesTypeAdapter.dump_python(list(call.messages), mode="json"),
        "children": [_call_data(child, tree) for child in call.children],
    }


def _error_data(error: CallError | None) -> dict[str, str] | None:
    if error is None:
        return None
    return {"type": error.type, "message": escaped(error.message)}


class _Record(BaseModel):
    model_config = ConfigDict(defer_build=True)


class _CallRecord(_Record):
    """One call as it was written; its values are plain data until the graph says what they are."""

    path: str
    key: str
    status: Status
    input: Any
    output: Any
    error: CallError | None
    usage: RunUsage
    cost: Decimal | None
    started: AwareDatetime
    duration: float
    attempts: int
    replayed: bool
    messages: list[dict[str, Any]]
    children: list[_CallRecord]


class _RunRecord(_Record):
    id: str
    graph: str
    status: Status
    error: CallError | None
    started: AwareDatetime
    duration: float
    metadata: dict[str, Any]
    tags: tuple[str, ...]
    session_id: str | None
    user_id: str | None
    prompts_digest: str
    pending: tuple[Pending, ...]
    feedback: tuple[Feedback, ...]
    rerun: dict[str, str]
    edges: list[tuple[str, str]]
    root: _CallRecord


def load(text: str | bytes, graph: Node[Any, Any], run_type: type[Run[Any, Any]]) -> Run[Any, Any]:
    tree = graph.__node__.tree
    try:
        data = cast("dict[str, Any]", json.loads(text))
        if data["format"] != FORMAT:
            msg = f"the record is in format {data['format']!r}, and this version of stagegraph reads format {FORMAT}"
            raise ReplayError(msg)
        record = _RunRecord.model_validate(data)
        root = _call(record.root, tree, graph.__node__.name)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"this is no record of a run that can be read: {_reason(error)}"
        raise ReplayError(msg) from error
    return run_type(
        id=record.id,
        graph=record.graph,
        status=record.status,
        input=root.input,
        output=root.output,
        error=record.error,
        started=record.started,
        duration=record.duration,
        metadata=MappingProxyType(record.metadata),
        tags=record.tags,
        session_id=record.session_id,
        user_id=record.user_id,
        prompts_digest=record.prompts_digest,
        pending=record.pending,
        feedback=record.feedback,
        rerun=record.rerun,
        tree=tree,
        read_root=lambda: root,
        read_edges=lambda: record.edges,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return f"{type(error).__name__}: {error}"


def _misfit(record: _CallRecord, label: str, what: str, problem: str, error: ValidationError) -> ReplayError:
    place = record.key or label
    return ReplayError(f"the record does not fit {label}: {what} of `{place}` {problem}: {_reason(error)}")


def _call(record: _CallRecord, tree: Tree, label: str) -> Call:
    path, key = record.path, record.key
    node = tree.nodes.get(path)
    if node is None:
        msg = f"the record has a call `{key}` of `{path}`, which {label} does not declare"
        raise ReplayError(msg)
    given, output = record.input, None
    succeeded = record.status == "succeeded"
    try:
        given = node.__node__.input_type.recall(given)
    except ValidationError as error:
        # A call may have failed for the very reason that its input was wrong, and what was left out may be required.
        if succeeded and not node.__node__.input_type.traits.hides:
            raise _misfit(record, label, "input", f"is no {node.__node__.input_type.name}", error) from error
    try:
        output = node.__node__.output_type.recall(record.output) if succeeded else None
    except ValidationError as error:
        if not node.__node__.output_type.traits.hides:
            raise _misfit(record, label, "output", f"is no {node.__node__.output_type.name}", error) from error
        output = record.output  # what was left out on purpose may be what the type asks for
    try:
        messages = ModelMessagesTypeAdapter.validate_python(record.messages)
    except ValidationError as error:
        raise _misfit(record, label, "messages", "cannot be read", error) from error
    return Call(
        path=path,
        key=key,
        kind=node.__node__.kind,
        status=record.status,
        input=given,
        output=output,
        error=record.error,
        usage=record.usage,
        cost=record.cost,
        started=record.started,
        duration=record.duration,
        attempts=record.attempts,
        messages=tuple(messages),
        children=tuple(_call(child, tree, label) for child in record.children),
        replayed=record.replayed,
    )
