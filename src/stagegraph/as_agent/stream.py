"""A run of a graph in the terms of a model's answer: each call as a tool call, the output as text."""

from __future__ import annotations

import json
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic_ai.messages import NativeToolCallPart, NativeToolReturnPart
from pydantic_ai.models import StreamedResponse
from pydantic_ai.usage import RequestUsage

from stagegraph.data.events import CallFinished, CallStarted
from stagegraph.nodes.graph import BaseGraph

from .questions import question

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator, Callable

    from pydantic_ai.messages import ModelResponseStreamEvent

    from stagegraph.data.events import Event
    from stagegraph.record.run import Run
    from stagegraph.runner.live import LiveRun

__all__ = ["PROVIDER", "GraphStream"]

PROVIDER = "stagegraph"
_SHOWN = 50
"""Calls of one path that are shown; a chat is no place for the other 750 of a wide fan-out."""
_OUTCOMES: dict[str, Literal["failed", "interrupted"]] = {"failed": "failed", "cancelled": "interrupted"}


@dataclass
class GraphStream(StreamedResponse):
    """What happens in a run, as it happens, and then its output."""

    graph: BaseGraph[Any, Any]
    live: LiveRun[Any, Any]
    done: Callable[[Run[Any, Any]], None]
    before: Run[Any, Any] | None
    """The record of a run that goes on; what is in it was shown when it happened."""
    agent_run_id: str
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        # What the stages used is added to the agent run's usage, which counts every request of theirs.
        self._usage = RequestUsage(cost=Decimal(0))
        self.provider_response_id = self.live.run_id
        self._known = frozenset[str]() if self.before is None else {c.key for c in self.before.calls() if c.ok}
        self._calls: dict[str, int] = {}
        self._open: dict[str, str] = {}

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        async with aclosing(cast("AsyncGenerator[Event]", self.live.events())) as events:
            async for event in events:
                part = self._part(event)
                if part is not None:
                    yield self._parts_manager.handle_part(vendor_part_id=None, part=part)
        if self.cancelled:
            return
        run = await self.live.result()
        self.done(run)
        self.finish_reason = "stop" if run.status == "succeeded" else "tool_call"
        for pending in run.pending:
            yield self._parts_manager.handle_part(vendor_part_id=None, part=question(run.id, pending))
        if run.status == "succeeded":
            # An answer without any text would be asked for again.
            text = self._text(run) or " "
            for written in self._parts_manager.handle_text_delta(vendor_part_id="output", content=text):
                yield written

    def _part(self, event: Event) -> NativeToolCallPart | NativeToolReturnPart | None:
        if isinstance(event, CallStarted) and event.kind != "graph" and event.key not in self._known:
            self._calls[event.path] = count = self._calls.get(event.path, 0) + 1
            if count > _SHOWN:
                return None
            name = self._open[event.key] = event.path.replace(".", "_")
            return NativeToolCallPart(
                name, {"call": event.key}, tool_call_id=self._call_id(event.key), provider_name=PROVIDER
            )
        if isinstance(event, CallFinished) and event.key in self._open:
            return NativeToolReturnPart(
                self._open.pop(event.key),
                {"status": event.status, "seconds": round(event.duration, 3)},
                tool_call_id=self._call_id(event.key),
                provider_name=PROVIDER,
                outcome=_OUTCOMES.get(event.status, "success"),
            )
        return None

    def _call_id(self, key: str) -> str:
        return f"{self.agent_run_id}:{key}"

    def _text(self, run: Run[Any, Any]) -> str:
        if isinstance(run.output, str):
            return run.output
        return json.dumps(self.graph.__node__.output_type.show(run.output), indent=2, ensure_ascii=False)

    async def close_stream(self) -> None:
        """End the run, since nobody reads its answer any more."""
        await self.live.cancel()

    @property
    def model_name(self) -> str:
        return self.graph.__node__.name

    @property
    def provider_name(self) -> str:
        return PROVIDER

    @property
    def provider_url(self) -> None:
        return None

    @property
    def timestamp(self) -> datetime:
        return self.started
