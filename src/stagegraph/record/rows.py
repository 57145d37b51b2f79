"""What a journal stores, and the protocol that every journal keeps. Values are JSON text, never pickles.

The rows are the one list of a run's and a call's fields: `Run`, `Call`, the JSON of a run, answers of a service and
pages are made from them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Annotated, Protocol

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, SkipValidation, TypeAdapter
from pydantic_core import to_jsonable_python

from stagegraph.data.call import Cause, Kind, ShownStatus, Status
from stagegraph.schema.errors import DeclarationError, JournalError
from stagegraph.schema.schema import plain
from stagegraph.schema.types import is_mapping

GONE = "gone"
"""The owner of a run that is read from a journal, where that owner's process ended without releasing the run."""


class DamagedError(JournalError):
    """A record of a run is not one that a journal writes; other runs can still be read."""


Moment = Annotated[float, Field(gt=-6e10, lt=6e10)]
"""Seconds since 1970, in the years that a calendar has."""
Json = Annotated[str, BeforeValidator(lambda data: json.dumps(data, ensure_ascii=False)), PlainSerializer(json.loads)]
"""A column with JSON text. The JSON form of a row (`RunRecord`) has the data itself."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What is known of a run besides its values: what the caller said about it, and what resuming it needs."""

    metadata: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    tags: tuple[SkipValidation[str], ...] = ()
    session_id: SkipValidation[str | None] = None
    user_id: SkipValidation[str | None] = None
    resumed: tuple[Moment, ...] = ()
    """When the run was resumed, each time in seconds since 1970."""
    ended: tuple[Moment, ...] = ()
    """When each of its segments ended: at an interruption, a suspension, or the end of the run. Where a process died,
    the end of the last call that was recorded."""
    crashes: int = 0
    """How often the run's process died during the run."""
    models: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Stage path -> the model that this run alone was given."""
    override: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """Call key -> the output that the call gets in this run, as JSON data."""
    override_whole: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The same as `CallRow.output_whole`, where an output needs it."""
    origins: Mapping[str, tuple[str, int]] = field(default_factory=lambda: MappingProxyType({}))
    """Stage path -> name and version of its deployed prompt."""
    limits: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """What this run alone may spend: the fields of `Limits` that are set."""
    replay: str | None = None
    """The id of the run whose outputs it may use."""
    cause: Cause | None = None
    """`CallError.cause` of the run's error."""
    redacted: tuple[str, ...] = ()
    """The columns that `redact=` changed, and without which the run cannot be resumed."""

    @classmethod
    def from_json(cls, text: str) -> Labels:
        """The labels of a row.

        Raises:
            ValueError: the text does not hold labels.
        """
        return _labels().validate_python(json.loads(text))

    def to_json(self) -> str:
        """The text of a row's column; an object without JSON in the metadata is written as `str` shows it.

        Raises:
            DeclarationError: the metadata cannot be written as JSON.
        """
        data = {
            name: dict(value) if is_mapping(value) else value
            for name in _LABELS
            if (value := getattr(self, name)) or name in OF_CALLER
        }
        try:
            return json.dumps(data, ensure_ascii=False, default=str)
        except (TypeError, ValueError):  # a key that is not a text, or an object that contains itself
            pass
        try:
            return json.dumps(to_jsonable_python(data, fallback=str), ensure_ascii=False)
        except (TypeError, ValueError) as error:
            msg = f"the metadata of a run cannot be recorded: {error}; give a mapping of names to JSON values"
            raise DeclarationError(msg) from error


@cache
def _labels() -> TypeAdapter[Labels]:
    return TypeAdapter(Labels)


_LABELS = Labels.__slots__
OF_CALLER = ("metadata", "tags", "session_id", "user_id")
"""The labels that a caller gives, which `Run` has as well; they are always written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """One run. It is written when the run begins and again when it ends."""

    run_id: str
    graph: str
    status: Status
    started: float
    """Seconds since 1970, UTC."""
    duration: float = 0.0
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
    labels: Json = "{}"
    """`Labels`."""
    requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    cost: str | None = None
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
    parts: Json = "{}"
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
    usage: Json = "{}"
    cost: str | None = None
    """US dollars; `None` when the price of a request is not known."""
    started: float
    duration: float = 0.0
    attempts: int = 1
    messages: Json = "[]"
    prompt: Json | None = None
    """The prompt of the stage in this run."""
    replayed: bool = False
    source: Json | None = None
    """Run id and key of the recorded call that gave its output, if it was replayed."""
    pending: Json | None = None
    """The open questions of a suspended agent: a list of `Pending`."""
    start_event: int = -1
    """The number of the event that announced its start, over all segments of the run; -1 when there was none."""
    end_event: int = -1
    """The same of its end."""


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
    value: Json
    """A number, a boolean or a text."""
    comment: str | None
    time: float


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


def has_score(scores: Iterable[tuple[str, object]], name: str | None, least: float | None, most: float | None) -> bool:
    """Whether one of a run's scores (name and value) has a name and a number within limits, as far as they are given.

    The scores are read only where they decide.
    """
    if name is None and least is None and most is None:
        return True
    values = [value for found, value in scores if name in {None, found}]
    if least is None and most is None:
        return bool(values)
    numbers = [value for value in values if isinstance(value, (int, float))]
    return any((least is None or number >= least) and (most is None or number <= most) for number in numbers)


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFilter:
    """Which runs to list; every field that is set must match."""

    graph: str | None = None
    status: Status | None = None
    since: float | None = None
    """Seconds since 1970."""
    until: float | None = None
    feedback: str | None = None
    """The name of a score that the run must have."""
    min_score: float | None = None
    max_score: float | None = None
    interrupted: bool = False
    """Only runs that are recorded as running, and that nobody runs any more."""
    user: str | None = None
    session: str | None = None
    tags: tuple[str, ...] = ()
    """A run must have all of these."""
    before: tuple[float, str] | None = None
    """Only runs that come after the one that began then, with that id: the newest come first, the highest id first."""
    limit: int = 50

    def matches(self, row: RunRow, feedback: Iterable[FeedbackRow]) -> bool:
        """Whether a run is to be listed; *feedback* are its scores, which are read only where they decide."""
        scores = ((one.name, json.loads(one.value)) for one in feedback)
        return (
            self.graph in {None, row.graph}
            and self.status in {None, row.status}
            and (not self.interrupted or row.interrupted)
            and (self.since is None or row.started >= self.since)
            and (self.until is None or row.started <= self.until)
            and (self.before is None or (row.started, row.run_id) < self.before)
            and (not (self.user or self.session or self.tags) or self._matches_labels(row.read_labels()))
            and has_score(scores, self.feedback, self.min_score, self.max_score)
        )

    def _matches_labels(self, labels: Labels) -> bool:
        return (
            self.user in {None, labels.user_id}
            and self.session in {None, labels.session_id}
            and set(self.tags) <= set(labels.tags)
        )


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

    async def put(self, *rows: Row) -> None:
        """Store rows; they survive the process once this returns."""
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
