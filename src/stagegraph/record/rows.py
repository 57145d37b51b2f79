"""What a journal stores, and the protocol that every journal keeps. Values are JSON text, never pickles."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from stagegraph.data.call import Kind, Status

__all__ = ["CallRow", "CancelRow", "FeedbackRow", "Journal", "OpRow", "Recorded", "Row", "RunFilter", "RunRow"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run. It is written when the run begins and again when it ends."""

    run_id: str
    graph: str
    status: Status
    started: float
    """Seconds since 1970, UTC."""
    duration: float = 0.0
    input: str
    """JSON."""
    output: str | None = None
    error_type: str | None = None
    error: str | None = None
    prompts_digest: str = ""
    prompts: str | None = None
    """JSON of the prompts that this run alone was given, for resuming it with the same."""
    model: str | None = None
    """The name of the model that this run alone was given."""
    labels: str = "{}"
    """JSON: metadata, tags, session_id, user_id."""
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: str | None = None
    owner: str | None = None
    """The process that runs it now; `None` when nobody does."""


@dataclass(slots=True, kw_only=True)
class CallRow:
    """One call of a run. It is written when the call begins and again when it ends.

    Never changed once it is made; not frozen, because a frozen one takes three times as long to make.
    """

    run_id: str
    key: str
    path: str
    kind: Kind
    parent: str | None
    """The key of the call it was made in; `None` for the root."""
    position: int
    """Its place among the run's calls, in the order in which they began."""
    status: Status
    identity: str = ""
    """What determines its output, as a hash; empty when that cannot be written down."""
    parts: str = "{}"
    """JSON: the hash of each part of the identity, to say what changed."""
    input: str
    output: str | None = None
    error_type: str | None = None
    error: str | None = None
    usage: str = "{}"
    cost: str | None = None
    """Dollars; `None` when a request was made whose price is not known."""
    started: float
    duration: float = 0.0
    attempts: int = 1
    messages: str = "[]"
    prompt: str | None = None
    """JSON of the prompt that was in force."""
    replayed: bool = False
    pending: str | None = None
    """JSON: what a suspended agent asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """One model request or tool call inside a stage call; it belongs to the call's place and content together."""

    run_id: str
    key: str
    identity: str
    op: str
    """What it is, unique within the call: a `request:`, a `tool:` call, a `question:`, an `answer:` to one."""
    digest: str
    """What it was asked, as a hash."""
    payload: str


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRow:
    """One score for a run, or for one call of it."""

    id: str
    run_id: str
    key: str | None
    name: str
    value: str
    """JSON: a number, a boolean or a text."""
    comment: str | None
    time: float


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRow:
    """A wish that a run ends, for the process that holds it."""

    run_id: str
    segment: int
    """How often the run had been resumed: a wish does not outlive what it was about."""


@dataclass(slots=True)
class Recorded:
    """One recorded call with what its agent had already been told."""

    row: CallRow
    ops: dict[str, OpRow] = field(default_factory=dict[str, OpRow])

    @property
    def finished(self) -> bool:
        return self.row.status == "succeeded"


Row = RunRow | CallRow | OpRow | FeedbackRow | CancelRow


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs to list; every field that is set must fit."""

    graph: str | None = None
    status: Status | None = None
    since: float | None = None
    """Seconds since 1970."""
    until: float | None = None
    feedback: str | None = None
    """The name of a score that the run must have."""
    min_score: float | None = None
    max_score: float | None = None
    limit: int = 50


class Journal(Protocol):
    """Where runs are stored. One journal serves many runs of a process, and several processes may share one.

    Every method may raise `JournalError`.
    """

    async def put(self, *rows: Row) -> None:
        """Store rows; when it returns they survive the process."""
        ...

    def put_soon(self, *rows: Row) -> None:
        """Store rows in order with the others, at the latest with the next `put`."""
        ...

    async def claim(self, row: RunRow, *, fresh: bool, take_over: bool = False) -> None:
        """Begin (*fresh*) or take up a run for `row.owner`; at most one living process may hold it.

        Of a process on another host nobody can tell, so it counts as living, unless the caller knows that it is gone
        (*take_over*).
        """
        ...

    async def run(self, run_id: str) -> RunRow | None: ...

    async def runs(self, wanted: RunFilter) -> list[RunRow]:
        """The newest first."""
        ...

    async def calls(self, run_id: str) -> list[CallRow]:
        """In the order in which they began."""
        ...

    async def ops(self, run_id: str) -> list[OpRow]: ...

    async def feedback(self, run_id: str) -> list[FeedbackRow]:
        """The oldest first."""
        ...

    async def cancels(self) -> list[CancelRow]:
        """What is wished of runs that are going on."""
        ...

    async def prune(self, *, older_than: float | None = None, keep: int | None = None) -> int:
        """Forget runs that ended more than *older_than* seconds ago, and all ended ones but the newest *keep*.

        A run that a living process holds stays; of a process on another host nobody can tell, so it counts as living.
        A run that waits to go on (suspended, or interrupted by the end of its process) is neither counted nor forgotten
        by *keep*; by *older_than* it is, when it was suspended, or began, that long ago.
        """
        ...

    async def aclose(self) -> None: ...
