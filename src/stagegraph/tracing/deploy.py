"""Versions of prompts in Langfuse: made, promoted and taken back by label."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine, Mapping
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

from stagegraph.data.prompt import Prompt
from stagegraph.nodes.stage import stages_of
from stagegraph.schema.errors import TracingError

from ._connection import Connection
from ._prompt_rows import body_of, name_of, own_part
from ._rest import NotFoundError, Rest

if TYPE_CHECKING:
    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node

__all__ = ["promote_prompts", "push", "rollback_prompts"]

T = TypeVar("T")

_BEFORE = "before"


def push(
    prompts: Prompts,
    graph: Node[Any, Any],
    *,
    label: str = "candidate",
    provenance: Mapping[str, object] | None = None,
    message: str | None = None,
    connection: Connection | None = None,
) -> dict[str, int]:
    """Make a version of each stage's prompt and give it a label; what `Prompts.to_langfuse` does.

    A stage whose newest version says the same gets the label and no new version.

    Args:
        prompts: What to deploy; a stage that is not in them goes with the code's text.
        graph: What they are for.
        label: The label that the versions get, and others lose.
        provenance: What a reader should know about where they come from (optimizer, metric, data): plain data.
        message: A line about the change.
        connection: Which project; the environment says it otherwise.

    Returns:
        Stage path -> version.

    Raises:
        PromptError: the prompts do not fit the graph.
        TracingError: the server does not take them; stages before the one it names have been sent.
    """
    stages = stages_of(graph)
    prompts.check_known(stages, graph.__node__.name)

    async def send() -> dict[str, int]:
        versions: dict[str, int] = {}
        async with Rest(connection or Connection.of(), patience=20) as rest:
            for path, stage in stages.items():
                prompt = prompts.get(path, Prompt())
                body = body_of(prompt, stage, prompts.digest, provenance)
                versions[path] = await _push_one(rest, name_of(graph.__node__.name, path), body, label, message)
        return versions

    return _now(send())


async def _push_one(rest: Rest, name: str, body: dict[str, Any], label: str, message: str | None) -> int:
    where = f"v2/prompts/{quote(name, safe='')}"
    try:
        newest = await rest.get(where, label="latest")
    except NotFoundError:
        newest = {}
    if newest.get("prompt") == body["prompt"] and (own_part(newest).get("parts") or {}) == own_part(body)["parts"]:
        version = _number(newest, where)
        if label not in newest.get("labels", ()):
            await rest.patch(f"{where}/versions/{version}", {"newLabels": [label]})
        return version
    full = {"name": name, "type": "text", "labels": [label], "tags": ["stagegraph"], **body, "commitMessage": message}
    answer = await rest.post("v2/prompts", full)
    return _number(answer, where)


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
    return _relabel(graph, source, target, connection)


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
    return _relabel(graph, None, label, connection)


def _relabel(graph: Node[Any, Any], source: str | None, target: str, connection: Connection | None) -> dict[str, int]:
    """Move *target* to what carries *source*, or back when there is no source, and remember where it was."""
    before = f"{target}-{_BEFORE}"
    wanted = source or before

    async def move() -> dict[str, int]:
        new: dict[str, int] = {}
        old: dict[str, int | None] = {}
        async with Rest(connection or Connection.of(), patience=20) as rest:
            for path in stages_of(graph):
                version = await _version(rest, _where(graph, path), wanted)
                if version is not None:
                    new[path], old[path] = version, await _version(rest, _where(graph, path), target)
            changed = [path for path in new if new[path] != old[path]]
            if not new or (source is None and not changed):
                msg = f"no prompt of {graph.__node__.name} carries the label {wanted!r} in Langfuse"
                if new:
                    msg = f"the prompts of {graph.__node__.name} with the label {target!r} are what they were before it"
                raise TracingError(msg)
            for path in changed:
                await rest.patch(f"{_where(graph, path)}/versions/{new[path]}", {"newLabels": [target]})
            # A stage that stays remembers its own version: a rollback undoes this promotion, none before it.
            for path in new if changed else ():
                if old[path] is not None:
                    await rest.patch(f"{_where(graph, path)}/versions/{old[path]}", {"newLabels": [before]})
        return new if source is not None else {path: new[path] for path in changed}

    return _now(move())


def _where(graph: Node[Any, Any], path: str) -> str:
    return f"v2/prompts/{quote(name_of(graph.__node__.name, path), safe='')}"


async def _version(rest: Rest, where: str, label: str) -> int | None:
    try:
        return _number(await rest.get(where, label=label), where)
    except NotFoundError:
        return None


def _number(row: Mapping[str, Any], where: str) -> int:
    version = row.get("version")
    if not isinstance(version, int):
        msg = f"what the server has as {where} has no version"
        raise TracingError(msg)
    return version


def _now(work: Coroutine[Any, Any, T]) -> T:
    """Run it to its end from code of any kind: in a thread of its own, a running event loop does not matter."""
    result: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            result.append(asyncio.run(work))
        except BaseException as error:  # noqa: BLE001 - raised again in the caller's thread
            failure.append(error)

    thread = threading.Thread(target=run, name="stagegraph-langfuse")
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return result[0]
