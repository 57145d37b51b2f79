"""One finished (or failed) execution, for reading: its tree of calls, its data flow, its JSON, and its errors."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, overload

from pydantic import ValidationError
from typing_extensions import TypeVar

from stagegraph.data.call import Call, CallError, Pending, Status, key_order, load_pending
from stagegraph.data.score import Feedback
from stagegraph.nodes.node import Tree
from stagegraph.schema.errors import StagegraphError, closest, first_problem, shortened
from stagegraph.schema.serialize import escaped

from .calls import call_rows, error_of, root_call, rows_so_far
from .edges import follow_contents, follow_values
from .labels import OF_CALLER, Labels
from .mermaid import run_chart
from .rows import FORMAT, CallRow, FeedbackRow, Journal, RunRecord, RunRow, feedback_of

if TYPE_CHECKING:
    from pydantic_ai.usage import RunUsage

    from stagegraph.nodes.node import Node

In = TypeVar("In", default=Any)
Out = TypeVar("Out", default=Any)
I = TypeVar("I")  # noqa: E741 - the pair to O
O = TypeVar("O")  # noqa: E741


@dataclass(frozen=True, kw_only=True, eq=False)
class Run(Generic[In, Out]):
    """One execution of a graph (or of a single stage or step): the root call, its tree, usage and cost."""

    id: str
    graph: str
    """The name of what was run."""
    status: Status
    input: In
    output: Out
    """`None` when the run did not succeed."""
    error: CallError | None
    started: datetime
    """Time zone aware, UTC."""
    duration: float
    """Seconds."""
    metadata: Mapping[str, object] = field(default_factory=dict[str, object])
    tags: tuple[str, ...] = ()
    session_id: str | None = None
    user_id: str | None = None
    pending: tuple[Pending, ...] = ()
    """The open questions of a suspended run; `Runner.resume(run.id, answers=...)` answers them."""
    feedback: tuple[Feedback, ...] = ()
    """Recorded scores, the oldest first; only for runs that were read from a journal."""
    rerun: Mapping[str, str] = field(default_factory=dict[str, str])
    """Key -> what changed, for each recorded call that had to run again."""
    prompts_digest: str = ""
    """`Prompts.digest` of the prompts of this run."""
    tree: Tree = field(repr=False)
    """The nodes that the graph declared when it ran."""
    read_root: Callable[[], Call[In, Out]] = field(repr=False)
    read_edges: Callable[[], list[tuple[str, str]]] | None = field(default=None, repr=False)
    read_spent: Callable[[], tuple[RunUsage, Decimal | None]] | None = field(default=None, repr=False)
    """Returns usage and cost where they are known without the tree of calls."""

    @cached_property
    def root(self) -> Call[In, Out]:
        """The call of the graph itself, with everything else below it."""
        return self.read_root()

    @cached_property
    def _by_key(self) -> dict[str, Call]:
        return {call.key: call for call in self.root.walk()}

    @property
    def usage(self) -> RunUsage:
        """Requests, tool calls and tokens of all calls together."""
        return self._spent[0]

    @property
    def cost(self) -> Decimal | None:
        """US dollars; `None` when the price of a request is not known."""
        return self._spent[1]

    @cached_property
    def _spent(self) -> tuple[RunUsage, Decimal | None]:
        return (self.root.usage, self.root.cost) if self.read_spent is None else self.read_spent()

    @overload
    def calls(self, node: None = None) -> list[Call]: ...
    @overload
    def calls(self, node: Node[I, O]) -> list[Call[I, O]]: ...
    def calls(self, node: Node[Any, Any] | None = None) -> list[Call[Any, Any]]:
        """The calls of one node (`run.calls(Build.code)`), or all leaf calls, in key order.

        Raises:
            DeclarationError: the graph that ran has no such node.
        """
        if node is None:
            found = [call for call in self.root.walk() if call.kind != "graph"]
        else:
            paths = self.tree.paths(node)
            found = [call for call in self.root.walk() if call.path in paths]
        return sorted(found, key=lambda call: key_order(call.key))

    def call(self, key: str) -> Call:
        """The call that ran at *key*; the empty key is the graph's own.

        Raises:
            KeyError: nothing ran there.
        """
        found = self._by_key.get(key)
        if found is None:
            msg = f"run {self.id} has no call `{key}`{closest(key, list(self._by_key))}"
            raise KeyError(msg)
        return found

    def failures(self) -> list[Call]:
        """The calls that failed by themselves, in key order; a graph that failed with one of its calls is left out."""
        failed = [call for call in self.root.walk() if call.status == "failed" and _failed_by_itself(call)]
        return sorted(failed, key=lambda call: key_order(call.key))

    def edges(self) -> list[tuple[str, str]]:
        """The data flow: pairs of keys, from the call that returned a value to the call that was given it."""
        return list(self._edges)

    @cached_property
    def _edges(self) -> list[tuple[str, str]]:
        return follow_values(self.root) if self.read_edges is None else self.read_edges()

    def mermaid(self) -> str:
        """The run as a Mermaid flowchart; a very wide run is drawn by path, with counts."""
        return run_chart(self.graph, self.root, self.edges())

    def to_json(self) -> str:
        """The run's rows as a journal has them, in one object; `from_json` reads it back, typed by the graph's models.

        Raises:
            RunError: a value has no JSON; the message names the call.
        """
        try:
            calls = call_rows(self.root, self.tree, self.id, self.pending)
        except ValueError as error:
            raise RunError(str(error)) from error
        of_caller: dict[str, Any] = {name: getattr(self, name) for name in OF_CALLER}
        error = CallError("", "") if self.error is None else self.error
        root = next(row for row in calls if row.parent is None)
        run = RunRow(
            run_id=self.id,
            graph=self.graph,
            status=self.status,
            started=self.started.timestamp(),
            duration=self.duration,
            input=root.input,
            output=root.output,
            input_whole=root.input_whole,
            output_whole=root.output_whole,
            error_type=error.type or None,
            error=escaped(error.message) if error.type else None,
            prompts_digest=self.prompts_digest,
            labels=Labels(**of_caller, cause=error.cause).to_json(),
            requests=self.usage.requests,
            input_tokens=self.usage.input_tokens,
            output_tokens=self.usage.output_tokens,
            cost=None if self.cost is None else str(self.cost),
        )
        feedback = [
            FeedbackRow(
                id=str(number),
                run_id=self.id,
                key=one.key,
                name=one.name,
                value=json.dumps(one.value),
                comment=one.comment,
                time=one.time.timestamp(),
            )
            for number, one in enumerate(self.feedback)
        ]
        rerun, edges = dict(self.rerun), self.edges()
        return RunRecord(run=run, calls=calls, feedback=feedback, rerun=rerun, edges=edges).to_json()

    @classmethod
    def from_json(cls, text: str | bytes, graph: Node[I, O] | type[Node[I, O]]) -> Run[I, O]:
        """Read a record, each value as the type that *graph* declares for it.

        Raises:
            ReplayError: the text is not a record, or does not fit *graph*; the message names the call.
        """
        node = graph() if isinstance(graph, type) else graph
        try:
            data = json.loads(text)
            if (found := data["format"]) != FORMAT:
                msg = f"the record is in format {found!r}, and this version of stagegraph reads format {FORMAT}"
                raise ReplayError(msg)
            record = RunRecord.model_validate(data)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = first_problem(error) if isinstance(error, ValidationError) else f"{type(error).__name__}: {error}"
            msg = f"this is no record of a run that can be read: {reason}"
            raise ReplayError(msg) from error
        return _run(record, node, strict=True)

    def __copy__(self) -> Self:
        return self  # it is immutable

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        msg = (
            "a Run cannot be pickled, since it contains the graph that ran: "
            "send `run.to_json()`, and read it with `Run.from_json(text, graph)`"
        )
        raise TypeError(msg)

    def __repr__(self) -> str:
        return f"<Run {self.id} of {self.graph}: {self.status}>"


def causes_of(run: Run[Any, Any]) -> list[Call[Any, Any]]:
    """The failed calls that ended a run, without those that its flow caught, where the record has origins."""
    error = run.root.error
    if error is None or error.origin is None:
        return run.failures()
    return [call for call in run.failures() if call.key == error.origin]


def _failed_by_itself(call: Call) -> bool:
    """Whether the exception was first seen in this call; where a record does not say, whether no call in it failed."""
    origin = call.error.origin if call.error is not None else None
    if origin is not None:
        return origin == call.key
    return not any(child.status == "failed" for child in call.children)


class RunError(StagegraphError):
    """A run ended without an output."""

    def __init__(self, message: str, *, run: Run[Any, Any] | None = None) -> None:
        super().__init__(shortened(message))
        self._run = run
        self._elsewhere = False
        """Whether the record is in another process, which sent the error without it."""

    @property
    def run(self) -> Run[Any, Any]:
        """The partial record: every call that finished, failed or was cancelled."""
        if self._run is None:
            msg = "this error was raised outside a run, so there is no record"
            if self._elsewhere:
                msg = (
                    "this error was pickled, and its record stayed in the process that ran it: "
                    "send `error.run.to_json()` from there, and read it with `Run.from_json(text, graph)`"
                )
            raise AttributeError(msg)
        return self._run

    def __reduce__(self) -> tuple[Any, ...]:
        kept = {name: value for name, value in vars(self).items() if name in {"timed_out", "__notes__"}}
        return type(self), (str(self),), {**kept, "_elsewhere": self._elsewhere or self._run is not None}

    def __copy__(self) -> Self:
        copied = type(self).__new__(type(self), *self.args)
        vars(copied).update(vars(self))
        copied.__cause__ = self.__cause__
        return copied.with_traceback(self.__traceback__)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self.__copy__()  # the record is frozen

    @property
    def attached(self) -> bool:
        """Whether the error has a record."""
        return self._run is not None

    def attach(self, run: Run[Any, Any]) -> None:
        """Add the record; called by the runner."""
        self._run = run

    @property
    def failures(self) -> list[Call[Any, Any]]:
        """`Run.failures` of the record: the innermost failed calls, in key order."""
        return [] if self._run is None else self._run.failures()

    @classmethod
    def from_cancellation(cls, error: BaseException) -> RunError | None:
        """The partial record of a run that was cancelled from outside, found on its `CancelledError`.

        Raise the `CancelledError` again afterwards, as structured concurrency requires.
        """
        seen: set[int] = set()
        current: BaseException | None = error
        while current is not None and id(current) not in seen:
            seen.add(id(current))
            run = vars(current).get("stagegraph_run")
            if run is not None:
                return cls("the run was cancelled", run=run)
            current = current.__context__
        return None


class InputError(RunError):
    """The input at the outer door does not fit the node's input type."""


class LimitError(RunError):
    """A limit of the run was reached; its record is kept."""

    timed_out = False
    """Whether it was the limit of seconds."""


class ReplayError(RunError):
    """A recorded run does not fit the graph that should replay or read it."""


async def stored_run(journal: Journal, row: RunRow, graph: Node[I, O]) -> Run[I, O]:
    """A run from a journal; a value that no longer fits its type is given as plain data."""
    row, calls = await rows_so_far(journal, row)
    return run_of(row, calls, await journal.feedback(row.run_id), graph)


def run_of(row: RunRow, calls: list[CallRow], scores: list[FeedbackRow], graph: Node[I, O]) -> Run[I, O]:
    """The same from rows."""
    return _run(RunRecord(run=row, calls=calls, feedback=scores), graph)


def _run(record: RunRecord, graph: Node[I, O], *, strict: bool = False) -> Run[I, O]:
    """A run from its record.

    Raises:
        ReplayError: the record is damaged, or (*strict*) does not fit the graph.
    """
    row, tree, edges = record.run, graph.__node__.tree, record.edges
    asked = (call.pending for call in record.calls if call.pending is not None)
    try:
        labels = row.read_labels()
        of_caller: dict[str, Any] = {name: getattr(labels, name) for name in OF_CALLER}
        root = root_call(row, record.calls, tree, strict=strict)
        return Run(
            id=row.run_id,
            graph=row.graph,
            status=row.status,
            input=root.input,
            output=root.output,
            error=error_of(row),
            started=datetime.fromtimestamp(row.started, UTC),
            duration=row.duration,
            **of_caller,
            pending=tuple(one for text in asked for one in load_pending(text)),
            feedback=tuple(map(feedback_of, record.feedback)),
            rerun=record.rerun,
            prompts_digest=row.prompts_digest,
            tree=tree,
            read_root=lambda: root,
            read_edges=lambda: follow_contents(root) if edges is None else edges,
        )
    except (ValueError, TypeError, ArithmeticError, OSError, RecursionError) as error:
        problem = f"does not fit {graph.__node__.name}" if strict else f"of run {row.run_id!r} cannot be read"
        msg = f"the record {problem}: {error}"
        raise ReplayError(msg) from error
