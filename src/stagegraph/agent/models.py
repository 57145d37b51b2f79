"""From a model's name to a model: Pydantic AI's names, and prefixes that packages add (such as `local:`)."""

from __future__ import annotations

from importlib.metadata import entry_points
from typing import TYPE_CHECKING

from pydantic_ai.models import Model, infer_model

from stagegraph.schema.errors import DeclarationError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import Any

    from stagegraph.nodes.stage import Stage

ENTRY_POINTS = "stagegraph.models"
"""A package adds a prefix with an entry point in this group: a function from what follows `prefix:` to a `Model`."""


def chosen_model(
    path: str,
    stage: Stage[Any, Any],
    *,
    of_run: Mapping[str, Model[Any] | str],
    of_runner: Mapping[str, Model[Any] | str],
    default: Model[Any] | str | None,
) -> Model[Any] | str | None:
    """The model of a stage, or its name: by path, stage, agent, run or runner; the more specific choice wins."""
    choices = (of_run.get(path), of_runner.get(path), stage.model, stage.agent.model, default)
    return next((choice for choice in choices if choice is not None), None)


def name_of(model: Model[Any] | str | None) -> str | None:
    """A model's name, which is the same in every process."""
    return model if model is None or isinstance(model, str) else f"{model.system}:{model.model_name}"


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
        form = "a name is `provider:model`, such as `openai:gpt-5-mini`, or `local:smollm2` for the embedded model"
        hint = f"; {form}" if str(error).startswith("Unknown") else ""
        msg = f"the model {name!r} cannot be used: {error}{hint}"
        raise DeclarationError(msg) from error
