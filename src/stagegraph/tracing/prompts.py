"""Prompts that live in Langfuse: deployed by label, fetched beside the runs, never in their way."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from stagegraph.errors import PromptError, TracingError
from stagegraph.prompt import Origin, Prompt
from stagegraph.prompts import Prompts
from stagegraph.structure import Structure

from ._connection import Connection
from ._prompt_rows import name_of, prompt_of
from ._rest import NotFoundError, Rest

if TYPE_CHECKING:
    from stagegraph.node import Node
    from stagegraph.stage import Stage

__all__ = ["LangfusePrompts"]

log = logging.getLogger("stagegraph.tracing")

_SIDE_BY_SIDE = 8


class LangfusePrompts(Prompts):
    """The prompts of a graph that carry a label in Langfuse now; what `Prompts.from_langfuse` gives.

    They are fetched in a thread of their own, at once and again when they are older than *ttl*. Each run uses one
    state of them from its beginning to its end. A stage that Langfuse has no usable text for keeps the code's: an
    unreachable or slow server, a text that is missing and a value that is nonsense never stop a run.

    Args:
        graph: What they are for: the prompt of each stage is named `<graph>/<path>`.
        label: Which version of each: `production`, `candidate`.
        ttl: Seconds after which a run lets them be fetched again (it does not wait for it).
        wait: Seconds that the first run waits at most for the first answer.
        connection: Which project; the environment says it otherwise.
    """

    def __init__(
        self,
        graph: Node[Any, Any],
        *,
        label: str = "production",
        ttl: float = 60.0,
        wait: float = 2.0,
        connection: Connection | None = None,
    ) -> None:
        super().__init__(graph=graph.label)
        self.label = label
        self._stages = Structure.of(graph).stages
        self._connection = connection or Connection.of()
        self._ttl, self._wait = ttl, wait
        self._state = Prompts(graph=graph.label)
        self._fetched = -float("inf")
        self._first = threading.Event()
        self._one = threading.Lock()
        self._told: set[str] = set()
        self._refresh()

    settled = False

    async def resolved(self) -> Prompts:
        """The state for one run."""
        if not self._first.is_set():
            await asyncio.to_thread(self._first.wait, self._wait)
        elif time.monotonic() - self._fetched > self._ttl:
            self._refresh()
        return self._state

    def check_known(self, stages: Mapping[str, object], label: str) -> None:
        """Make sure that they are for a graph with these stages, without waiting for them.

        Raises:
            PromptError: they are for another one.
        """
        Prompts(dict.fromkeys(self._stages, Prompt())).check_known(stages, label)

    def _refresh(self) -> None:
        if self._one.acquire(blocking=False):
            threading.Thread(target=self._fetch, name="stagegraph-prompts", daemon=True).start()

    def _fetch(self) -> None:
        try:
            self._state = asyncio.run(self._ask())
        except Exception as error:  # noqa: BLE001 - whatever a server does, runs go on with what there is
            self._tell("", f"prompts could not be fetched, so runs use what there was before: {error}")
        finally:
            self._fetched = time.monotonic()
            self._one.release()
            self._first.set()

    async def _ask(self) -> Prompts:
        found: dict[str, Prompt] = {}
        origins: dict[str, Origin] = {}
        slots = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def one(path: str, stage: Stage[Any, Any]) -> None:
            name = name_of(self.graph or "", path)
            try:
                async with slots:
                    row = await rest.get(f"v2/prompts/{quote(name, safe='')}", label=self.label)
                found[path], version = prompt_of(stage, row, name)
                origins[path] = Origin(name, version)
            except NotFoundError:
                pass  # nothing is deployed for it
            except (TracingError, PromptError) as error:
                self._tell(path, f"the code's text is used for stage `{path}`: {error}")
                if path in self._state:
                    found[path] = self._state[path]
                    origins[path] = self._state.origins[path]

        async with Rest(self._connection, patience=0) as rest:
            await asyncio.gather(*(one(path, stage) for path, stage in self._stages.items()))
        return Prompts(found, graph=self.graph, origins=origins)

    def _tell(self, path: str, message: str) -> None:
        if path not in self._told:
            self._told.add(path)
            log.warning("%s (said once)", message)

    def _now(self) -> Prompts:
        self._first.wait(self._wait)
        return self._state

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Stage path -> its name and version in Langfuse."""
        return self._now().origins

    def __getitem__(self, path: str) -> Prompt:
        return self._now()[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def __repr__(self) -> str:
        return f"<Prompts of {self.graph} in Langfuse, label {self.label!r}>"
