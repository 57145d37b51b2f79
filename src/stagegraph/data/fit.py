"""Whether prompts fit a graph: what they name that is not there, and demos that are none."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from stagegraph.schema.errors import first_problem

from .prompt import Prompt

if TYPE_CHECKING:
    from stagegraph.nodes.stage import Stage

__all__ = ["unfit_demos", "unknown_fields", "unknown_stages", "unknown_tools"]

_SHOWN = 20
"""Names that an error lists."""


def unknown_stages(paths: Iterable[str], stages: Iterable[str]) -> list[str]:
    """What is wrong with the paths of prompts, by the paths of a graph's stages."""
    known = list(stages)
    return [f"there is no stage `{path}`{_near(path, known)}" for path in paths if path not in known]


def unknown_fields(path: str, prompt: Prompt, stage: Stage[Any, Any]) -> list[str]:
    """Fields that a prompt describes and that the stage's answer does not have."""
    return _unknown(path, "output field", prompt.fields, stage.fields) if prompt.fields else []


def unknown_tools(path: str, prompt: Prompt, stage: Stage[Any, Any]) -> list[str]:
    """Tools that a prompt describes and that the stage's agent does not have.

    What a server or a function gives at run time is not known before: where there is such a thing, no name is wrong.
    """
    if not prompt.tools:
        return []
    tools, whole = stage.tools
    return _unknown(path, "tool", prompt.tools, tools) if whole else []


def unfit_demos(path: str, prompt: Prompt, stage: Stage[Any, Any]) -> list[str]:
    """What is wrong with a stage's demos, by its types."""
    problems: list[str] = []
    for number, demo in enumerate(prompt.demos, 1):
        for schema, value, what in (
            (stage.__node__.input_type, demo.input, "input"),
            (stage.__node__.output_type, demo.output, "output"),
        ):
            try:
                schema.load(value)
            except ValidationError as error:
                problems.append(f"`{path}`, {what} of demo {number} is no {schema.name}: {first_problem(error)}")
    return problems


def _unknown(path: str, what: str, names: Iterable[str], known: Mapping[str, object]) -> list[str]:
    there = ", ".join(f"`{name}`" for name in list(known)[:_SHOWN]) or "none"
    more = len(known) - _SHOWN
    if more > 0:
        there += f" and {more} more"
    wrong = [name for name in names if name not in known]
    return [f"`{path}` has no {what} `{name}`{_near(name, known)}; there are: {there}" for name in wrong]


def _near(name: str, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean `{near[0]}`?)" if near else ""
