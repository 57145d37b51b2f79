"""One finished (or failed) execution, for reading: its tree of calls, its data flow, its JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING, Any, Generic, NoReturn, Self, cast, overload

from typing_extensions import TypeVar

from stagegraph.data.call import Call, CallError, Pending, Status, key_order
from stagegraph.data.score import Feedback
from stagegraph.nodes.node import Tree
from stagegraph.schema.errors import StagegraphError
from stagegraph.schema.names import closest

from .edges import follow_values
from .mermaid import run_chart

if TYPE_CHECKING:
    from pydantic_ai.usage import RunUsage

    from stagegraph.nodes.node import Node

__all__ = ["InputError", "LimitError", "ReplayError", "Run", "RunError"]

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
    """What the run gave; `None` when it did not succeed."""
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
    """What a suspended run asks; `Runner.resume(run.id, answers=...)` goes on."""
    feedback: tuple[Feedback, ...] = ()
    """Scores that were recorded for the run, the oldest first; for runs that were read back from a journal."""
    rerun: Mapping[str, str] = field(default_factory=dict[str, str])
    """Key -> what changed, of the calls that were recorded before and had to run again."""
    prompts_digest: str = ""
    """`Prompts.digest` of what was deployed for this run."""
    tree: Tree = field(repr=False)
    """What the graph declared when it ran."""
    read_root: Callable[[], Call[In, Out]] = field(repr=False)
    read_edges: Callable[[], list[tuple[str, str]]] | None = field(default=None, repr=False)
    read_spent: Callable[[], tuple[RunUsage, Decimal | None]] | None = field(default=None, repr=False)
    """Gives usage and cost where they are known without the tree of calls."""

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
        failed = [call for call in self.root.walk() if call.status == "failed"]
        own = [call for call in failed if not any(_explains(call, child) for child in call.children)]
        return sorted(own, key=lambda call: key_order(call.key))

    def edges(self) -> list[tuple[str, str]]:
        """Which call's output went into which call, as pairs of keys, found by following the values themselves."""
        return list(self._edges)

    @cached_property
    def _edges(self) -> list[tuple[str, str]]:
        return follow_values(self.root) if self.read_edges is None else self.read_edges()

    def mermaid(self) -> str:
        """What happened, as a Mermaid flowchart; a very wide run is drawn by path with counts."""
        return run_chart(self.graph, self.root, self.edges())

    def to_json(self) -> str:
        """The whole record; `from_json` reads it back, typed by the graph's own models.

        Raises:
            RunError: a value cannot be written as JSON; it names the call.
        """
        from . import run_json  # noqa: PLC0415

        return run_json.dump(cast("Run[Any, Any]", self))

    @classmethod
    def from_json(cls, text: str | bytes, graph: Node[I, O] | type[Node[I, O]]) -> Run[I, O]:
        """Read a record back, each value as the type that *graph* declares for it.

        Raises:
            ReplayError: the text is no record, or does not fit *graph*; it names the call.
        """
        from . import run_json  # noqa: PLC0415

        node = cast("Node[Any, Any]", graph() if isinstance(graph, type) else graph)
        return cast("Run[I, O]", run_json.load(text, node, Run[Any, Any]))

    def __copy__(self) -> Self:
        return self  # nothing of it changes any more

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce__(self) -> NoReturn:
        msg = (
            "a Run cannot be pickled, since it holds the graph that ran: "
            "send `run.to_json()`, and read it with `Run.from_json(text, graph)`"
        )
        raise TypeError(msg)

    def __repr__(self) -> str:
        return f"<Run {self.id} of {self.graph}: {self.status}>"


def _explains(call: Call, child: Call) -> bool:
    """Whether a call failed because this child did: the child's error passed through it."""
    if child.status != "failed" or call.error is None or child.error is None:
        return False
    message = child.error.message
    return (
        child.error == call.error
        or bool(message and message in call.error.message)
        or "ExceptionGroup" in call.error.type
    )


class RunError(StagegraphError):
    """A run ended without an output."""

    def __init__(self, message: str, *, run: Run[Any, Any] | None = None) -> None:
        super().__init__(message)
        self._run = run
        self._elsewhere = False
        """Whether the record is in another process, from which the error came without it."""

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
        """Whether there is a record."""
        return self._run is not None

    def attach(self, run: Run[Any, Any]) -> None:
        """Give the error its record; the runner does."""
        self._run = run

    @property
    def failures(self) -> list[Call[Any, Any]]:
        """Each failed call, in key order; the innermost ones, since their parents only failed with them."""
        return [] if self._run is None else self._run.failures()

    @classmethod
    def from_cancellation(cls, error: BaseException) -> RunError | None:
        """The partial record of a run that was cancelled from outside, from the `CancelledError` that it raised.

        Cancellation itself keeps propagating, as structured concurrency wants; raise the `CancelledError` again.
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
    """A limit of the run was reached; what was recorded remains."""

    timed_out = False
    """Whether it was the limit of time."""


class ReplayError(RunError):
    """A recorded run does not fit the program that should replay it."""
