"""What determines the output of a leaf call, as hashes of its parts.

Not in it, and said in the docs: deps, the clock, the text of dynamic instructions, a tool's code (`version=` is for
that).
"""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any, cast

from pydantic_ai.toolsets import FunctionToolset

from stagegraph.data.prompt import Prompt
from stagegraph.schema.serialize import hashed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from pydantic_ai.models import Model

    from stagegraph.nodes.describe import Offered
    from stagegraph.nodes.stage import Stage
    from stagegraph.nodes.step import Step

__all__ = ["Fixed", "stage_parts", "step_parts"]

_SECRET_SETTINGS = frozenset({"extra_headers", "extra_body", "api_key", "headers"})


class Fixed:
    """What all calls of one node in one run have in common."""

    def __init__(self, path: str, parts: dict[str, str]) -> None:
        self.parts = parts
        """The hash of each part, by what a person calls it."""
        self.json = json.dumps(parts)
        self._seed = blake2b(hashed(path, *parts.values()).encode(), digest_size=12)

    def identity(self, input_json: bytes) -> str:
        """The identity of one call: where it is declared, what its node is, and what it is given."""
        digest = self._seed.copy()
        digest.update(input_json)
        return digest.hexdigest()


def step_parts(step: Step[Any, Any]) -> dict[str, str]:
    return {"the output type": step.__node__.output_type.fingerprint, "the version": hashed(str(step.version))}


def stage_parts(stage: Stage[Any, Any], prompt: Prompt | None, model: Model[Any] | None) -> dict[str, str]:
    """What a stage call depends on besides its input; the same for all calls of a stage in a run."""
    text = prompt.instructions if prompt is not None and prompt.instructions is not None else stage.instructions
    return {
        "the prompt": hashed(text.strip(), json.dumps(_extras(stage, prompt or Prompt()), sort_keys=True)),
        "the model": hashed(model.model_id if model is not None else "", _settings_text(stage)),
        "the output type": stage.__node__.output_type.fingerprint,
        "the tools": hashed(*sorted(_tool_names(stage))),
        "the version": hashed(str(stage.version)),
    }


def _extras(stage: Stage[Any, Any], prompt: Prompt) -> dict[str, Any]:
    """What a prompt says besides its instructions, as far as it is something else than what the code says."""
    data: dict[str, Any] = {name: value for name, value in prompt.data().items() if name == "demos"}
    if prompt.tools:
        data["tools"] = _changed(prompt.tools, stage.tools[0])
    if prompt.fields:
        data["fields"] = _changed(prompt.fields, stage.fields)
    return {name: value for name, value in data.items() if value}


def _changed(texts: Mapping[str, str], known: Mapping[str, Offered]) -> dict[str, str]:
    return {name: text for name, text in texts.items() if name not in known or known[name].text != text}


def _settings_text(stage: Stage[Any, Any]) -> str:
    """Model settings as text, without what is secret or cannot be written down."""
    settings: dict[str, Any] = {}
    for source in (getattr(stage.agent, "model_settings", None), stage.model_settings):
        if isinstance(source, dict):
            settings.update(cast("dict[str, Any]", source))
    kept = {name: value for name, value in settings.items() if name not in _SECRET_SETTINGS}
    return json.dumps(kept, sort_keys=True, default=lambda value: type(value).__name__)


def _tool_names(stage: Stage[Any, Any]) -> set[str]:
    names: set[str] = set()
    for toolset in stage.agent.toolsets:
        toolset.apply(lambda leaf: names.update(leaf.tools if isinstance(leaf, FunctionToolset) else {leaf.id or ""}))
    return names
