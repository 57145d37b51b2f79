"""Cache keys and the replay cache: what identifies a leaf call, and the recorded calls that it may repeat.

A cache key covers a call's node and input. It does not cover deps, the clock, the text of dynamic instructions, or a
tool's code (`version=` is for that).
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Mapping
from functools import cache, cached_property
from hashlib import blake2b
from heapq import heappop, heappush
from typing import TYPE_CHECKING, Any, cast

from pydantic import ConfigDict, TypeAdapter
from pydantic_ai.messages import UserContent
from pydantic_ai.toolsets import FunctionToolset

from stagegraph.data.call import Kind, key_order
from stagegraph.data.prompt import Prompt
from stagegraph.record.rows import CallRow, OpRow, Recorded
from stagegraph.schema.serialize import NO_JSON, hashed, json_of, without_json

from .state import CacheKey

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.nodes.describe import Offered
    from stagegraph.nodes.stage import Stage
    from stagegraph.nodes.step import Step
    from stagegraph.schema.schema import Record

_SECRET_SETTINGS = frozenset({"extra_headers", "extra_body", "api_key", "headers"})


class NodeKey:
    """What the cache keys of all calls of one node in one run have in common."""

    def __init__(self, path: str, parts: dict[str, str]) -> None:
        self._parts = parts
        self._parts_json = json.dumps(parts)
        self._seed = blake2b(hashed(path, *parts.values()).encode(), digest_size=12)

    def of_call(self, given: Record, content: str | list[UserContent] | None = None) -> CacheKey:
        """The key of one call: where it is declared, what its node is, its input, and what its renderer made of that.

        Without a record of all of that it has no identity.
        """
        identity = given.identity
        rendered = "" if content is None else json_of(_user_prompt(), content, fallback=without_json)
        if identity is None or NO_JSON in rendered:
            return CacheKey(given)
        digest = self._seed.copy()
        digest.update(identity)
        if rendered:
            digest.update(rendered.encode())
        return CacheKey(given, digest.hexdigest(), self._parts, self._parts_json)


@cache
def _user_prompt() -> TypeAdapter[Any]:
    return TypeAdapter(str | list[UserContent], config=ConfigDict(ser_json_bytes="base64"))


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
    """The recorded calls of one run; each is handed out once.

    A run that is *resumed* finds its calls where they were made. A stage may also take an equal call of another place,
    as soon as that place was called with something else; a step may not, since its key has told others what it did.
    Another run that replays them goes by identity: its calls may stand anywhere.

    Args:
        calls: The rows of the run's calls.
        ops: The rows of their requests and tool calls.
        resumes: Whether the same run goes on.
        used: Key and identity of the calls that are used already.
    """

    def __init__(
        self,
        calls: Iterable[CallRow] = (),
        ops: Iterable[OpRow] = (),
        *,
        resumes: bool = False,
        used: Container[tuple[str, str]] = (),
    ) -> None:
        self._resumes = resumes
        self._used = used
        self.at: dict[str, CallRow] = {}
        """Key -> the leaf call that was recorded with it."""
        self.ran: dict[str, tuple[float, float | None]] = {}
        """Key of a graph, or of a call that succeeded -> when it was called, and how long it took if it succeeded."""
        self.records: dict[tuple[str, str], Recorded] = {}
        """Key and identity -> what may still be handed out."""
        self._free: dict[str, list[tuple[int, list[tuple[int, int, str]], str]]] = {}
        """Identity -> a heap of the places whose record others may use, first those called with something else."""
        self._rows = list(calls)
        for row in self._rows:
            if row.kind == "graph" or row.status == "succeeded":
                self.ran[row.key] = (row.started, row.duration if row.status == "succeeded" else None)
            if row.kind == "graph":
                continue
            self.at[row.key] = row
            # A failed step has no output; a failed stage has the recorded requests of its agent.
            going_on = row.kind == "stage" and row.status != "failed"
            place = (row.key, row.identity)
            if row.identity and (row.status == "succeeded" or going_on) and (resumes or place not in used):
                self.records[place] = Recorded(row)
                if row.status == "succeeded" and not resumes:
                    self._offer(1, row)
        for op in (one for one in ops if one.identity):
            self.records.setdefault((op.key, op.identity), Recorded(_begun(op))).ops[op.op] = op

    def _offer(self, rank: int, row: CallRow) -> None:
        """Let calls of other places have a row's record."""
        heappush(self._free.setdefault(row.identity, []), (rank, key_order(row.key), row.key))

    def claim(self, key: str, identity: str, kind: Kind = "stage") -> Recorded | None:
        """The recorded call that this one repeats, if there is one; what did not finish belongs to its own place."""
        if self.holds(key, identity):
            self._offer(0, self.at[key])
        found = self.records.pop((key, identity), None)
        if found is not None or (self._resumes and kind == "step"):
            return found
        free = self._free.get(identity, [])
        while free and found is None:
            place = heappop(free)[2]
            if (place, identity) not in self._used:
                found = self.records.pop((place, identity), None)
        return found

    @cached_property
    def inside(self) -> Mapping[str, list[CallRow]]:
        """Key -> the calls that were made directly in that call."""
        found: dict[str, list[CallRow]] = {}
        for row in self._rows:
            if row.parent is not None:
                found.setdefault(row.parent, []).append(row)
        return found

    @cached_property
    def fan_outs(self) -> Mapping[str, float]:
        """The keys of branches up to their index (`build[`) -> when the first of them began."""
        found: dict[str, float] = {}
        for row in self._rows:
            for place, letter in enumerate(row.key):
                if letter == "[":
                    prefix = row.key[: place + 1]
                    found[prefix] = min(row.started, found.get(prefix, row.started))
        return found

    def holds(self, key: str, identity: str) -> bool:
        """Whether a finished call with another identity was recorded here, which only a finished call may replace."""
        row = self.at.get(key)
        return row is not None and row.status == "succeeded" and row.identity != identity


def changes(before: CallRow, now: CacheKey) -> str:
    """How a call differs from the one recorded before, in words; empty where it is the same, or has no identity."""
    if now.identity in {"", before.identity}:
        return ""
    parts = json.loads(before.parts)
    names = ["the input"] if (before.input, before.input_whole) != now.record else []
    names += [name for name in now.parts if parts.get(name) != now.parts[name]]
    return " and ".join(names) or ("its content" if before.identity else "")


def used_of(run_id: str, calls: Iterable[CallRow]) -> set[tuple[str, str]]:
    """Key and identity of the calls of a run that other calls have used."""
    used: set[tuple[str, str]] = set()
    for row in calls:
        source: list[str] = json.loads(row.source or '["", ""]')
        if source[0] == run_id and source != [row.run_id, row.key]:
            used.add((source[1], row.identity))
    return used


def _begun(op: OpRow) -> CallRow:
    """A call of which only requests and tool calls were recorded."""
    place: dict[str, Any] = {"run_id": op.run_id, "key": op.key, "identity": op.identity}
    return CallRow(path="", kind="stage", parent=None, position=0, status="running", input="", started=0.0, **place)
