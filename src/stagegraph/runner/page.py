"""A run's page in a journal: opened when it begins or goes on, closed when it ends."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic_core import PydanticSerializationError, to_jsonable_python

from stagegraph.journal.owner import this_process
from stagegraph.record.rows import Journal, RunRow
from stagegraph.schema.errors import DeclarationError, JournalError
from stagegraph.schema.schema import as_json

from .recorder import Recall, Recorder
from .recovery import counted, segment_of
from .replay import Bag
from .state import total

if TYPE_CHECKING:
    from stagegraph.data.prompts import Prompts
    from stagegraph.record.run import Run

    from .state import Clock, Entry

__all__ = ["RunPage", "labels_json"]


_MOST = 2**63 - 1
"""The largest number that a journal file can hold; a provider that reports more tokens is wrong."""


@dataclass(slots=True)
class RunPage:
    """The row of one run, and what it may recall."""

    journal: Journal
    row: RunRow
    claims: bool
    """Whether somebody else may hold the run: its id was chosen, or it was recorded before."""
    replays: str | None = None
    """The run whose outputs may be used: another one, or this one when it goes on."""
    strict: bool = False
    take_over: bool = False
    """Whether the process on another host that held the run is known to be gone."""
    overrides: Mapping[str, object] = field(default_factory=dict[str, object])

    @property
    def segment(self) -> int:
        """How often the run was resumed."""
        return segment_of(self.row)

    def deploy(self, prompts: Prompts) -> None:
        """Keep the texts that are in force for this run, so that it goes on with the same when it is resumed."""
        labels = json.loads(self.row.labels)
        labels["origins"] = {path: [origin.name, origin.version] for path, origin in prompts.origins.items()}
        self.row = replace(
            self.row, prompts=prompts.to_json(), prompts_digest=prompts.digest, labels=json.dumps(labels)
        )

    async def open(self, clock: Clock) -> Recorder:
        """Take the run for this process and begin to write.

        Raises:
            JournalError: the id is taken, or another living process holds the run.
        """
        continues = self.replays == self.row.run_id
        row = counted(self.row) if continues else self.row
        self.row = replace(row, status="running", owner=this_process(), error=None, error_type=None)
        if self.claims:
            await self.journal.claim(self.row, fresh=not continues, take_over=self.take_over)
        else:
            self.journal.put_soon(self.row)
        bag = Bag()
        if self.replays is not None:
            if not continues and await self.journal.run(self.replays) is None:
                msg = f"there is no run {self.replays!r} in this journal to replay"
                raise JournalError(msg)
            calls = await self.journal.calls(self.replays)
            bag = Bag(calls, await self.journal.ops(self.replays) if continues else ())
        recall = Recall(bag=bag, continues=continues, strict=self.strict, overrides=self.overrides)
        return Recorder(self.journal, self.row.run_id, clock, recall)

    async def close(self, run: Run[Any, Any], entries: Iterable[Entry], *, left: bool = False) -> None:
        """Write how the run ended and let go of it; one that is *left* goes on as soon as somebody takes it up."""
        usage, cost = total(entries)
        await self.journal.put(
            replace(
                self.row,
                status="running" if left else run.status,
                duration=time.time() - self.row.started,
                output=as_json(run.tree.root.__node__.output_type, run.output) if run.status == "succeeded" else None,
                error_type=run.error.type if run.error is not None else None,
                error=run.error.message if run.error is not None else None,
                requests=min(usage.requests, _MOST),
                input_tokens=min(usage.input_tokens, _MOST),
                output_tokens=min(usage.output_tokens, _MOST),
                cost=None if cost is None else str(cost),
                owner=None,
            )
        )


def labels_json(
    metadata: Mapping[str, object],
    tags: tuple[str, ...],
    session: str | None,
    user: str | None,
    more: Mapping[str, object] = MappingProxyType({}),
) -> str:
    """What the caller said about a run; objects that are no JSON are written as their text."""
    labels = {"metadata": dict(metadata), "tags": list(tags), "session_id": session, "user_id": user, **more}
    try:
        return json.dumps(labels, ensure_ascii=False, default=str)
    except (TypeError, ValueError):  # a key that is no text, or something that contains itself
        pass
    try:
        return json.dumps(to_jsonable_python(labels, fallback=str), ensure_ascii=False)
    except (PydanticSerializationError, TypeError, ValueError) as error:
        msg = f"the metadata of a run cannot be recorded: {error}; give a mapping of names to JSON values"
        raise DeclarationError(msg) from error
