"""Between a run and its journal: what is written of each call, and what is recalled instead of being computed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError
from pydantic_ai.messages import ModelMessagesTypeAdapter
from pydantic_core import PydanticSerializationError

from stagegraph.agent.durable import OpMemory, json_of
from stagegraph.data.usage import USAGE, ModelUse
from stagegraph.record.rows import CallRow, Journal, Recorded
from stagegraph.record.run import ReplayError
from stagegraph.schema.names import closest
from stagegraph.schema.schema import as_json, recorded

from .identity import Fixed
from .replay import Bag
from .state import Clock, Entry, Memo

if TYPE_CHECKING:
    from stagegraph.data.prompts import Prompt

__all__ = ["MISSING", "Recall", "Recorder"]

MISSING: Any = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class Recall:
    """Where a run may find outputs that it need not compute."""

    bag: Bag = field(default_factory=Bag)
    continues: bool = False
    """Whether this goes on with the recorded run itself; another run that replays it has spent nothing."""
    strict: bool = False
    overrides: Mapping[str, object] = field(default_factory=dict[str, object])
    """Key -> output that the call gets whatever it would compute."""


class Recorder:
    """Writes one run and recalls what was recorded before."""

    def __init__(self, journal: Journal, run_id: str, clock: Clock, recall: Recall) -> None:
        self.journal = journal
        self.recall_from = recall
        self.rerun: dict[str, str] = {}
        """Key -> what changed, of the calls that were recorded and had to run again."""
        self.overridden: set[str] = set()
        self._run_id = run_id
        self._clock = clock
        self._prompts: dict[str, str] = {}
        """Path -> the JSON of the prompt that is in force."""

    def begin(self, entry: Entry) -> None:
        """A graph was called: its row lets others see a run that is still going on."""
        self.journal.put_soon(self._row(entry))

    def recalled(self, entry: Entry, fixed: Fixed, prompt: Prompt | None) -> tuple[Any, Recorded | None]:
        """The output that a leaf call need not compute, or `MISSING`; and what its agent had already been told.

        Raises:
            ReplayError: in strict mode, when the call differs from the one that was recorded at its place.
        """
        recall, key = self.recall_from, entry.key
        if key in recall.overrides:
            entry.replayed = True
            self.overridden.add(key)
            return entry.node.__node__.output_type.validate(recall.overrides[key]), None
        try:
            given = entry.node.__node__.input_type.to_json(entry.input)
        except (PydanticSerializationError, ValueError):
            return MISSING, None  # what cannot be written down cannot be recognised either
        identity = fixed.identity(given)
        entry.memo = Memo(identity, given.decode(), fixed)
        if prompt is not None and entry.path not in self._prompts:
            self._prompts[entry.path] = json.dumps(prompt.data(), ensure_ascii=False)
        found = recall.bag.claim(key, identity) if recall.bag else None
        if found is None:
            self._note_change(key, entry.memo)
        elif found.finished:
            output = self._output(entry, found)
            if output is not MISSING:
                return output, None
        else:
            self._note_loss(key)
        return MISSING, found

    def _output(self, entry: Entry, found: Recorded) -> Any:
        row = found.row
        try:
            output = entry.node.__node__.output_type.recall(json.loads(row.output or "null"))
        except (ValidationError, ValueError):
            self.rerun[entry.key] = "the output cannot be read back"
            return MISSING
        entry.replayed = True
        if entry.node.__node__.kind == "stage":
            messages = tuple(ModelMessagesTypeAdapter.validate_json(row.messages))
            entry.use = ModelUse(attempts=row.attempts, messages=messages)
            if self.recall_from.continues:
                entry.use.usage = USAGE.validate_json(row.usage)
                entry.use.unpriced = row.cost is None
        return output

    def _note_change(self, key: str, memo: Memo) -> None:
        recall = self.recall_from
        changed = recall.bag.changed(key, memo.input, memo.fixed.parts)
        if changed is None:
            return
        if changed == "nothing":
            self._note_loss(key)
            return
        self.rerun[key] = changed
        if recall.strict:
            msg = (
                f"call `{key}` differs from its record: {changed} changed; run it without `strict` to have it run again"
            )
            raise ReplayError(msg)

    def _note_loss(self, key: str) -> None:
        """A call that succeeded has no identity when what its record says is not all that it gave."""
        before = self.recall_from.bag.at(key)
        if before is not None and before.status == "succeeded" and not before.identity:
            self.rerun[key] = "the output cannot be written down whole"

    def unused_override(self) -> ReplayError | None:
        """A given output that no call asked for: most likely its key is mistyped."""
        unused = sorted(set(self.recall_from.overrides) - self.overridden)
        if not unused:
            return None
        return ReplayError(
            f"`override` names `{unused[0]}`, and no stage or step ran there{closest(unused[0], list(self.overridden))}"
        )

    def memory(self, entry: Entry, found: Recorded | None) -> OpMemory:
        """Where the requests and tool calls of one stage call are kept; its row is written before the first of them."""
        if (found is None or found.row.status != "suspended") and self._may_write(entry):
            self.journal.put_soon(self._row(entry))  # but what was asked must not be lost before it is answered
        ops = {} if found is None else found.ops
        identity = entry.memo.identity if entry.memo is not None else ""
        return OpMemory(self.journal, self._run_id, entry, identity, ops)

    async def finished(self, entry: Entry) -> None:
        """A leaf call has its output: it counts when the journal has it."""
        row = self._row(entry)
        entry.memo = None
        if entry.replayed:
            self.journal.put_soon(row)
        else:
            await self.journal.put(row)

    def ended(self, entry: Entry) -> None:
        """A graph has ended, or a leaf call without an output."""
        if entry.node.__node__.kind == "graph" or (entry.status != "succeeded" and self._may_write(entry)):
            self.journal.put_soon(self._row(entry))
        entry.memo = None

    def _may_write(self, entry: Entry) -> bool:
        """An unfinished call does not take the place of a finished one that was recorded there before."""
        identity = entry.memo.identity if entry.memo is not None else ""
        return not self.recall_from.continues or not self.recall_from.bag.holds(entry.key, identity)

    def _row(self, entry: Entry) -> CallRow:
        node, error, memo = entry.node, entry.error, entry.memo
        output, whole = None, True
        if entry.status == "succeeded":
            output, whole = recorded(
                node.__node__.output_type, entry.output, checked=memo is not None and not entry.replayed
            )
        row = CallRow(
            run_id=self._run_id,
            key=entry.key,
            path=entry.path,
            kind=node.__node__.kind,
            parent=entry.parent.key if entry.parent is not None else None,
            position=entry.position,
            status=entry.status,
            identity=memo.identity if memo is not None and whole else "",  # nobody may take it for what it was
            parts=memo.fixed.json if memo is not None else "{}",
            input=memo.input if memo is not None else as_json(node.__node__.input_type, entry.input),
            output=output,
            error_type=error.type if error is not None else None,
            error=error.message if error is not None else None,
            started=self._clock.offset + entry.began,
            duration=entry.duration,
            replayed=entry.replayed,
            cost="0",
        )
        if node.__node__.kind == "stage":
            use = entry.use
            row.usage = USAGE.dump_json(use.usage, exclude_defaults=True).decode()
            row.cost = None if use.cost is None else str(use.cost)
            row.attempts = use.attempts
            row.messages = json_of(ModelMessagesTypeAdapter, list(use.messages))
            row.prompt = self._prompts.get(entry.path)
            row.pending = use.pending
        return row
