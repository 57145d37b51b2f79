"""From a model's name to a model: Pydantic AI's names, and prefixes that packages add (such as `local:`)."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from pydantic_ai.models import Model, infer_model

from stagegraph.schema.errors import DeclarationError

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

ENTRY_POINTS = "stagegraph.models"
"""A package adds a prefix with an entry point in this group: a function from what follows `prefix:` to a `Model`."""


class Models:
    """Models by name, each made once: a provider's connection pool belongs to its model."""

    def __init__(self) -> None:
        self._made: dict[str, Model[Any]] = {}

    def get(self, model: Model[Any] | str) -> Model[Any]:
        """The model itself, or the one a name stands for.

        Raises:
            DeclarationError: the name is unknown, or its provider cannot be set up (no key, a missing package).
        """
        if not isinstance(model, str):
            return model
        if model not in self._made:
            self._made[model] = _make(model)
        return self._made[model]


def _make(name: str) -> Model[Any]:
    prefix, _, rest = name.partition(":")
    try:
        for entry in entry_points(group=ENTRY_POINTS, name=prefix):
            make: Callable[[str], Model[Any]] = entry.load()
            return make(rest)
        return infer_model(name)
    except DeclarationError:
        raise
    except Exception as error:
        msg = (
            f"the model {name!r} cannot be used: {error}. A name is `provider:model`, such as `openai:gpt-5-mini`, "
            "or `local:smollm2` for the embedded model"
        )
        raise DeclarationError(msg) from error
