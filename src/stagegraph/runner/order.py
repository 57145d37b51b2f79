"""What a runner is asked to run: by a caller, or by a journal that knows how far a run came."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from stagegraph.agent.deferred import unanswered_in
from stagegraph.data.prompt import Origin
from stagegraph.data.prompts import Prompts
from stagegraph.nodes.node import Tree
from stagegraph.record.deferred import by_call, check
from stagegraph.record.reading import stored_run
from stagegraph.record.rows import Journal, RunRow
from stagegraph.record.run import ReplayError, Run
from stagegraph.schema.errors import JournalError
from stagegraph.schema.names import closest
from stagegraph.schema.schema import as_json

from .options import Labels, ResumeOptions, RunOptions
from .page import RunPage, labels_json

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.nodes.node import Node

    from .execution import Terms

__all__ = ["Order", "order_to_resume"]

_BRANCH_OR_REPEAT = re.compile(r"\[[^\]]*\]|#\d+")
"""What a call's key has beyond its path."""


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

    def new_page(self, journal: Journal, tree: Tree, terms: Terms, labels: Labels) -> RunPage:
        """The page of a run that begins."""
        replay = self.options.get("replay")
        prompts = self.prompts
        row = RunRow(
            run_id=terms.run_id,
            graph=tree.root.__node__.name,
            status="running",
            started=time.time(),
            input=as_json(tree.root.__node__.input_type, self.raw),
            prompts_digest=terms.prompts.digest if terms.prompts.settled else "",
            prompts=prompts.to_json() if prompts is not None and prompts.settled else None,
            model=self.model if isinstance(self.model, str) else None,
            labels=labels_json(labels.metadata, labels.tags, labels.session_id, labels.user_id, self._said()),
        )
        return RunPage(
            journal,
            row,
            claims=self.options.get("run_id") is not None,
            replays=replay.id if isinstance(replay, Run) else replay,
            overrides=self.options.get("override") or {},
        )

    def check_override(self, tree: Tree) -> None:
        """Refuse an output that is given for a call that no run of the graph can make, before anything is paid for.

        Raises:
            ReplayError: it names what is near.
        """
        for key in self.options.get("override") or {}:
            path = _BRANCH_OR_REPEAT.sub("", key)
            node = tree.nodes.get(path)
            if node is None or node.__node__.kind == "graph":
                leaves = [path for path, node in tree.nodes.items() if node.__node__.kind != "graph"]
                msg = f"`override` names `{key}`, and {tree.root.__node__.name} has no such stage or step"
                raise ReplayError(msg + closest(path, leaves))

    def _said(self) -> dict[str, object]:
        """What else was said about this run alone, and counts when it goes on."""
        models = {path: model for path, model in (self.options.get("models") or {}).items() if isinstance(model, str)}
        override: object = to_jsonable_python(dict(self.options.get("override") or {}), fallback=str)
        return {name: said for name, said in (("models", models), ("override", override)) if said}


async def order_to_resume(
    journal: Journal, run_id: str, known: Mapping[str, Node[Any, Any]], options: ResumeOptions
) -> Order | Run[Any, Any]:
    """What is left of a recorded run; a finished one is given back.

    Raises:
        JournalError: there is no such run.
        ReplayError: nobody knows its graph, an answer fits no question, or what it needs was redacted.
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
    labels, strict = json.loads(row.labels), options.get("strict", False)
    _check_same(recorded, node, strict=strict)
    given, answers = options.get("prompts"), options.get("answers") or {}
    _check_whole(row, given)
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
            "models": {**labels.get("models", {}), **(options.get("models") or {})},
        },
        page=RunPage(
            journal,
            row,
            claims=True,
            replays=run_id,
            strict=strict,
            overrides=labels.get("override", {}),
            take_over=options.get("take_over", False),
        ),
        answers=answered,
    )


def _check_same(recorded: Run[Any, Any], node: Node[Any, Any], *, strict: bool) -> None:
    """Make sure that a graph, which may have changed and have another name, is the one that was run.

    Raises:
        ReplayError: nothing that was recorded is part of it; in strict mode, anything that was.
    """
    known = node.__node__.tree.nodes
    leaves = {call.path for call in recorded.root.walk() if call.kind != "graph"}
    gone = sorted(leaves - known.keys())
    if gone and (strict or len(gone) == len(leaves)):
        msg = f"run {recorded.id!r} of {recorded.graph} called `{gone[0]}`, which is not part of {node.__node__.name}"
        raise ReplayError(msg)


def _check_whole(row: RunRow, prompts: Prompts | None) -> None:
    """Refuse to go on with an input or with prompts that are not what they were."""
    gone = json.loads(row.labels).get("redacted", [])
    if "input" in gone:
        msg = (
            f"`redact=` changed the input of run {row.run_id!r} when it was recorded, so the run cannot go on with it: "
            f"run it anew with the whole input; `replay={row.run_id!r}` gives it the answers that were recorded"
        )
        raise ReplayError(msg)
    if "prompts" in gone and prompts is None:
        msg = (
            f"`redact=` changed the prompts of run {row.run_id!r} when they were recorded: "
            "say with which it is to go on, as in `resume(..., prompts=...)`"
        )
        raise ReplayError(msg)


def _recorded_prompts(row: RunRow, labels: dict[str, Any]) -> Prompts | None:
    """What the run began with, if it was chosen for it alone or came from a server."""
    if row.prompts is None:
        return None
    return Prompts.from_json(row.prompts, {path: Origin(*told) for path, told in labels.get("origins", {}).items()})
