"""Prompts in Langfuse: deployed, promoted and rolled back by label, and read without delaying a run."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

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
_PATIENCE = 20.0


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


class _Versions:
    """The prompt versions of one graph: one prompt per stage, named `<graph>/<path>`."""

    def __init__(self, api: Api, graph: Node[Any, Any]) -> None:
        self._api = api
        self._graph = graph.__node__.name

    def name(self, path: str) -> str:
        """The name of a stage's prompt; for a stage that runs by itself, only its own name."""
        return self._graph if self._graph == path else f"{self._graph}/{path}"

    async def get(self, path: str, label: str) -> Version | None:
        """The version with a label."""
        name = self.name(path)
        try:
            return await self._api.ask(f"prompts/{name}", self._api.sdk.prompts.get, quote(name, safe=""), label=label)
        except NotFoundError:
            return None

    async def give(self, path: str, version: int, label: str) -> None:
        """Move a label to a version."""
        name = self.name(path)
        update = self._api.sdk.prompt_version.update
        await self._api.ask(f"prompts/{name}", update, quote(name, safe=""), version, new_labels=[label])

    async def make(self, path: str, body: Mapping[str, object]) -> Version:
        from langfuse.api import CreateTextPromptRequest  # noqa: PLC0415

        name = self.name(path)
        request = CreateTextPromptRequest.model_validate({"name": name, "tags": ["stagegraph"], **body})
        return await self._api.ask(f"prompts/{name}", self._api.sdk.prompts.create, request=request)


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
        self._state = Prompts(graph=graph.__node__.name)
        self._warned: set[str] = set()
        load_langfuse()  # not in the thread: after a fork during the import, its lock would be held in the child
        self._begin()
        after_fork(self._forked)
        self._refresh()

    def _begin(self) -> None:
        self._fetched = -float("inf")
        self._answered: Future[None] = Future()
        """Done after the first fetch."""
        self._until = float("inf")
        """The deadline of waiting for the first fetch."""
        self._one = threading.Lock()
        self._asked = False

    def _forked(self) -> None:
        """Fetch again on first use in a forked child, which has no thread, and where the parent's locks may be held.

        Until then it uses what the parent had fetched.
        """
        known = self._answered.done()
        self._begin()
        if known:
            self._answered.set_result(None)

    async def current(self, labels: RunLabels | None = None) -> Prompts:
        """The prompts that were fetched last. Only the first call waits, for at most *wait* seconds."""
        if self._answered.done():
            if time.monotonic() - self._fetched > self._ttl:
                self._refresh()
            return self._state
        if not self._asked:
            self._refresh()
        now = time.monotonic()
        self._until = min(self._until, now + self._wait)
        await asyncio.wait([asyncio.wrap_future(self._answered)], timeout=max(0.0, self._until - now))
        return self._state

    def check_known(self, stages: Mapping[str, PromptedStage], name: str) -> None:
        """Check that the prompts are for a graph with these stages, without waiting for a fetch.

        Raises:
            PromptError: they are for another graph.
        """
        Prompts(dict.fromkeys(self._stages, Prompt())).check_known(stages, name)

    def _refresh(self) -> None:
        self._asked = True
        if self._one.acquire(blocking=False):
            threading.Thread(target=self._fetch, name="stagegraph-prompts", daemon=True).start()

    def _fetch(self) -> None:
        try:
            self._state = asyncio.run(self._ask())
        except Exception as error:  # noqa: BLE001 - runs continue with the known prompts, whatever a server does
            self._warn([("", f"prompts of {self.graph.__node__.name} could not be fetched: {error!r}")])
        finally:
            self._fetched = time.monotonic()
            self._one.release()
            if not self._answered.done():
                self._answered.set_result(None)

    async def _ask(self) -> Prompts:
        missing: list[str] = []
        problems: list[tuple[str, str]] = []
        slots = asyncio.Semaphore(_CONCURRENCY)
        before = self._state

        async def one(path: str, stage: Stage[Any, Any]) -> tuple[Prompt, Origin] | None:
            try:
                async with slots:
                    version = await versions.get(path, self.label)
                if version is not None:
                    return _prompt_of(version, stage), Origin(versions.name(path), version.version)
                missing.append(path)
            except (TracingError, PromptError) as error:
                problems.append((path, str(error)))
                if path in before:
                    return before[path], before.origins[path]
            return None

        async with Api(self._connection, patience=0) as api:
            versions = _Versions(api, self.graph)
            answers = await asyncio.gather(*(one(path, stage) for path, stage in self._stages.items()))
        if self._stages and len(missing) == len(self._stages):
            where = self._connection.base_url
            problems.append(("", f"no prompt of {self.graph.__node__.name} has the label {self.label!r} at {where}"))
        self._warn(problems)
        found = {path: one for path, one in zip(self._stages, answers, strict=True) if one is not None}
        return Prompts(
            {path: prompt for path, (prompt, _) in found.items()},
            graph=self.graph.__node__.name,
            origins={path: origin for path, (_, origin) in found.items()},
        )

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
        return {
            path: await _deploy_one(versions, path, label, _body(prompts, path, stage, provenance), message)
            for path, stage in stages.items()
        }

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


async def _deploy_one(versions: _Versions, path: str, label: str, body: dict[str, Any], message: str | None) -> int:
    newest, parts = await versions.get(path, "latest"), body["config"]["stagegraph"]["parts"]
    if newest is not None and newest.prompt == body["prompt"] and _parts(newest) == parts:
        if label not in newest.labels:
            await versions.give(path, newest.version, label)
        return newest.version
    made = await versions.make(path, {**body, "type": "text", "labels": [label], "commit_message": message})
    return made.version


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

    async def promote(versions: _Versions) -> dict[str, int]:
        new, _ = await _move(versions, graph, source, target)
        return new

    return _now(promote, graph, connection)


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

    async def roll_back(versions: _Versions) -> dict[str, int]:
        new, changed = await _move(versions, graph, _before(label), label)
        if not changed:
            msg = f"the prompts of {graph.__node__.name} have no promotion to the label {label!r} that could be undone"
            raise TracingError(msg)
        return {path: new[path] for path in changed}

    return _now(roll_back, graph, connection)


def _before(label: str) -> str:
    """The label of the versions that had *label* before."""
    return f"{label}-before"


async def _move(
    versions: _Versions, graph: Node[Any, Any], source: str, target: str
) -> tuple[dict[str, int], list[str]]:
    """Move *target* to the versions with *source* and mark its old ones; returns all versions and the changed paths."""
    new: dict[str, int] = {}
    old: dict[str, int | None] = {}
    for path in stages_of(graph):
        version = await versions.get(path, source)
        if version is not None:
            before = await versions.get(path, target)
            new[path], old[path] = version.version, None if before is None else before.version
    if not new:
        msg = f"no prompt of {graph.__node__.name} has the label {source!r} in Langfuse"
        raise TracingError(msg)
    changed = [path for path in new if new[path] != old[path]]
    for path in changed:
        await versions.give(path, new[path], target)
    # An unchanged stage is marked with its own version: a rollback undoes this promotion and no earlier one.
    for path in new if changed else ():
        was = old[path]
        if was is not None:
            await versions.give(path, was, _before(target))
    return new, changed


def _now(
    work: Callable[[_Versions], Coroutine[Any, Any, T]], graph: Node[Any, Any], connection: Connection | None
) -> T:
    """Do *work* in a thread, so that it also works while an event loop is running."""

    async def within() -> T:
        async with Api(connection or Connection.of(), patience=_PATIENCE) as api:
            return await work(_Versions(api, graph))

    with ThreadPoolExecutor(1, "stagegraph-langfuse") as pool:
        return pool.submit(asyncio.run, within()).result()
