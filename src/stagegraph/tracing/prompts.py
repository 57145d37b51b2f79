"""Prompts that live in Langfuse: deployed by label, fetched beside the runs, never in their way."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, ItemsView, Iterator, Mapping, ValuesView
from contextlib import suppress
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from stagegraph.data.prompt import Origin, Prompt, PromptedStage
from stagegraph.data.prompts import Prompts
from stagegraph.nodes.stage import stages_of
from stagegraph.schema.errors import PromptError, TracingError

from ._connection import Connection
from ._process import begin_anew_in_children
from ._prompt_rows import name_of, prompt_of
from ._rest import NotFoundError, Rest

if TYPE_CHECKING:
    from stagegraph.nodes.node import Node
    from stagegraph.nodes.stage import Stage

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
        super().__init__(graph=graph.__node__.name)
        self.label = label
        self._stages = stages_of(graph)
        self._connection = connection or Connection.of()
        self._ttl, self._wait = ttl, wait
        self._state = Prompts(graph=graph.__node__.name)
        self._told: set[str] = set()
        self._begin()
        begin_anew_in_children(self)
        self._begin_to_fetch()

    def _begin(self) -> None:
        self._fetched = -float("inf")
        self._first = threading.Event()
        self._until = float("inf")
        """When the time is over that the first answer is waited for."""
        self._waiting: list[Callable[[], object]] = []
        self._one = threading.Lock()
        self._asked = False

    def forked(self) -> None:
        """Fetch anew in a forked child, when it first asks: the parent's thread is not here, and its locks may be held.

        What the parent knew already is used meanwhile, as it would be there.
        """
        known = self._first.is_set()
        self._begin()
        if known:
            self._first.set()

    settled = False

    async def resolved(self) -> Prompts:
        """The state for one run."""
        if not self._first.is_set():
            self._begin_to_fetch()
            await self._answer()
        elif time.monotonic() - self._fetched > self._ttl:
            self._refresh()
        return self._state

    async def _answer(self) -> None:
        """Wait for the first answer, without a thread: many runs may begin at once."""
        loop, answered = asyncio.get_running_loop(), asyncio.Event()

        def tell() -> None:
            with suppress(RuntimeError):  # the loop ended meanwhile
                loop.call_soon_threadsafe(answered.set)

        self._waiting.append(tell)
        if self._first.is_set():  # between the question and the line above
            answered.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._left()):
                await answered.wait()

    def _left(self) -> float:
        """Seconds that are left of the time for the first answer, which begins when it is first waited for."""
        now = time.monotonic()
        self._until = min(self._until, now + self._wait)
        return max(0.0, self._until - now)

    def check_known(self, stages: Mapping[str, PromptedStage], name: str) -> None:
        """Make sure that they are for a graph with these stages, without waiting for them.

        Raises:
            PromptError: they are for another one.
        """
        Prompts(dict.fromkeys(self._stages, Prompt())).check_known(stages, name)

    def _begin_to_fetch(self) -> None:
        """Fetch for the first time in this process, unless that has begun."""
        if not self._asked:
            self._refresh()

    def _refresh(self) -> None:
        self._asked = True
        if self._one.acquire(blocking=False):
            threading.Thread(target=self._fetch, name="stagegraph-prompts", daemon=True).start()

    def _fetch(self) -> None:
        try:
            self._state = asyncio.run(self._ask())
        except Exception as error:  # noqa: BLE001 - whatever a server does, runs go on with what there is
            self._tell([("", f"prompts of {self.graph} could not be fetched: {error!r}")])
        finally:
            self._fetched = time.monotonic()
            self._first.set()
            self._one.release()
            while self._waiting:
                self._waiting.pop()()

    async def _ask(self) -> Prompts:
        found: dict[str, Prompt] = {}
        origins: dict[str, Origin] = {}
        missing: list[str] = []
        problems: list[tuple[str, str]] = []
        slots = asyncio.Semaphore(_SIDE_BY_SIDE)

        async def one(path: str, stage: Stage[Any, Any]) -> None:
            name = name_of(self.graph or "", path)
            try:
                async with slots:
                    row = await rest.get(f"v2/prompts/{quote(name, safe='')}", label=self.label)
                found[path], version = prompt_of(stage, row, name)
                origins[path] = Origin(name, version)
            except NotFoundError:
                missing.append(path)
            except (TracingError, PromptError) as error:
                problems.append((path, str(error)))
                if path in self._state:
                    found[path] = self._state[path]
                    origins[path] = self._state.origins[path]

        async with Rest(self._connection, patience=0) as rest:
            await asyncio.gather(*(one(path, stage) for path, stage in self._stages.items()))
        if self._stages and len(missing) == len(self._stages):
            where = self._connection.base_url
            problems.append(("", f"no prompt of {self.graph} has the label {self.label!r} at {where}"))
        self._tell(problems)
        order = {path: found[path] for path in self._stages if path in found}
        return Prompts(order, graph=self.graph, origins=origins)

    def _tell(self, problems: list[tuple[str, str]]) -> None:
        """Say what is wrong, in one warning, and again only after it was right in between."""
        new = [(path, problem) for path, problem in problems if path not in self._told]
        self._told = {path for path, _ in problems}
        if new:
            reasons = "; ".join(dict.fromkeys(problem for _, problem in new))
            stages = ", ".join(f"`{path}`" for path, _ in new if path)
            log.warning(
                "%s; until that changes, %s what it said before, or what the code says (said once)",
                reasons,
                f"the prompt of {stages} is" if stages else "every prompt is",
            )

    def _now(self) -> Prompts:
        if not self._first.is_set():
            self._begin_to_fetch()
            self._first.wait(self._left())
        return self._state

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Stage path -> its name and version in Langfuse."""
        return self._now().origins

    def __bool__(self) -> bool:
        return True  # there may be some the next time, and asking now would wait for the server

    def items(self) -> ItemsView[str, Prompt]:
        """Stage path -> prompt, all of one state."""
        return self._now().items()

    def values(self) -> ValuesView[Prompt]:
        """The prompts, all of one state."""
        return self._now().values()

    def __getitem__(self, path: str) -> Prompt:
        return self._now()[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._now())

    def __len__(self) -> int:
        return len(self._now())

    def __repr__(self) -> str:
        return f"<Prompts of {self.graph} in Langfuse, label {self.label!r}>"
