"""What the executor tells those who watch runs from outside, and when; who they are, it does not know."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from datetime import datetime

    from pydantic_ai.capabilities import AbstractCapability

    from stagegraph.data.call import CallError, Status
    from stagegraph.data.prompts import Prompts
    from stagegraph.data.score import Feedback
    from stagegraph.nodes.stage import Stage

    from .state import Clock, Entry

__all__ = ["Trace", "TraceStart", "Tracing", "by_environment"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceStart:
    """What is known of a run when its trace begins."""

    run_id: str
    graph: str
    root_key: str
    """The key of the whole run: nothing for a graph, the name of a stage or step that is run by itself."""
    segment: int
    """0 for a run from its beginning, 1 when it was resumed, 2 the second time."""
    prompts: Prompts
    clock: Clock
    session_id: str | None
    user_id: str | None
    tags: tuple[str, ...]
    metadata: Mapping[str, object]


class Trace(Protocol):
    """One run as it is watched. Nothing here may raise or wait: a run does not depend on who looks at it."""

    def agent(self, entry: Entry, stage: Stage[Any, Any]) -> Sequence[AbstractCapability[Any]]:
        """What to add to the agent of a stage call, so that its requests and tools are seen."""
        ...

    def replaying(self) -> AbstractContextManager[None]:
        """Around an agent that recalls recorded requests: what is not made again is not shown again."""
        ...

    def ended(self, entry: Entry) -> None:
        """A call below the root has ended."""
        ...

    def finished(self, root: Entry, status: Status, error: CallError | None) -> None:
        """The run has ended."""
        ...


class Tracing(Protocol):
    """Where runs are shown: what `Runner(tracing=)` takes."""

    def open(self, start: TraceStart) -> Trace | None:
        """Begin to watch a run; `None` leaves it alone."""
        ...

    def score(self, run_id: str, feedback: Feedback, segment: int, begun: datetime) -> None:
        """Send a score for a run that began then, or for a call of its *segment*; it neither waits nor fails."""
        ...

    async def flush(self, seconds: float = 2.0) -> bool:
        """Send what waits, for so long at most; whether everything went."""
        ...


def by_environment() -> Tracing | None:
    """Langfuse when its keys are set (`LANGFUSE_PUBLIC_KEY`, `LANGFUSE_SECRET_KEY`), otherwise nothing."""
    variables = os.environ
    if not (variables.get("LANGFUSE_PUBLIC_KEY") and variables.get("LANGFUSE_SECRET_KEY")):
        return None
    if variables.get("LANGFUSE_TRACING_ENABLED", "true").lower() == "false":
        return None
    from stagegraph.tracing.langfuse import shared  # noqa: PLC0415 - a program without keys loads nothing of it

    return shared()
