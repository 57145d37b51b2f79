"""Prompts in Langfuse: deployed, promoted and rolled back by label, and read without delaying a run."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from stagegraph.data.examples import in_parallel
from stagegraph.data.prompt import Origin, Prompt, PromptedStage, misfits, parsed
from stagegraph.data.prompts import Prompts
from stagegraph.nodes.stage import stages_of
from stagegraph.schema.errors import PromptError, TracingError
from stagegraph.schema.types import is_dict

from .api import Api, NotFoundError, as_sent, load_langfuse
from .connection import Connection
from .sending import after_fork

if TYPE_CHECKING:
    from langfuse.api import Prompt as Version

    from stagegraph.data.prompts import RunLabels
    from stagegraph.nodes.node import Node
    from stagegraph.nodes.stage import Stage

T = TypeVar("T")

log = logging.getLogger("stagegraph.tracing")

_CONCURRENCY = 8
_BEFORE = "-before"
"""A label with this at its end is that of the versions that had the label before."""


def _prompt_of(version: Version, stage: Stage[Any, Any]) -> Prompt:
    name = f"{version.name}, version {version.version},"
    if not isinstance(version.prompt, str):
        msg = f"{name} is not a text prompt"
        raise PromptError(msg)
    parts = _parts(version)
    if parts is None:
        msg = f"{name} has no parts of a prompt under 'stagegraph' in its config"
        raise PromptError(msg)
    prompt = parsed(version.name, {**parts, "instructions": version.prompt}, "Langfuse")
    problems = misfits(version.name, prompt, stage, tools=False)
    if problems:
        msg = f"{name} does not fit the stage: {'; '.join(problems)}"
        raise PromptError(msg)
    return prompt


def _parts(version: Version) -> dict[str, Any] | None:
    """What a version has besides its text: demos, texts of tools and fields; `None` when it cannot be read."""
    found: object = version.config or {}
    for name in ("stagegraph", "parts"):
        found = found.get(name, {}) if is_dict(found) else None
    return found if is_dict(found) else None


class _Versions(Api):
    """The prompt versions of one graph: one prompt per stage, named `<graph>/<path>`."""

    def __init__(self, connection: Connection | None, graph: Node[Any, Any], *, patience: float = 20.0) -> None:
        super().__init__(connection or Connection.of(), patience=patience)
        self._graph = graph.__node__.name

    def name(self, path: str) -> str:
        """The name of a stage's prompt; for a stage that runs by itself, only its own name."""
        return self._graph if self._graph == path else f"{self._graph}/{path}"

    async def get(self, path: str, label: str) -> Version | None:
        """The version with a label."""
        name = self.name(path)
        try:
            return await self.ask(f"prompts/{name}", self.sdk.prompts.get, quote(name, safe=""), label=label)
        except NotFoundError:
            return None

    async def give(self, path: str, version: int, label: str) -> None:
        """Move a label to a version."""
        name, update = self.name(path), self.sdk.prompt_version.update
        await self.ask(f"prompts/{name}", update, quote(name, safe=""), version, new_labels=[label])

    async def make(self, path: str, body: Mapping[str, object]) -> Version:
        from langfuse.api import CreateTextPromptRequest  # noqa: PLC0415

        name = self.name(path)
        request = CreateTextPromptRequest.model_validate({"name": name, "type": "text", "tags": ["stagegraph"], **body})
        return await self.ask(f"prompts/{name}", self.sdk.prompts.create, request=request)


class LangfusePrompts:
    """The prompts of a graph that have a label in Langfuse, for a runner or a run in place of `Prompts`.

    A thread fetches them immediately, and again when they are older than *ttl*. If a prompt or the server has a
    problem, the stage keeps the text that was fetched before, or else the code's text.

    Args:
        graph: The graph; the prompt of each stage is named `<graph>/<path>`.
        label: The label of the versions: `production`, `candidate`.
        ttl: Seconds after which a run starts a new fetch, without waiting for it.
        wait: Maximum seconds that the first run waits for the first fetch.
        connection: The project; by default from Langfuse's own environment variables.

    Raises:
        DeclarationError: the keys are not set.
    """

    def __init__(
        self,
        graph: Node[Any, Any],
        label: str = "production",
        *,
        ttl: float = 60.0,
        wait: float = 2.0,
        connection: Connection | None = None,
    ) -> None:
        self.graph, self.label = graph, label
        self._stages = stages_of(graph)
        self._connection = connection or Connection.of()
        self._ttl, self._wait = ttl, wait
        self._known = Prompts(graph=graph.__node__.name)
        self._answered = False
        """Whether a fetch has ended."""
        self._warned: set[str] = set()
        load_langfuse()  # not in the thread: after a fork during the import, its lock would be held in the child
        self._begin()
        after_fork(self._begin)
        self._refresh()

    def _begin(self) -> None:
        """No fetch is going on, nor is one in a forked child, which uses what the parent knows until it has its own."""
        self._lock = threading.Lock()
        self._fetch: Future[None] | None = None
        self._fetched = 0.0
        """When the newest fetch ended."""
        self._until = float("inf")
        """The deadline of waiting for the first fetch."""

    async def current(self, labels: RunLabels | None = None) -> Prompts:
        """The prompts that were fetched last. Only the first call waits, for at most *wait* seconds."""
        fetch = self._refresh()
        if not self._answered:
            now = time.monotonic()
            self._until = min(self._until, now + self._wait)
            await asyncio.wait([asyncio.wrap_future(fetch)], timeout=max(0.0, self._until - now))
        return self._known

    def check_known(self, stages: Mapping[str, PromptedStage], name: str) -> None:
        """Check that the prompts are for a graph with these stages, without waiting for a fetch.

        Raises:
            PromptError: they are for another graph.
        """
        Prompts(dict.fromkeys(self._stages, Prompt())).check_known(stages, name)

    def _refresh(self) -> Future[None]:
        """The newest fetch; a new one if there is none yet, or if it is older than *ttl*."""
        with self._lock:
            fetch = self._fetch
            if fetch is None or (fetch.done() and time.monotonic() - self._fetched > self._ttl):
                fetch = self._fetch = _in_thread(self._ask)
            return fetch

    async def _ask(self) -> None:
        try:
            self._known = await self._read(self._known)
        except Exception as error:  # noqa: BLE001 - runs continue with the known prompts, whatever a server does
            self._warn([("", f"prompts of {self.graph.__node__.name} could not be fetched: {error!r}")])
        finally:
            self._fetched, self._answered = time.monotonic(), True

    async def _read(self, before: Prompts) -> Prompts:
        name, url = self.graph.__node__.name, self._connection.base_url
        found: dict[str, tuple[Prompt, Origin]] = {}
        problems: list[tuple[str, str]] = []

        async def one(path: str, stage: Stage[Any, Any]) -> None:
            try:
                version = await versions.get(path, self.label)
                if version is not None:
                    found[path] = _prompt_of(version, stage), Origin(versions.name(path), version.version)
            except (TracingError, PromptError) as error:
                problems.append((path, str(error)))
                if path in before:
                    found[path] = before[path], before.origins[path]

        async with _Versions(self._connection, self.graph, patience=0) as versions:
            await in_parallel([partial(one, path, stage) for path, stage in self._stages.items()], _CONCURRENCY)
        if self._stages and not found and not problems:
            problems.append(("", f"no prompt of {name} has the label {self.label!r} at {url}"))
        self._warn(problems)
        prompts = {path: prompt for path, (prompt, _) in found.items()}
        return Prompts(prompts, graph=name, origins={path: origin for path, (_, origin) in found.items()})

    def _warn(self, problems: list[tuple[str, str]]) -> None:
        """Log all problems in one warning; a stage's problem is logged again only after the stage had none."""
        new = [(path, problem) for path, problem in problems if path not in self._warned]
        self._warned = {path for path, _ in problems}
        if new:
            reasons = "; ".join(dict.fromkeys(problem for _, problem in new))
            stages = ", ".join(f"`{path}`" for path, _ in new if path)
            log.warning(
                "%s; until that changes, %s the text that was fetched before, or the code's text (logged once)",
                reasons,
                f"the prompt of {stages} is" if stages else "every prompt is",
            )

    def __repr__(self) -> str:
        return f"<prompts of {self.graph.__node__.name} in Langfuse, label {self.label!r}>"


langfuse_prompts = LangfusePrompts
"""The name to write: a runner or a run takes what it gives in place of `Prompts`."""


def deploy_prompts(
    prompts: Prompts,
    graph: Node[Any, Any],
    label: str = "candidate",
    *,
    provenance: Mapping[str, object] | None = None,
    message: str | None = None,
    connection: Connection | None = None,
) -> dict[str, int]:
    """Create a version of each stage's prompt in Langfuse, named `<graph>/<path>`, and move a label to it.

    If the newest version of a stage has the same content, it gets the label and there is no new version.

    Args:
        prompts: The prompts to deploy; a stage without one is deployed with the code's text.
        graph: The graph of the prompts.
        label: The label, which earlier versions lose.
        provenance: Their origin (optimizer, metric, data) as plain data, stored in each version's config.
        message: The versions' commit message.
        connection: The project; by default from the environment.

    Returns:
        Stage path -> version.

    Raises:
        PromptError: the prompts name stages or fields that the graph does not have.
        TracingError: the server does not accept a prompt; stages before the named one have been sent.
    """
    stages = stages_of(graph)
    prompts.check_known(stages, graph.__node__.name)

    async def send(versions: _Versions) -> dict[str, int]:
        found: dict[str, int] = {}
        for path, stage in stages.items():
            body = _body(prompts, path, stage, provenance)
            newest = await versions.get(path, "latest")
            parts = body["config"]["stagegraph"]["parts"]
            if newest is None or newest.prompt != body["prompt"] or _parts(newest) != parts:
                newest = await versions.make(path, {**body, "labels": [label], "commit_message": message})
            elif label not in newest.labels:
                await versions.give(path, newest.version, label)
            found[path] = newest.version
        return found

    return _now(send, graph, connection)


def _body(
    prompts: Prompts, path: str, stage: Stage[Any, Any], provenance: Mapping[str, object] | None
) -> dict[str, Any]:
    prompt = prompts.get(path, Prompt())
    text = prompt.instructions if prompt.instructions is not None else stage.instructions
    parts = {name: value for name, value in prompt.data().items() if name != "instructions"}
    own: dict[str, Any] = {"parts": parts, "digest": prompts.digest, "schema": stage.__node__.output_type.fingerprint}
    if provenance:
        own["provenance"] = json.loads(json.dumps(dict(provenance), default=str))
    return as_sent({"prompt": text or "", "config": {"stagegraph": own}}, "prompts")


def promote_prompts(
    graph: Node[Any, Any],
    *,
    source: str = "candidate",
    target: str = "production",
    connection: Connection | None = None,
) -> dict[str, int]:
    """Move the label *target* to the versions with the label *source*; `rollback_prompts` moves it back.

    Returns:
        Stage path -> version, of the stages that have a version with the label *source*.

    Raises:
        TracingError: no stage has such a version, or the server refuses.
    """
    return _move(graph, source, target, connection)[0]


def rollback_prompts(
    graph: Node[Any, Any], *, label: str = "production", connection: Connection | None = None
) -> dict[str, int]:
    """Undo the last promotion to *label*: each stage returns to the version that had the label before.

    A second rollback undoes the first.

    Returns:
        Stage path -> version, of the stages that had another version before.

    Raises:
        TracingError: there is no promotion to undo, or the server refuses.
    """
    new, changed = _move(graph, f"{label}{_BEFORE}", label, connection)
    if not changed:
        msg = f"the prompts of {graph.__node__.name} have no promotion to the label {label!r} that could be undone"
        raise TracingError(msg)
    return {path: new[path] for path in changed}


def _move(
    graph: Node[Any, Any], source: str, target: str, connection: Connection | None
) -> tuple[dict[str, int], list[str]]:
    """Move *target* to the versions with *source* and mark its old ones; returns all versions and the changed paths."""
    new: dict[str, int] = {}
    old: dict[str, int] = {}

    async def move(versions: _Versions) -> list[str]:
        for path in stages_of(graph):
            if (version := await versions.get(path, source)) is not None:
                new[path] = version.version
                if (before := await versions.get(path, target)) is not None:
                    old[path] = before.version
        changed = [path for path in new if new[path] != old.get(path)]
        for path in changed:
            await versions.give(path, new[path], target)
        # An unchanged stage is marked with its own version: a rollback undoes this promotion and no earlier one.
        for path in old if changed else ():
            await versions.give(path, old[path], f"{target}{_BEFORE}")
        return changed

    changed = _now(move, graph, connection)
    if not new:
        msg = f"no prompt of {graph.__node__.name} has the label {source!r} in Langfuse"
        raise TracingError(msg)
    return new, changed


def _in_thread(work: Callable[[], Coroutine[Any, Any, T]]) -> Future[T]:
    """Start *work* on an event loop of its own, in a thread that does not delay the end of the process."""
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(asyncio.run(work()))
        except BaseException as error:  # noqa: BLE001 - raised where the result is read
            future.set_exception(error)

    threading.Thread(target=run, name="stagegraph-prompts", daemon=True).start()
    return future


def _now(
    work: Callable[[_Versions], Coroutine[Any, Any, T]], graph: Node[Any, Any], connection: Connection | None
) -> T:
    """Do *work* in a thread, so that it also works while an event loop is running."""

    async def within() -> T:
        async with _Versions(connection, graph) as versions:
            return await work(versions)

    return _in_thread(within).result()
