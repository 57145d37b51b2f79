"""The texts that a search changes: a stage's instructions and, on request, what it says about its tools and fields."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args
from zlib import crc32

from stagegraph.data.prompt import Prompt
from stagegraph.schema.errors import TuningError

if TYPE_CHECKING:
    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.describe import Offered
    from stagegraph.nodes.stage import Stage

__all__ = [
    "Component",
    "EngineName",
    "Kind",
    "Texts",
    "Tuned",
    "checked_kinds",
    "components_of",
    "name_of_part",
    "prompts_of",
]

Tuned = Literal["instructions", "tools", "fields"]
"""What a search may be asked to change."""
Kind = Literal["instructions", "tool", "field"]
"""What one text is."""
Texts = Mapping[str, str]
"""Name of a component -> text."""


class EngineName(str):
    """A component's name inside GEPA's engine: its hash is the same in every process.

    A merge goes over a set of names and draws lots by the way, so with the hash of a `str`, which every process salts
    anew, the same search would go another way in another process. Outside the engine names are plain texts.
    """

    __slots__ = ()

    def __hash__(self) -> int:
        return crc32(self.encode("utf-8", "surrogatepass"))

    __eq__ = str.__eq__

    @classmethod
    def given(cls, texts: Texts) -> dict[str, str]:
        """A candidate as the engine gets it."""
        return {cls(name): text for name, text in texts.items()}

    @classmethod
    def taken(cls, texts: Texts) -> dict[str, str]:
        """A candidate as the engine gives it."""
        return {str(name): text for name, text in texts.items()}


@dataclass(frozen=True, slots=True)
class Component:
    """One text that is changed on its own."""

    path: str
    """The stage."""
    kind: Kind
    part: str
    """The tool's name or the field's path; empty for instructions."""
    seed: str
    """The text to start from."""
    own: str | None
    """The code's text; `None` for a tool that is not known before a run."""
    kept: bool
    """Whether it is in the prompts to start from, so that it is in those that come out, too."""
    schema: str = ""
    """The JSON schema of the tool's parameters or of the field."""

    @property
    def name(self) -> str:
        """What it is called in candidates: `plan`, `plan:tool:search`, `plan:field:title`."""
        return name_of_part(self.path, self.kind, self.part)


def name_of_part(path: str, kind: Kind, part: str) -> str:
    return path if kind == "instructions" else f"{path}:{kind}:{part}"


def checked_kinds(kinds: Iterable[Tuned]) -> tuple[Tuned, ...]:
    """What to change, each once and in one order.

    Raises:
        TuningError: nothing, or something else.
    """
    known: tuple[Tuned, ...] = get_args(Tuned)
    given = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    unknown = [kind for kind in given if kind not in known]
    if unknown or not given:
        what = f"components={list(given)!r}" if given else "components is empty"
        msg = f"{what}: it has one or more of {', '.join(map(repr, known))}"
        raise TuningError(msg)
    return tuple(kind for kind in known if kind in given)


def components_of(base: Prompts, stages: Mapping[str, Stage[Any, Any]], kinds: Iterable[Tuned]) -> dict[str, Component]:
    """Name -> component, stage by stage; instructions count when there are some, descriptions also when empty."""
    found: list[Component] = []
    for path, stage in stages.items():
        prompt = base.get(path, Prompt())
        if "instructions" in kinds:
            text = prompt.instructions if prompt.instructions is not None else stage.instructions
            if text.strip():
                found.append(Component(path, "instructions", "", text, stage.instructions, path in base))
        if "tools" in kinds:
            found += _described(path, "tool", stage.tools[0], prompt.tools)
        if "fields" in kinds:
            found += _described(path, "field", stage.fields, prompt.fields)
    return {component.name: component for component in found}


def _described(path: str, kind: Kind, known: Mapping[str, Offered], given: Mapping[str, str]) -> list[Component]:
    found: list[Component] = []
    for part in dict.fromkeys([*known, *given]):
        own = known[part].text if part in known else None
        schema = json.dumps(known[part].schema, ensure_ascii=False, default=str) if part in known else ""
        found.append(Component(path, kind, part, given.get(part, own or ""), own, part in given, schema))
    return found


def prompts_of(base: Prompts, texts: Texts, components: Mapping[str, Component]) -> Prompts:
    """What a candidate deploys: the base with its texts, as far as they differ from what the code says."""
    changed: dict[str, Prompt] = {}
    for name, text in texts.items():
        component = components[name]
        if not component.kept and text == component.own:
            continue
        path, part = component.path, component.part
        before = changed.get(path) or base.get(path, Prompt())
        if component.kind == "instructions":
            changed[path] = replace(before, instructions=text)
        elif component.kind == "tool":
            changed[path] = replace(before, tools={**before.tools, part: text})
        else:
            changed[path] = replace(before, fields={**before.fields, part: text})
    return base.replace(changed)
