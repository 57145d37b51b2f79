"""A service for many runs at once, in a process of its own, which tells what is left of them."""

import asyncio
import contextlib
import gc
import os
import random
import stat
import sys
from pathlib import Path
from typing import Any

import anyio
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from pydantic_ai import Agent, InstrumentationSettings
from pydantic_ai.capabilities import Instrumentation
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from serving import app_for, serve
from stagegraph import Graph, Runner, Stage, fan_out, step
from stagegraph.journal import SqliteJournal

FOLDER = Path(sys.argv[1])


async def delay() -> None:
    """Some time, so that calls end in no particular order."""
    await anyio.sleep(random.random() * 0.02)


async def repeats(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """Answer with the prompt."""
    await delay()
    [prompt] = [part.content for part in messages[-1].parts if isinstance(part, UserPromptPart)]
    return ModelResponse([TextPart(str(prompt))])


@step
async def scripted(text: str) -> str:
    await delay()
    return text


class Twelve(Graph[str, list[str]]):
    """Twelve calls: an agent, ten side by side of which one is an agent, and an agent."""

    first = Stage(str, Agent(instructions="Answer."))
    middle = scripted
    odd = Stage(str, Agent(instructions="Answer."))
    last = Stage(str, Agent(instructions="Answer."))

    async def flow(self, text: str) -> list[str]:
        text = await self.first(text)
        parts = await fan_out(self._part, [f"{text}.{number}" for number in range(10)])
        return [*parts, await self.last(text)]

    async def _part(self, text: str) -> str:
        return await (self.odd(text) if text.endswith("7") else self.middle(text))


class Watch(SpanProcessor):
    """A tracing that counts the runs and the spans that are open."""

    def __init__(self) -> None:
        self.open_runs = self.open_spans = self.spans = 0
        provider = TracerProvider()
        provider.add_span_processor(self)
        self.agents = [Instrumentation(InstrumentationSettings(tracer_provider=provider))]

    def open(self, _start: Any) -> "Watched":
        self.open_runs += 1
        return Watched(self)

    async def flush(self, _seconds: float = 2.0) -> bool:
        return True

    def on_start(self, *_: Any, **_more: Any) -> None:
        self.spans += 1
        self.open_spans += 1

    def on_end(self, *_: Any) -> None:
        self.open_spans -= 1


class Watched:
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def agent(self, *_: Any) -> list[Instrumentation]:
        return self.watch.agents

    def replaying(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def ended(self, *_: Any) -> None:
        pass

    def finished(self, *_: Any) -> None:
        self.watch.open_runs -= 1


def sockets() -> int:
    """How many this process has open: with each client that is still there, the server remembers more."""
    found = 0
    for file in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):  # the list itself was a file, too
            found += stat.S_ISSOCK(os.fstat(int(file.name)).st_mode)
    return found


def main() -> None:
    watch = Watch()
    runner = Runner(FunctionModel(repeats), journal=SqliteJournal(FOLDER / "runs.db"), tracing=watch)
    app = app_for(Twelve(), runner, remember=20)

    @app.get("/left")
    async def left() -> dict[str, int]:
        """What there is between two rounds."""
        gc.collect()
        names = [task.get_name() for task in asyncio.all_tasks()]
        tasks = [name for name in names if "stagegraph" in name and name != "stagegraph cancels"]  # the service's own
        pages = int((await anyio.Path("/proc/self/statm").read_text("ascii")).split()[1])
        return {
            "tasks": len(tasks),
            "open_runs": watch.open_runs,
            "open_spans": watch.open_spans,
            "spans": watch.spans,
            "sockets": sockets(),
            "blocks": sys.getallocatedblocks(),
            "bytes": pages * 4096,
        }

    gc.freeze()  # what was imported is not looked at again and again
    serve(app)


if __name__ == "__main__":
    main()
