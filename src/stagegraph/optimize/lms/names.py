"""Models as they are named before a run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from stagegraph.agent.models import chosen_model

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.nodes.stage import Stage
    from stagegraph.runner.runner import Runner


def name_of(model: Model[Any] | str | None) -> str | None:
    """A model's name, which is the same in every process."""
    return model if model is None or isinstance(model, str) else f"{model.system}:{model.model_name}"


def model_named(
    path: str,
    stage: Stage[Any, Any],
    runner: Runner | None,
    *,
    default: Model[Any] | str | None = None,
    own: Mapping[str, Model[Any] | str] | None = None,
) -> Model[Any] | str | None:
    """The model of a stage, or its name, chosen as a runner chooses it; `None` when no model is named."""
    of_runner: Mapping[str, Model[Any] | str] = {} if runner is None else runner.models
    general = default if default is not None or runner is None else runner.model
    return chosen_model(path, stage, of_run=own or {}, of_runner=of_runner, default=general)
