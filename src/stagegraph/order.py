"""What a runner is asked to run: by a caller, or by a journal that knows how far a run came."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from .asking import by_call, check
from .errors import JournalError, ReplayError
from .journal._rows import Journal, RunRow
from .options import Labels, ResumeOptions, RunOptions
from .page import RunPage, labels_json
from .prompt import Origin
from .prompts import Prompts
from .question import unanswered_in
from .recorder import as_json
from .run import Run
from .stored import stored_run

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from .execution import Terms
    from .node import Node
    from .structure import Structure

__all__ = ["Order", "order_to_resume"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """One run that is to be made."""

    node: Node[Any, Any]
    raw: object
    """The input: a value, or data that validates to one."""
    model: Model | str | None = None
    deps: object = None
    prompts: Prompts | None = None
    options: RunOptions = field(default_factory=RunOptions)
    deltas: bool = False
    page: RunPage | None = None
    """Where a recorded run goes on."""
    answers: Mapping[str, Mapping[str, object]] = field(default_factory=dict[str, Mapping[str, object]])
    """Call key -> tool call id -> answer."""

    @property
    def labels(self) -> Labels:
        """What the caller said for those who look at the run later."""
        options = self.options
        return Labels(
            session_id=options.get("session_id"),
            user_id=options.get("user_id"),
            tags=tuple(options.get("tags", ())),
            metadata=MappingProxyType(dict(options.get("metadata") or {})),
        )

    def new_page(self, journal: Journal, structure: Structure, terms: Terms, labels: Labels) -> RunPage:
        """The page of a run that begins."""
        replay = self.options.get("replay")
        prompts = self.prompts
        row = RunRow(
            run_id=terms.run_id,
            graph=structure.root.label,
            status="running",
            started=time.time(),
            input=as_json(structure.root.takes, self.raw),
            prompts_digest=terms.prompts.digest if terms.prompts.settled else "",
            prompts=prompts.to_json() if prompts is not None and prompts.settled else None,
            model=self.model if isinstance(self.model, str) else None,
            labels=labels_json(labels.metadata, labels.tags, labels.session_id, labels.user_id),
        )
        return RunPage(
            journal,
            row,
            claims=self.options.get("run_id") is not None,
            replays=replay.id if isinstance(replay, Run) else replay,
            overrides=self.options.get("override") or {},
        )


async def order_to_resume(
    journal: Journal, run_id: str, known: Mapping[str, Node[Any, Any]], options: ResumeOptions
) -> Order | Run[Any, Any]:
    """What is left of a recorded run; a finished one is given back.

    Raises:
        JournalError: there is no such run.
        ReplayError: nobody knows its graph, or an answer fits no question.
    """
    row = await journal.run(run_id)
    if row is None:
        msg = f"there is no run {run_id!r} in this journal"
        raise JournalError(msg)
    node = options.get("graph") or known.get(row.graph)
    if node is None:
        msg = f"run {run_id!r} is a run of {row.graph}, which this runner does not know: say `graph={row.graph}()`"
        raise ReplayError(msg)
    recorded = await stored_run(journal, row, node)
    if row.status == "succeeded":
        return recorded
    labels = json.loads(row.labels)
    given, answers = options.get("prompts"), options.get("answers") or {}
    waiting = await unanswered_in(journal, run_id, recorded.pending) if answers else ()
    answered = by_call(waiting, answers)
    check(waiting, answered)
    return Order(
        node=node,
        raw=json.loads(row.input),
        model=options.get("model") or row.model,
        deps=options.get("deps"),
        prompts=given if given is not None else _recorded_prompts(row, labels),
        options={
            "run_id": run_id,
            "limits": options.get("limits"),
            "session_id": labels["session_id"],
            "user_id": labels["user_id"],
            "tags": tuple(labels["tags"]),
            "metadata": labels["metadata"],
        },
        page=RunPage(journal, row, claims=True, replays=run_id, strict=options.get("strict", False)),
        answers=answered,
    )


def _recorded_prompts(row: RunRow, labels: dict[str, Any]) -> Prompts | None:
    """What the run began with, if it was chosen for it alone or came from a server."""
    if row.prompts is None:
        return None
    return Prompts.from_json(row.prompts, {path: Origin(*told) for path, told in labels.get("origins", {}).items()})
