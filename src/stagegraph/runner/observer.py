"""What tracing implements in order to observe runs; the runner knows no more of it than these protocols."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic_ai.capabilities import AbstractCapability

    from stagegraph.data.call import CallError, Status
    from stagegraph.data.prompts import Prompts
    from stagegraph.data.score import Feedback
    from stagegraph.nodes.stage import Stage

    from .state import CallState, Clock

log = logging.getLogger("stagegraph.tracing")

ENTRY_POINTS = "stagegraph.tracing"
"""A package that shows runs somewhere has an entry point in this group: a function that gives its `Tracing`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStart:
    """What is known of a run when its trace begins."""

    run_id: str
    graph: str
    root_key: str
    """The key of the root call: empty for a graph, the name of a stage or step that is run by itself."""
    segment: int
    """0 for a run from its beginning, 1 when it was resumed, 2 the second time."""
    prompts: Prompts
    clock: Clock
    session_id: str | None
    user_id: str | None
    tags: tuple[str, ...]
    metadata: Mapping[str, object]


class Trace(Protocol):
    """The trace of one run. No method may raise or wait: a run does not depend on its tracing."""

    def agent(self, call: CallState, stage: Stage[Any, Any], /) -> Sequence[AbstractCapability[Any]]:
        """Capabilities for the agent of a stage call, which observe its requests and tools."""
        ...

    def replaying(self) -> AbstractContextManager[None]:
        """Around an agent that recalls recorded requests: a request that is not made again is not traced again."""
        ...

    def ended(self, call: CallState, /) -> None:
        """A call below the root has ended."""
        ...

    def finished(self, root: CallState, status: Status, error: CallError | None, /) -> None:
        """The run has ended."""
        ...


class Tracing(Protocol):
    """A tracing backend: the type of `Runner(tracing=)`."""

    def open(self, start: TraceStart) -> Trace | None:
        """Begin the trace of a run; `None` if the run is not traced."""
        ...

    def score(self, run_id: str, feedback: Feedback, segment: int, begun: datetime) -> None:
        """Send a score for a run that began at *begun*, or for a call of its *segment*; neither waits nor fails."""
        ...

    async def flush(self, seconds: float = 2.0) -> bool:
        """Send what is queued, within so many seconds; whether everything was sent. A runner calls it at its end."""
        ...


def by_environment() -> Tracing | None:
    """Langfuse when its keys are set (`LANGFUSE_PUBLIC_KEY`, `LANGFUSE_SECRET_KEY`), otherwise nothing."""
    variables = os.environ
    if not (variables.get("LANGFUSE_PUBLIC_KEY") and variables.get("LANGFUSE_SECRET_KEY")):
        return None
    if variables.get("LANGFUSE_TRACING_ENABLED", "true").lower() == "false":
        return None
    shared = _installed("langfuse")
    return None if shared is None else shared()


@cache
def _installed(name: str) -> Callable[[], Tracing] | None:
    """What gives the tracing of that name; looked up once, and only by programs that have keys."""
    for entry in entry_points(group=ENTRY_POINTS, name=name):
        found: Callable[[], Tracing] = entry.load()
        return found
    log.warning("the keys of %s are set, but no package has an entry point for it in %r", name, ENTRY_POINTS)
    return None
