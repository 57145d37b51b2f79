"""Prompts that live in Langfuse: deployed, promoted and taken back by label, and read without holding up a run."""

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

from pydantic import BaseModel, ValidationError

from stagegraph.data.prompt import Origin, Prompt, PromptedStage, parsed, unfit_demos, unknown_fields
from stagegraph.data.prompts import Prompts
from stagegraph.nodes.stage import stages_of
from stagegraph.schema.errors import PromptError, TracingError

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


class _Own(BaseModel):
    """What this package keeps in the config of a version: demos, and the texts of tools and fields."""

    parts: dict[str, Any] = {}


class _Config(BaseModel):
    stagegraph: _Own = _Own()


def _prompt_of(version: Version, stage: Stage[Any, Any]) -> Prompt:
    """A version as a prompt of this stage."""
    name = f"{version.name}, version {version.version},"
    if not isinstance(version.prompt, str):
        msg = f"{name} is no text prompt"
        raise PromptError(msg)
    parts = _parts(version)
    if parts is None:
        msg = f"{name} has no parts of a prompt under 'stagegraph' in its config"
        raise PromptError(msg)
    prompt = parsed(version.name, {**parts, "instructions": version.prompt}, "Langfuse")
    problems = unknown_fields(version.name, prompt, stage) + unfit_demos(version.name, prompt, stage)
    if problems:
        msg = f"{name} does not fit the stage: {'; '.join(problems)}"
        raise PromptError(msg)
    return prompt


def _parts(version: Version) -> dict[str, Any] | None:
    """What a version has beside its text; `None` when its config is not what this package writes there."""
    try:
        return _Config.model_validate(version.config or {}).stagegraph.parts
    except ValidationError:
        return None


class _Versions:
    """The versions of the prompts of one graph: one prompt a stage, named `<graph>/<path>`."""

    def __init__(self, api: Api, graph: Node[Any, Any]) -> None:
        self._api = api
        self._graph = graph.__node__.name

    def name(self, path: str) -> str:
        """The name of a stage's prompt; a stage that is run by itself has its own name alone."""
        return self._graph if self._graph == path else f"{self._graph}/{path}"

    async def get(self, path: str, label: str) -> Version | None:
        """The version that carries a label."""
        name = self.name(path)
        try:
            return await self._api.ask(f"prompts/{name}", self._api.sdk.prompts.get, quote(name, safe=""), label=label)
        except NotFoundError:
            return None

    async def give(self, path: str, version: int, label: str) -> None:
        """Give a version a label, which others lose."""
        name = self.name(path)
        update = self._api.sdk.prompt_version.update
        await self._api.ask(f"prompts/{name}", update, quote(name, safe=""), version, new_labels=[label])

    async def make(self, path: str, body: Mapping[str, object]) -> Version:
        """Make a new version."""
        from langfuse.api import CreateTextPromptRequest  # noqa: PLC0415

        name = self.name(path)
        request = CreateTextPromptRequest.model_validate({"name": name, "tags": ["stagegraph"], **body})
        return await self._api.ask(f"prompts/{name}", self._api.sdk.prompts.create, request=request)


class LangfusePrompts:
    """The prompts of a graph that carry a label in Langfuse now: a `PromptSource`; what `langfuse_prompts` gives.

    They are fetched in a thread, at once and again when they are older than *ttl*. Whatever is wrong with them or with
    the server, a stage keeps what it had: what was fetched before, or else the code's text.

    Args:
        graph: What they are for: the prompt of each stage is named `<graph>/<path>`.
        label: Which version of each: `production`, `candidate`.
        ttl: Seconds after which a run lets them be fetched again (it does not wait for it).
        wait: Seconds that the first run waits at most for the first answer.
        connection: Which project; Langfuse's own environment variables say it otherwise.

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
        load_langfuse()  # not in the thread: a fork meanwhile would leave its lock held in the child
        self._begin()
        after_fork(self._forked)
        self._refresh()

    def _begin(self) -> None:
        self._fetched = -float("inf")
        self._answered: Future[None] = Future()
        """Done when the first answer is there."""
        self._until = float("inf")
        """When the time is over that the first answer is waited for."""
        self._one = threading.Lock()
        self._asked = False

    def _forked(self) -> None:
        """Fetch anew in a forked child, when it first asks: the parent's thread is not here, and its locks may be held.

        What the parent knew already is used meanwhile, as it would be there.
        """
        known = self._answered.done()
        self._begin()
        if known:
            self._answered.set_result(None)

    async def current(self, labels: RunLabels | None = None) -> Prompts:
        """The prompts in force now: what was fetched last. Only the first call waits, at most for *wait* seconds."""
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
        """Make sure that they are for a graph with these stages, without waiting for them.

        Raises:
            PromptError: they are for another one.
        """
        Prompts(dict.fromkeys(self._stages, Prompt())).check_known(stages, name)

    def _refresh(self) -> None:
        self._asked = True
        if self._one.acquire(blocking=False):
            threading.Thread(target=self._fetch, name="stagegraph-prompts", daemon=True).start()

    def _fetch(self) -> None:
        try:
            self._state = asyncio.run(self._ask())
        except Exception as error:  # noqa: BLE001 - whatever a server does, runs go on with what there is
            self._warn([("", f"prompts of {self.graph.__node__.name} could not be fetched: {error!r}")])
        finally:
            self._fetched = time.monotonic()
            self._one.release()
            if not self._answered.done():
                self._answered.set_result(None)

    async def _ask(self) -> Prompts:
        found: dict[str, tuple[Prompt, Origin]] = {}
        missing: list[str] = []
        problems: list[tuple[str, str]] = []
        slots = asyncio.Semaphore(_CONCURRENCY)
        before = self._state

        async def one(path: str, stage: Stage[Any, Any]) -> None:
            try:
                async with slots:
                    version = await versions.get(path, self.label)
                if version is None:
                    missing.append(path)
                else:
                    found[path] = _prompt_of(version, stage), Origin(versions.name(path), version.version)
            except (TracingError, PromptError) as error:
                problems.append((path, str(error)))
                if path in before:
                    found[path] = before[path], before.origins[path]

        async with Api(self._connection, patience=0) as api:
            versions = _Versions(api, self.graph)
            await asyncio.gather(*(one(path, stage) for path, stage in self._stages.items()))
        if self._stages and len(missing) == len(self._stages):
            where = self._connection.base_url
            problems.append(("", f"no prompt of {self.graph.__node__.name} has the label {self.label!r} at {where}"))
        self._warn(problems)
        order = [path for path in self._stages if path in found]
        return Prompts(
            {path: found[path][0] for path in order},
            graph=self.graph.__node__.name,
            origins={path: found[path][1] for path in order},
        )

    def _warn(self, problems: list[tuple[str, str]]) -> None:
        """Log what is wrong, in one warning, and again only after it was right in between."""
        new = [(path, problem) for path, problem in problems if path not in self._warned]
        self._warned = {path for path, _ in problems}
        if new:
            reasons = "; ".join(dict.fromkeys(problem for _, problem in new))
            stages = ", ".join(f"`{path}`" for path, _ in new if path)
            log.warning(
                "%s; until that changes, %s what it said before, or what the code says (said once)",
                reasons,
                f"the prompt of {stages} is" if stages else "every prompt is",
            )

    def __repr__(self) -> str:
        return f"<prompts of {self.graph.__node__.name} in Langfuse, label {self.label!r}>"


def langfuse_prompts(
    graph: Node[Any, Any], label: str = "production", *, ttl: float = 60.0, wait: float = 2.0
) -> LangfusePrompts:
    """The prompts of a graph that carry a label in Langfuse: what a runner or a run takes in place of `Prompts`.

    Raises:
        DeclarationError: the keys are not set.
    """
    return LangfusePrompts(graph, label, ttl=ttl, wait=wait)


def deploy_prompts(
    prompts: Prompts,
    graph: Node[Any, Any],
    label: str = "candidate",
    *,
    provenance: Mapping[str, object] | None = None,
    message: str | None = None,
    connection: Connection | None = None,
) -> dict[str, int]:
    """Make a version of each stage's prompt in Langfuse, named `<graph>/<path>`, and give it a label.

    A stage whose newest version says the same gets the label and no new version.

    Args:
        prompts: What to deploy; a stage that is not in them goes with the code's text.
        graph: What they are for.
        label: The label that the versions get, and others lose.
        provenance: Where they come from (optimizer, metric, data), as plain data; it stands in each version's config.
        message: A line about the change.
        connection: Which project; the environment says it otherwise.

    Returns:
        Stage path -> version.

    Raises:
        PromptError: the prompts name stages or fields that the graph does not have.
        TracingError: the server does not take them; stages before the one it names have been sent.
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
    """The text and the config of a version."""
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
    """Give the label *target* to what carries *source*; what carried it before stays known for `rollback_prompts`.

    Returns:
        Stage path -> version, of the stages that have a version with the label *source*.

    Raises:
        TracingError: no stage has one, or the server refuses.
    """

    async def promote(versions: _Versions) -> dict[str, int]:
        new, _ = await _move(versions, graph, source, target)
        return new

    return _now(promote, graph, connection)


def rollback_prompts(
    graph: Node[Any, Any], *, label: str = "production", connection: Connection | None = None
) -> dict[str, int]:
    """Undo the last promotion to *label*: each stage goes back to the version that carried it before.

    Rolling back once more undoes the rollback.

    Returns:
        Stage path -> version, of the stages that had another version before.

    Raises:
        TracingError: there is nothing to go back to, or the server refuses.
    """

    async def roll_back(versions: _Versions) -> dict[str, int]:
        new, changed = await _move(versions, graph, _before(label), label)
        if not changed:
            msg = f"the prompts of {graph.__node__.name} with the label {label!r} are what they were before it"
            raise TracingError(msg)
        return {path: new[path] for path in changed}

    return _now(roll_back, graph, connection)


def _before(label: str) -> str:
    """The label of what carried a label before."""
    return f"{label}-before"


async def _move(
    versions: _Versions, graph: Node[Any, Any], source: str, target: str
) -> tuple[dict[str, int], list[str]]:
    """Move *target* to what carries *source*, and remember where it was; gives all versions, and what changed."""
    new: dict[str, int] = {}
    old: dict[str, int | None] = {}
    for path in stages_of(graph):
        version = await versions.get(path, source)
        if version is not None:
            before = await versions.get(path, target)
            new[path], old[path] = version.version, None if before is None else before.version
    if not new:
        msg = f"no prompt of {graph.__node__.name} carries the label {source!r} in Langfuse"
        raise TracingError(msg)
    changed = [path for path in new if new[path] != old[path]]
    for path in changed:
        await versions.give(path, new[path], target)
    # A stage that stays remembers its own version: a rollback undoes this promotion, none before it.
    for path in new if changed else ():
        was = old[path]
        if was is not None:
            await versions.give(path, was, _before(target))
    return new, changed


def _now(
    work: Callable[[_Versions], Coroutine[Any, Any, T]], graph: Node[Any, Any], connection: Connection | None
) -> T:
    """Run it to its end from code of any kind: in a thread of its own, a running event loop does not matter."""

    async def within() -> T:
        async with Api(connection or Connection.of(), patience=_PATIENCE) as api:
            return await work(_Versions(api, graph))

    with ThreadPoolExecutor(1, "stagegraph-langfuse") as pool:
        return pool.submit(asyncio.run, within()).result()
