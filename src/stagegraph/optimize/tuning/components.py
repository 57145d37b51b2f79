"""The texts that a search changes: a stage's instructions and, on request, descriptions of its tools and fields."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, Self, get_args
from zlib import crc32

from stagegraph.data.prompt import Prompt
from stagegraph.data.prompts import Prompts
from stagegraph.nodes.stage import stages_of
from stagegraph.schema.errors import TuningError

if TYPE_CHECKING:
    from stagegraph.nodes.describe import Offered
    from stagegraph.nodes.node import Node
    from stagegraph.nodes.stage import Stage

Tuned = Literal["instructions", "tools", "fields"]
"""What a search may change."""
Kind = Literal["instructions", "tool", "field"]
"""What one text is."""
Texts = Mapping[str, str]
"""Component name -> text: one candidate."""


class EngineName(str):
    """A component's name inside GEPA's engine. Its hash is the same in every process.

    A merge draws random numbers while it iterates over a set of names. Python salts the hash of a `str` in every
    process, so with plain texts one seed would give another search in another process.
    """

    __slots__ = ()

    def __hash__(self) -> int:
        return crc32(self.encode("utf-8", "surrogatepass"))


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
    """The text that need not be written down: the one in the code, unless the prompts to start from have one."""
    schema: str = ""
    """The JSON schema of the tool's parameters or of the field."""

    @property
    def name(self) -> str:
        """Its name in candidates: `plan`, `plan:tool:search`, `plan:field:title`."""
        return named_part(self.path, self.kind, self.part)


def named_part(path: str, kind: Kind, part: str) -> str:
    return path if kind == "instructions" else f"{path}:{kind}:{part}"


def checked_kinds(kinds: Iterable[Tuned]) -> tuple[Tuned, ...]:
    """The kinds of text to change, each once, in a fixed order; an error where there is none, or one is unknown."""
    known: tuple[Tuned, ...] = get_args(Tuned)
    given = (kinds,) if isinstance(kinds, str) else tuple(kinds)
    if not given or not {*given} <= {*known}:
        what = f"components={list(given)!r}" if given else "components is empty"
        msg = f"{what}: it has one or more of {', '.join(map(repr, known))}"
        raise TuningError(msg)
    return tuple(kind for kind in known if kind in given)


@dataclass(frozen=True, slots=True)
class Target:
    """What is tuned: a graph, the prompts to start from, and the texts that change."""

    graph: Node[Any, Any]
    base: Prompts
    stages: Mapping[str, Stage[Any, Any]]
    components: Mapping[str, Component]
    """By name, stage by stage."""

    @classmethod
    def of(cls, graph: Node[Any, Any], start: Prompts | None, kinds: Sequence[Tuned]) -> Self:
        """The texts of these kinds in a graph. Empty instructions are left out, empty descriptions are not."""
        name, stages = graph.__node__.name, stages_of(graph)
        base = start if start is not None else Prompts()
        base = base if base.graph else Prompts(base, graph=name, origins=base.origins)
        base.check_known(stages, name)
        found: list[Component] = []
        for path, stage in stages.items():
            prompt = base.get(path, Prompt())
            text = prompt.instructions if prompt.instructions is not None else stage.instructions
            if "instructions" in kinds and text.strip():
                own = None if path in base else stage.instructions
                found.append(Component(path, "instructions", "", text, own))
            if "tools" in kinds:
                found += _descriptions(path, "tool", stage.tools[0], prompt.tools)
            if "fields" in kinds:
                found += _descriptions(path, "field", stage.fields, prompt.fields)
        if not found:
            msg = f"no stage of {name} has {' or '.join(kinds)} to tune"
            raise TuningError(msg)
        return cls(graph, base, stages, {component.name: component for component in found})

    @property
    def seed(self) -> dict[str, str]:
        """The texts to start from."""
        return {name: component.seed for name, component in self.components.items()}

    @property
    def paths(self) -> list[str]:
        """The stages that have a text to change."""
        return list(dict.fromkeys(component.path for component in self.components.values()))

    def instructions(self, path: str, texts: Texts) -> str:
        """The instructions of a stage in a candidate."""
        deployed = self.base.get(path, Prompt()).instructions
        return texts.get(path, deployed if deployed is not None else self.stages[path].instructions)

    def prompts(self, texts: Texts) -> Prompts:
        """The prompts of a candidate: the base with those texts that differ from the code's."""
        changed: dict[str, Prompt] = {}
        for name, text in texts.items():
            one = self.components[name]
            if text == one.own:
                continue
            before = changed.get(one.path) or self.base.get(one.path, Prompt())
            if one.kind == "instructions":
                changed[one.path] = replace(before, instructions=text)
            elif one.kind == "tool":
                changed[one.path] = replace(before, tools={**before.tools, one.part: text})
            else:
                changed[one.path] = replace(before, fields={**before.fields, one.part: text})
        return self.base.replace(changed)


def _descriptions(path: str, kind: Kind, known: Mapping[str, Offered], given: Texts) -> list[Component]:
    found: list[Component] = []
    for part in dict.fromkeys([*known, *given]):
        schema = json.dumps(known[part].schema, ensure_ascii=False, default=str) if part in known else ""
        own = None if part in given else known[part].text
        found.append(Component(path, kind, part, given[part] if own is None else own, own, schema))
    return found
