"""The texts that a graph sends to its models: stage path -> instructions, demos, descriptions. Immutable."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from pydantic import JsonValue

from stagegraph.schema.errors import PromptError
from stagegraph.schema.types import is_dict

from .prompt import Origin, Prompt, PromptedStage, misfits, parsed, unknown_stages

if TYPE_CHECKING:
    import os


class _Declared(Protocol):
    name: str

    @cached_property
    def stages(self) -> Mapping[str, PromptedStage]: ...


class PromptedGraph(Protocol):
    """The part of a graph that prompts use; every node satisfies it."""

    @cached_property
    def __node__(self) -> _Declared: ...


class Prompts(Mapping[str, Prompt]):
    """Stage path -> `Prompt`: the texts that tuning changes, stored in a file that people review.

    A stage without an entry keeps the text of the code; a `str` is a prompt with instructions only. Two `Prompts` with
    the same content are equal in any order.
    """

    def __init__(
        self,
        prompts: Mapping[str, Prompt | str] | None = None,
        *,
        graph: str | None = None,
        origins: Mapping[str, Origin] | None = None,
    ) -> None:
        if prompts is not None and not isinstance(prompts, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance]
            msg = (
                f"Prompts({prompts!r}): write Prompts.load(path) for a file, or Prompts({{'plan': 'the instructions'}})"
            )
            raise TypeError(msg)
        self._prompts = {path: _prompt(path, prompt) for path, prompt in (prompts or {}).items()}
        self.graph = graph
        """The name of the graph that the prompts are for; information only."""
        self._origins = dict(origins or {})

    @property
    def origins(self) -> Mapping[str, Origin]:
        """Stage path -> the deployed prompt that is its source; empty for prompts of a file or of the code."""
        return self._origins

    @classmethod
    def of(cls, graph: PromptedGraph) -> Prompts:
        """The instructions in the code of *graph*."""
        declared = graph.__node__
        seed = {path: Prompt(stage.instructions) for path, stage in declared.stages.items()}
        return cls(seed, graph=declared.name)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Prompts:
        """Read a prompts file.

        Raises:
            PromptError: no such file, too large, not YAML, another format, or a wrong value; the message has the place.
        """
        name, entries = _files().read(path)
        return cls({stage: parsed(stage, data, str(path)) for stage, data in entries.items()}, graph=name)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the file completely or not at all; the lines of an unchanged prompt do not change.

        Raises:
            PromptError: a text cannot be written as UTF-8, or the file system refuses.
        """
        for stage, prompt in self.items():
            try:
                json.dumps([stage, prompt.data()], ensure_ascii=False).encode()
            except UnicodeEncodeError as error:
                msg = f"{path}: the prompts could not be saved: a text of {stage!r} is not valid Unicode: {error}"
                raise PromptError(msg) from error
        _files().write(path, self.to_yaml())

    def to_yaml(self) -> str:
        """The text that `save` writes."""
        return _files().dump(self.graph, self._data())

    def to_json(self) -> str:
        """The prompts as one line of JSON, for storing beside a run."""
        return json.dumps(self._data(), ensure_ascii=False)

    def _data(self) -> dict[str, dict[str, JsonValue]]:
        return {path: prompt.data() for path, prompt in self.items()}

    @classmethod
    def from_json(cls, text: str, origins: Mapping[str, Origin] | None = None) -> Prompts:
        """Read back what `to_json` wrote.

        Raises:
            PromptError: *text* was not written by `to_json`.
        """
        try:
            entries = json.loads(text).items()
        except (ValueError, AttributeError, RecursionError) as error:
            msg = f"these are not recorded prompts: {error}"
            raise PromptError(msg) from error
        return cls({path: parsed(path, data, "the recorded prompts") for path, data in entries}, origins=origins)

    def replace(self, changes: Mapping[str, str | Prompt]) -> Prompts:
        """A copy with some prompts changed; a `str` changes the instructions and keeps the rest."""
        changed = dict(self)
        for path, change in changes.items():
            before = changed.get(path, Prompt())
            changed[path] = replace(before, instructions=change) if isinstance(change, str) else change
        kept = {path: origin for path, origin in self.origins.items() if changed.get(path) == self.get(path)}
        return Prompts(changed, graph=self.graph, origins=kept)

    def diff(self, other: Prompts) -> str:
        """The changes from *other* to these as a unified diff of the texts that differ; empty without a difference."""
        before, after = other._lines(self), self._lines(other)
        return "".join(difflib.unified_diff(before, after, "before", "after"))

    def _lines(self, other: Prompts) -> list[str]:
        """The file's lines for what *other* does not have alike, in an order that is not that of the prompts."""
        texts = _differing(self._data(), other._data())
        return _files().dump(None, texts).splitlines(keepends=True)[3:]  # without the head of the file

    def check(self, graph: PromptedGraph) -> None:
        """Check that these prompts and *graph* have the same stages, and that every demo, tool and field fits.

        Raises:
            PromptError: the message names all unknown and missing paths, tools and fields, and all unfit demos.
        """
        stages = graph.__node__.stages
        missing = [f"`{path}` is missing" for path in stages if path not in self]
        self._check(stages, graph.__node__.name, missing, wholly=True)

    def check_known(self, stages: Mapping[str, PromptedStage], name: str) -> None:
        """Check that all paths are stages, and all fields are fields of the stage's answer.

        Tools are not checked, since an agent may get other tools in every run.

        Raises:
            PromptError: the message names everything that is unknown.
        """
        self._check(stages, name, [], wholly=False)

    def _check(self, stages: Mapping[str, PromptedStage], name: str, problems: list[str], *, wholly: bool) -> None:
        problems = unknown_stages(self, stages) + problems
        for path in self:
            if path in stages:
                problems += misfits(path, self[path], stages[path], demos=wholly, tools=wholly)
        if problems:
            msg = f"the prompts do not fit {name}: " + "; ".join(problems)
            raise PromptError(msg)

    @cached_property
    def digest(self) -> str:
        """A hash of the content as 16 hexadecimal digits."""
        text = json.dumps(self._data(), sort_keys=True, ensure_ascii=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def __getitem__(self, path: str) -> Prompt:
        return self._prompts[path]

    def __iter__(self) -> Iterator[str]:
        return iter(self._prompts)

    def __len__(self) -> int:
        return len(self._prompts)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Prompts) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"<Prompts {self.graph or ''} {self.digest}: {', '.join(self._prompts) or 'empty'}>"


class RunLabels(Protocol):
    """The labels of a run, given by its caller."""

    @property
    def session_id(self) -> str | None: ...
    @property
    def user_id(self) -> str | None: ...
    @property
    def tags(self) -> tuple[str, ...]: ...
    @property
    def metadata(self) -> Mapping[str, object]: ...


@runtime_checkable
class Checkable(Protocol):
    """Prompts, or a source of prompts, that can check whether they fit a graph."""

    def check_known(self, stages: Mapping[str, PromptedStage], name: str) -> None:
        """Check that the prompts fit a graph with these stages.

        Raises:
            PromptError: they do not fit.
        """
        ...


@runtime_checkable
class PromptSource(Protocol):
    """A source of prompts that change while a program runs; a runner or a run takes it in place of `Prompts`."""

    async def current(self, labels: RunLabels | None) -> Prompts:
        """The current prompts; a runner calls this once per run, and the run uses the result to its end.

        Args:
            labels: The labels of the run that begins; `None` outside a run.
        """
        ...


def _differing(mine: Mapping[str, JsonValue], other: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """The entries that *other* does not have alike: of a mapping (a stage, its tools, its fields) only those in it."""
    found: dict[str, JsonValue] = {}
    for name in sorted(mine, key=lambda name: (_PARTS.get(name, 0), name)):
        value, before = mine[name], other.get(name)
        if json.dumps(value, sort_keys=True) != json.dumps(before, sort_keys=True):
            found[name] = _differing(value, before) if is_dict(value) and is_dict(before) else value
    return found


_PARTS = {"instructions": 1, "demos": 2, "tools": 3, "fields": 4}
"""The parts of a prompt in the order of the file."""


def _prompt(path: str, prompt: object) -> Prompt:
    if isinstance(prompt, Prompt):
        return prompt
    if isinstance(prompt, str):
        return Prompt(prompt)
    msg = (
        f"`{path}` is {type(prompt).__name__} {prompt!r}: write Prompt(instructions=...), or the instructions as a text"
    )
    raise PromptError(msg)


def _files() -> ModuleType:
    from . import prompts_yaml as prompts_file  # noqa: PLC0415 - most programs read no YAML

    return prompts_file
