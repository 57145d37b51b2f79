"""How a stage's prompt stands in Langfuse: its name, its text, and in its config what Langfuse has no field for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, cast

from stagegraph.data.prompt import Prompt, parsed, unfit_demos, unknown_fields
from stagegraph.schema.errors import PromptError

if TYPE_CHECKING:
    from stagegraph.nodes.stage import Stage

__all__ = ["body_of", "name_of", "own_part", "prompt_of"]

_CONFIG = "stagegraph"
"""Under this name in the config stand demos, the texts of tools and fields, and provenance."""


def name_of(graph: str, path: str) -> str:
    """How the prompt of a stage is called in Langfuse; a stage that is run by itself has its own name alone."""
    return graph if graph == path else f"{graph}/{path}"


def body_of(
    prompt: Prompt, stage: Stage[Any, Any], digest: str, provenance: Mapping[str, object] | None
) -> dict[str, Any]:
    """What is sent to make a version."""
    text = prompt.instructions if prompt.instructions is not None else stage.instructions
    parts = {name: value for name, value in prompt.data().items() if name != "instructions"}
    own: dict[str, Any] = {"parts": parts, "digest": digest, "schema": stage.__node__.output_type.fingerprint}
    if provenance:
        own["provenance"] = json.loads(json.dumps(dict(provenance), default=str))
    return {"prompt": text or "", "config": {_CONFIG: own}}


def own_part(row: Mapping[str, Any]) -> dict[str, Any]:
    """What this package keeps in the config of a version; nothing when somebody else made it."""
    return _mapping(_mapping(row.get("config")).get(_CONFIG))


def _mapping(value: object) -> dict[str, Any]:
    return cast("dict[str, Any]", value) if isinstance(value, dict) else {}


def prompt_of(stage: Stage[Any, Any], row: Mapping[str, Any], name: str) -> tuple[Prompt, int]:
    """What a version says, as far as this stage can use it.

    Raises:
        PromptError: it cannot.
    """
    text, version = row.get("prompt"), row.get("version")
    if row.get("type", "text") != "text" or not isinstance(text, str) or not isinstance(version, int):
        msg = f"{name} is no text prompt with a version"
        raise PromptError(msg)
    own = _mapping(row.get("config")).get(_CONFIG, {})
    parts: object = cast("dict[str, object]", own).get("parts", {}) if isinstance(own, dict) else None
    if not isinstance(parts, dict):
        msg = f"{name}, version {version}: {_CONFIG!r} in its config holds no parts of a prompt"
        raise PromptError(msg)
    prompt = parsed(name, {**cast("dict[str, object]", parts), "instructions": text}, "Langfuse")
    problems = unknown_fields(name, prompt, stage) + unfit_demos(name, prompt, stage)
    if problems:
        msg = f"version {version} of {name} does not fit the stage: {'; '.join(problems)}"
        raise PromptError(msg)
    return prompt, version
