"""What a journal stores, and the protocol that every journal keeps. Values are JSON text, never pickles.

The rows are the one list of a run's and a call's fields: `Run`, `Call`, the JSON of a run, answers of a service and
pages are made from them.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from stagegraph.data.call import Kind, ShownStatus, Status
from stagegraph.data.score import Feedback, Scored
from stagegraph.schema.errors import JournalError
from stagegraph.schema.schema import plain

from .columns import (
    TABLE,
    Dollars,
    Json,
    LabelsJson,
    MessagesJson,
    PartsJson,
    PendingJson,
    ScoreJson,
    SourceJson,
    UsageJson,
)
from .labels import Labels, Seconds

GONE = "gone"
"""The owner of a run that is read from a journal, where that owner's process ended without releasing the run."""


class DamagedError(JournalError):
    """A record of a run is not one that a journal writes; other runs can still be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run. It is written when the run begins and again when it ends."""

    run_id: str
    graph: str
    status: Status
    started: Seconds
    """Seconds since 1970, UTC."""
    duration: Seconds = 0.0
    input: Json
    output: Json | None = None
    input_whole: str | None = None
    """`CallRow.input_whole`."""
    output_whole: str | None = None
    error_type: str | None = None
    error: str | None = None
    prompts_digest: str = ""
    prompts: Json | None = None
    """The prompts that this run alone was given, for resuming it with the same ones."""
    model: str | None = None
    """The name of the model that this run alone was given."""
    labels: LabelsJson = "{}"
    """`Labels`."""
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: Dollars | None = None
    owner: str | None = None
    """Who runs it now, if anybody (`Journal.owner`); `GONE` where its process has died."""

    def read_labels(self) -> Labels:
        """The labels.

        Raises:
            ValueError: the column does not hold labels.
        """
        return Labels.from_json(self.labels)

    @property
    def interrupted(self) -> bool:
        """Whether it is recorded as running, but its process has ended."""
        return self.status == "running" and self.owner in {None, GONE}

    @property
    def shown_status(self) -> ShownStatus:
        return "interrupted" if self.interrupted else self.status

    @property
    def segment(self) -> int:
        """How often the run was resumed: 0 until the first time."""
        return len(self.read_labels().resumed)

    def segments(self) -> list[tuple[float, float]]:
        """Beginning and end of each segment that has ended; between them the run waited, or nobody ran it."""
        labels = self.read_labels()
        return list(zip((self.started, *labels.resumed), labels.ended, strict=False))


@dataclass(slots=True, kw_only=True)
class CallRow:
    """One call of a run. It is written when the call begins and again when it ends.

    A row is not changed after it was written; it is not frozen, since making a frozen one takes three times as long.
    """

    run_id: str
    key: str
    path: str
    kind: Kind
    parent: str | None
    """The key of the call that made it; `None` for the root."""
    position: int
    """Its place among the run's calls, in the order in which they began."""
    status: Status
    identity: str = ""
    """A hash of what determines its output; empty when that has no JSON."""
    parts: PartsJson = "{}"
    """The hash of each part of the identity, to say what changed."""
    input: Json
    output: Json | None = None
    input_whole: str | None = None
    """The input in a form that says its types, where plain JSON does not determine it (`schema.whole`); empty where
    there is no form for it, as for a secret."""
    output_whole: str | None = None
    error_type: str | None = None
    error: str | None = None
    origin: str | None = None
    """The key of the call in which the exception was first seen."""
    transient: bool = False
    """Whether a provider or the network caused the failure, so that trying again may help."""
    usage: UsageJson = "{}"
    cost: Dollars | None = None
    """US dollars; `None` when the price of a request is not known."""
    started: Seconds
    duration: Seconds = 0.0
    attempts: int = 1
    messages: MessagesJson = "[]"
    prompt: Json | None = None
    """The prompt of the stage in this run."""
    replayed: bool = False
    source: SourceJson | None = None
    """Run id and key of the recorded call that gave its output, if it was replayed."""
    pending: PendingJson | None = None
    """The open questions of a suspended agent: a list of `Pending`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpRow:
    """One model request or tool call inside a stage call; it belongs to the call's key and identity together."""

    run_id: str
    key: str
    identity: str
    op: str
    """Its name, unique within the call: `request:...`, `tool:...`, `question:...` or `answer:...`."""
    digest: str
    """A hash of what it was given."""
    payload: Json


@dataclass(frozen=True, slots=True, kw_only=True)
class FeedbackRow:
    """One score for a run, or for one call of it."""

    id: str
    run_id: str
    key: str | None
    name: str
    value: ScoreJson
    """A number, a boolean or a text."""
    comment: str | None
    time: Seconds


def feedback_of(row: FeedbackRow) -> Feedback:
    """One recorded score."""
    moment = datetime.fromtimestamp(row.time, UTC)
    return Feedback(name=row.name, value=json.loads(row.value), key=row.key, comment=row.comment, time=moment)


@dataclass(frozen=True, slots=True, kw_only=True)
class CancelRow:
    """A request to cancel a run, for the process that runs it."""

    run_id: str
    segment: int
    """How often the run had been resumed: the request ends with this segment."""


@dataclass(slots=True)
class Recorded:
    """One recorded call with the recorded requests and tool calls of its agent."""

    row: CallRow
    ops: dict[str, OpRow] = field(default_factory=dict[str, OpRow])

    @property
    def finished(self) -> bool:
        return self.row.status == "succeeded"


Row = RunRow | CallRow | OpRow | FeedbackRow | CancelRow
R = TypeVar("R", RunRow, CallRow, OpRow, FeedbackRow, CancelRow)


def check_row(row_type: type[R], values: Mapping[str, Any]) -> R:
    """A row from the columns of a table: disks fail, and other programs write into files.

    Raises:
        DamagedError: no journal writes such a row; it names the record and its column.
    """
    try:
        return _reader(row_type).validate_python(values, context=TABLE)
    except ValidationError as error:
        name = error.errors(include_url=False)[0]["loc"][0]
        call = f"call {values['key']!r} of " if values.get("key") else ""
        value = values.get(str(name))
        msg = f"the record of {call}run {values.get('run_id')!r} is damaged: its `{name}` is {value!r:.60}"
        raise DamagedError(msg) from error


@cache
def _reader(row_type: type[R]) -> TypeAdapter[R]:
    return TypeAdapter(row_type)


CORRECTION = "correction"
"""The name of a score whose value is the expected output."""
EXPERIMENT = "experiment"
"""The key in a run's metadata with the name of the evaluation that it was made for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs to list; every field that is set must match."""

    graph: str | None = None
    status: ShownStatus | None = None
    """`interrupted` are those whose process has ended, `running` the others that have not ended."""
    since: float | None = None
    """Seconds since 1970."""
    until: float | None = None
    feedback: str | None = None
    """The name of a score that the run must have."""
    min_score: float | None = None
    """The least number of a score, of that name if one is given; a correction counts only by its name."""
    max_score: float | None = None
    user: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()
    """A run must have all of these."""
    environment: str | None = None
    """Where the run was made; only a server knows it."""
    experiments: bool = True
    """Whether runs that were made for an evaluation are listed too."""
    before: tuple[float, str] | None = None
    """Only runs that come after the one that began then, with that id: the newest come first, the highest id first."""
    limit: int | None = 50

    def describes(self, row: RunRow) -> bool:
        """Whether a run matches, as far as its row tells."""
        labels = self.user or self.session or self.tags or not self.experiments
        return (
            self.graph in {None, row.graph}
            and self.status in {None, row.shown_status}
            and (self.since is None or row.started >= self.since)
            and (self.until is None or row.started <= self.until)
            and (self.before is None or (row.started, row.run_id) < self.before)
            and (not labels or self._labelled(row.read_labels()))
        )

    def _labelled(self, labels: Labels) -> bool:
        return (
            self.user in {None, labels.user_id}
            and self.session in {None, labels.session_id}
            and set(self.tags) <= set(labels.tags)
            and (self.experiments or not labels.metadata.get(EXPERIMENT))
        )

    def has_score(self, feedback: Iterable[Feedback]) -> bool:
        """Whether one of a run's scores has the name and a number within the limits."""
        least, most = self.min_score, self.max_score
        if self.feedback is None and least is None and most is None:
            return True
        return any(
            (one.name != CORRECTION if self.feedback is None else one.name == self.feedback)
            and ((least is None and most is None) or _is_between(one.value, least, most))
            for one in feedback
        )


def _is_between(value: Scored, least: float | None, most: float | None) -> bool:
    if isinstance(value, str):
        return False
    return (least is None or value >= least) and (most is None or value <= most)


FORMAT = 2
"""The JSON form of a run; 1 was a tree of calls."""


class RunRecord(BaseModel):
    """The JSON form of a run: its rows, and two facts that a journal does not store."""

    model_config = ConfigDict(defer_build=True)

    format: int = FORMAT
    run: RunRow
    calls: list[CallRow]
    feedback: list[FeedbackRow] = []
    rerun: dict[str, str] = {}
    """`Run.rerun`."""
    edges: list[tuple[str, str]] | None = None
    """`Run.edges()`; without them the data flow is found by the contents of values."""

    def to_json(self) -> str:
        """The record as JSON text."""
        data = self.model_dump()
        try:
            return json.dumps(data, ensure_ascii=False, allow_nan=False)
        except ValueError:  # a number in the metadata or in a message that has no JSON
            return json.dumps(plain(data), ensure_ascii=False)


class Journal(Protocol):
    """Where runs are stored. One journal serves many runs of a process; several processes may share one.

    Every method may raise `JournalError`.
    """

    @property
    def owner(self) -> str:
        """The name under which this journal holds runs, with a lock that the end of the process releases.

        A row that is read tells by its `owner` whether that lock is still held. A row of a run that this journal held,
        and that another owner has taken over since, is refused, so that the run ends here.
        """
        ...

    def put(self, *rows: Row) -> Awaitable[None]:
        """Store rows; they survive the process once what it returns was awaited."""
        ...

    def put_soon(self, *rows: Row) -> None:
        """Store rows after those of earlier calls, at the latest with the next `put`."""
        ...

    async def claim(self, row: RunRow, *, fresh: bool) -> None:
        """Begin (*fresh*) or resume a run for `row.owner`, unless a living owner holds it.

        A claim that is cancelled leaves a run as it was, or a fresh one as cancelled.
        """
        ...

    async def run(self, run_id: str) -> RunRow | None: ...

    async def runs(self, wanted: RunFilter) -> list[RunRow]:
        """The newest first, and of those that began at the same time the highest id."""
        ...

    async def calls(self, run_id: str) -> list[CallRow]:
        """In the order in which they began."""
        ...

    async def ops(self, run_id: str) -> list[OpRow]: ...

    async def feedback(self, run_id: str) -> list[FeedbackRow]:
        """The oldest first."""
        ...

    async def cancels(self) -> list[CancelRow]:
        """The requests to cancel runs that have an owner."""
        ...

    async def prune(self, *, older_than: float | None = None, keep: int | None = None) -> int:
        """Delete runs that ended more than *older_than* seconds ago, and all ended runs but the newest *keep*.

        A run of a living owner stays. *keep* does not count runs that can be resumed (suspended, or interrupted by the
        end of their process); *older_than* deletes them by the time when they were suspended, or began.
        """
        ...

    async def aclose(self) -> None: ...
