"""Cache keys and the replay cache: what identifies a leaf call, and the recorded calls that it may repeat.

A cache key covers a call's node and input. It does not cover deps, the clock, the text of dynamic instructions, or a
tool's code (`version=` is for that).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from functools import cached_property
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

from pydantic_ai.toolsets import FunctionToolset

from stagegraph.data.prompt import Prompt
from stagegraph.record.rows import CallRow, OpRow, Recorded
from stagegraph.schema.serialize import hashed

from .state import CacheKey

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.nodes.describe import Offered
    from stagegraph.nodes.stage import Stage
    from stagegraph.nodes.step import Step

_SECRET_SETTINGS = frozenset({"extra_headers", "extra_body", "api_key", "headers"})


class NodeKey:
    """What the cache keys of all calls of one node in one run have in common."""

    def __init__(self, path: str, parts: dict[str, str]) -> None:
        self._parts = parts
        self._parts_json = json.dumps(parts)
        self._seed = blake2b(hashed(path, *parts.values()).encode(), digest_size=12)

    def of_call(self, input_json: bytes) -> CacheKey:
        """The key of one call: where it is declared, what its node is, and its input."""
        digest = self._seed.copy()
        digest.update(input_json)
        return CacheKey(digest.hexdigest(), input_json.decode(), self._parts, self._parts_json)


def step_parts(step: Step[Any, Any]) -> dict[str, str]:
    """Name -> hash of each part of a step that determines its output."""
    return {"the output type": step.__node__.output_type.fingerprint, "the version": hashed(str(step.version))}


def stage_parts(stage: Stage[Any, Any], prompt: Prompt | None, model: Model[Any] | None) -> dict[str, str]:
    """Name -> hash of each part of a stage that determines its output; the same for all its calls in a run."""
    text = prompt.instructions if prompt is not None and prompt.instructions is not None else stage.instructions
    return {
        "the prompt": hashed(text.strip(), json.dumps(_extras(stage, prompt or Prompt()), sort_keys=True)),
        "the model": hashed(model.model_id if model is not None else "", _settings_text(stage)),
        "the output type": stage.__node__.output_type.fingerprint,
        "the tools": hashed(*sorted(_tool_names(stage))),
        "the version": hashed(str(stage.version)),
    }


def _extras(stage: Stage[Any, Any], prompt: Prompt) -> dict[str, Any]:
    """The parts of a prompt besides its instructions that differ from the code's."""
    data: dict[str, Any] = {name: value for name, value in prompt.data().items() if name == "demos"}
    if prompt.tools:
        data["tools"] = _changed(prompt.tools, stage.tools[0])
    if prompt.fields:
        data["fields"] = _changed(prompt.fields, stage.fields)
    return {name: value for name, value in data.items() if value}


def _changed(texts: Mapping[str, str], known: Mapping[str, Offered]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if name not in known or known[name].text != text}


def _settings_text(stage: Stage[Any, Any]) -> str:
    """Model settings as text, without secrets and without values that JSON cannot hold."""
    settings: dict[str, Any] = {}
    for source in (getattr(stage.agent, "model_settings", None), stage.model_settings):
        if isinstance(source, dict):
            settings.update(cast("dict[str, Any]", source))
    kept = {name: value for name, value in settings.items() if name not in _SECRET_SETTINGS}
    return json.dumps(kept, sort_keys=True, default=lambda value: type(value).__name__)


def _tool_names(stage: Stage[Any, Any]) -> set[str]:
    names: set[str] = set()
    for toolset in stage.agent.toolsets:
        toolset.apply(lambda leaf: names.update(leaf.tools if isinstance(leaf, FunctionToolset) else {leaf.id or ""}))
    return names


class ReplayCache:
    """The recorded calls of one run, each used once, by a call of another run or of the resumed run.

    Identity decides, not order, so concurrent branches cannot swap answers and a flow may run in any order. Among
    equal calls the one with the same key goes first; calls with the very same identity keep to their own keys.
    """

    def __init__(self, calls: Iterable[CallRow] = (), ops: Iterable[OpRow] = ()) -> None:
        self._by_identity: dict[str, dict[str, Recorded]] = {}
        self._at: dict[str, CallRow] = {}
        self._called: set[str] = set()
        self._rows = list(calls)
        for row in self._rows:
            if row.kind != "graph":
                self._at[row.key] = row
                # A failed step has no output; a failed stage has the recorded requests of its agent.
                if row.identity and row.status != "failed":
                    self._by_identity.setdefault(row.identity, {})[row.key] = Recorded(row)
        for op in ops:
            same = self._by_identity.setdefault(op.identity, {})
            same.setdefault(op.key, Recorded(_begun(op))).ops[op.op] = op
        self._unique = {identity for identity, same in self._by_identity.items() if len(same) == 1}

    def __bool__(self) -> bool:
        return bool(self._at)

    def claim(self, key: str, identity: str) -> Recorded | None:
        """The recorded call that this one repeats, if there is one; each is returned once."""
        self._called.add(key)
        same = self._by_identity.get(identity)
        if not same:
            return None
        if key in same:
            return same.pop(key)
        other = self._elsewhere(key, identity, same)
        return same.pop(other) if other is not None else None

    def _elsewhere(self, key: str, identity: str, same: Mapping[str, Recorded]) -> str | None:
        """The key of an equal call, unless a call with that key may still come."""
        abandoned = next((place for place in same if place in self._called), None)
        before = self._at.get(key)
        if before is not None and before.identity == identity:
            return abandoned  # the same call failed here: the answer of another call belongs to that one
        moved = before is not None
        return abandoned or (next(iter(same)) if moved or identity in self._unique else None)

    @cached_property
    def inside(self) -> Mapping[str, list[CallRow]]:
        """Key -> the calls that were made directly in that call."""
        found: dict[str, list[CallRow]] = {}
        for row in self._rows:
            if row.parent is not None:
                found.setdefault(row.parent, []).append(row)
        return found

    def use_up(self, row: CallRow) -> None:
        """Keep a recorded call from being recalled, since it was restored with the call around it."""
        self._by_identity.get(row.identity, {}).pop(row.key, None)

    def at(self, key: str) -> CallRow | None:
        """The call that was recorded with this key."""
        return self._at.get(key)

    def holds(self, key: str, identity: str) -> bool:
        """Whether a finished call with another identity was recorded here, which only a finished call may replace."""
        row = self._at.get(key)
        return row is not None and row.status == "succeeded" and row.identity != identity

    def changed(self, key: str, input_json: str, parts: Mapping[str, str]) -> str | None:
        """How a call differs from the one recorded with its key, in words; `None` when there is none."""
        row = self._at.get(key)
        if row is None:
            return None
        before = json.loads(row.parts)
        names = ["the input"] if row.input != input_json else []
        names += [name for name in parts if before.get(name) != parts[name]]
        return " and ".join(names) if names else "nothing"


def _begun(op: OpRow) -> CallRow:
    """A call of which only requests and tool calls were recorded."""
    return CallRow(
        run_id=op.run_id,
        key=op.key,
        path="",
        kind="stage",
        parent=None,
        position=0,
        status="running",
        identity=op.identity,
        input="",
        started=0.0,
    )
