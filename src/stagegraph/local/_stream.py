"""An answer while it is written, in Pydantic AI's terms."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from pydantic_ai.models import StreamedResponse
from pydantic_ai.usage import RequestUsage

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, AsyncIterator

    from pydantic_ai.messages import FinishReason, ModelResponseStreamEvent

    from ._engine import Chunk

__all__ = ["LocalStream"]

_FINISHED: dict[str | None, FinishReason] = {"stop": "stop", "length": "length"}


@dataclass
class LocalStream(StreamedResponse):
    """Turns chunks into events, and remembers what the answer took."""

    name: str
    chunks: AsyncGenerator[Chunk]
    first: Chunk
    """Already taken from the chunks, so that a refused request fails before there is a stream."""
    started: datetime = field(default_factory=lambda: datetime.now(UTC))

    def __post_init__(self) -> None:
        self._closing = False
        self._usage = RequestUsage(cost=Decimal(0))  # free, which is not the same as of unknown price

    async def _get_event_iterator(self) -> AsyncIterator[ModelResponseStreamEvent]:
        chunk: Chunk | None = self.first
        while chunk is not None and not self._closing:
            for choice in chunk.choices:
                if text := choice.delta.content:
                    for event in self._parts_manager.handle_text_delta(vendor_part_id="content", content=text):
                        yield event
                self.finish_reason = _FINISHED.get(choice.finish_reason)
            if chunk.usage is not None:
                self._usage.input_tokens = chunk.usage.prompt_tokens
                self._usage.output_tokens = chunk.usage.completion_tokens
            chunk = await anext(self.chunks, None)

    async def close_stream(self) -> None:
        """End the answer at its next token; the model stops when the stream's context is left."""
        # The chunks may be waited for in another task right now, so they cannot be closed from here.
        self._closing = True

    @property
    def model_name(self) -> str:
        return self.name

    @property
    def provider_name(self) -> Literal["local"]:
        return "local"

    @property
    def provider_url(self) -> None:
        return None

    @property
    def timestamp(self) -> datetime:
        return self.started
