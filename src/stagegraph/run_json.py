"""A run as JSON and back: every value through the type that the graph declares for it."""

from __future__ import annotations

import json
from datetime import datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, cast

from pydantic import TypeAdapter, ValidationError
from pydantic_ai.messages import ModelMessagesTypeAdapter
from pydantic_ai.usage import RunUsage

from .call import Call, CallError
from .errors import ReplayError, RunError
from .structure import Structure

if TYPE_CHECKING:
    from .node import Node
    from .run import Run

__all__ = ["dump", "load"]

FORMAT = 1
_USAGE: TypeAdapter[RunUsage] = TypeAdapter(RunUsage)


def dump(run: Run[Any, Any]) -> str:
    data = {
        "format": FORMAT,
        "id": run.id,
        "graph": run.graph,
        "metadata": dict(run.metadata),
        "tags": list(run.tags),
        "session_id": run.session_id,
        "user_id": run.user_id,
        "prompts_digest": run.prompts_digest,
        "edges": run.edges(),
        "root": _call_data(run.root, run.structure),
    }
    return json.dumps(data, ensure_ascii=False, default=str)


def _call_data(call: Call, structure: Structure) -> dict[str, Any]:
    node = structure.nodes[call.path]
    try:
        given, output = node.takes.dump(call.input), None if call.output is None else node.gives.dump(call.output)
    except (ValueError, TypeError) as error:
        msg = f"call `{call.key}`: a value cannot be written as JSON: {error}; give the field a serializer"
        raise RunError(msg) from error
    return {
        "path": call.path,
        "key": call.key,
        "status": call.status,
        "input": given,
        "output": output,
        "error": None if call.error is None else {"type": call.error.type, "message": call.error.message},
        "usage": _USAGE.dump_python(call.usage, mode="json", exclude_defaults=True),
        "cost": None if call.cost is None else str(call.cost),
        "started": call.started.isoformat(),
        "duration": call.duration,
        "attempts": call.attempts,
        "replayed": call.replayed,
        "messages": ModelMessagesTypeAdapter.dump_python(list(call.messages), mode="json"),
        "children": [_call_data(child, structure) for child in call.children],
    }


def load(text: str | bytes, graph: Node[Any, Any], run_type: type[Run[Any, Any]]) -> Run[Any, Any]:
    structure = Structure.of(graph)
    try:
        data = cast("dict[str, Any]", json.loads(text))
        if data["format"] != FORMAT:
            msg = f"the record is in format {data['format']!r}, and this version of stagegraph reads format {FORMAT}"
            raise ReplayError(msg)
        root = _call(data["root"], structure, graph.label)
        edges = [(str(a), str(b)) for a, b in data["edges"]]
        return run_type(
            id=data["id"],
            graph=data["graph"],
            status=root.status,
            input=root.input,
            output=root.output,
            error=root.error,
            started=root.started,
            duration=root.duration,
            metadata=data["metadata"],
            tags=tuple(data["tags"]),
            session_id=data["session_id"],
            user_id=data["user_id"],
            prompts_digest=data["prompts_digest"],
            structure=structure,
            read_root=lambda: root,
            read_edges=lambda: edges,
        )
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        msg = f"this is no record of a run that can be read: {type(error).__name__}: {error}"
        raise ReplayError(msg) from error


def _call(data: dict[str, Any], structure: Structure, label: str) -> Call:
    path, key = data["path"], data["key"]
    node = structure.nodes.get(path)
    if node is None:
        msg = f"the record has a call `{key}` of `{path}`, which {label} does not declare"
        raise ReplayError(msg)
    given, output = data["input"], data["output"]
    succeeded = data["status"] == "succeeded"
    try:
        given = node.takes.load(given)
    except ValidationError as error:
        if succeeded:  # a call may have failed for the very reason that its input was wrong
            msg = f"the record does not fit {label}: the input of `{key}` is no {node.takes.name}: {error}"
            raise ReplayError(msg) from error
    try:
        output = node.gives.load(output) if succeeded else None
    except ValidationError as error:
        msg = f"the record does not fit {label}: the output of `{key}` is no {node.gives.name}: {error}"
        raise ReplayError(msg) from error
    return Call(
        path=path,
        key=key,
        kind=node.kind,
        status=data["status"],
        input=given,
        output=output,
        error=None if data["error"] is None else CallError(**data["error"]),
        usage=_USAGE.validate_python(data["usage"]),
        cost=None if data["cost"] is None else Decimal(data["cost"]),
        started=datetime.fromisoformat(data["started"]),
        duration=data["duration"],
        attempts=data["attempts"],
        messages=tuple(ModelMessagesTypeAdapter.validate_python(data["messages"])),
        children=tuple(_call(child, structure, label) for child in data["children"]),
        replayed=data["replayed"],
    )
