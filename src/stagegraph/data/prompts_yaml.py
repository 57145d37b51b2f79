"""The prompts file: YAML that reads like text, written completely or not at all, and read as untrusted input."""

# PyYAML's classes are only partly typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import errno
import math
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from stagegraph.schema.errors import PromptError, problems_of
from stagegraph.schema.types import is_dict, is_list

from .files import read_regular

FORMAT = 1
MAX_BYTES = 5_000_000
"""A larger file is refused."""

_HEADER = "# Prompts of a stagegraph graph: stage path -> instructions, demos, tools, fields.\n"


_MOST_VALUES = 200_000
"""A prompts file with more values is refused."""
_Events: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML was built with it
_FIRST = frozenset("-0123456789.nft~")
"""The first characters of every plain word that is no text."""
_SCALARS: tuple[tuple[str, str, Callable[[str], object]], ...] = (
    ("null", r"null|~|", lambda _: None),
    ("bool", r"true|false", lambda text: text == "true"),
    ("int", r"-?(0|[1-9][0-9]*)", int),
    (
        "float",
        r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|-?\.inf|\.nan",
        lambda text: float(text.replace(".inf", "inf").replace(".nan", "nan")),
    ),
)
"""Tag, pattern and value: YAML 1.2. In YAML 1.1, as PyYAML reads it, `no`, `12:30` and dates are not texts."""
_PATTERNS = [(re.compile(f"(?:{pattern})\\Z"), read) for _, pattern, read in _SCALARS]


class _Reader:
    """Plain data from the events of a parser: no tags, no aliases (with them a small file can become huge data), no
    duplicate keys, and at most so many values.
    """

    def __init__(self, text: str, most: float) -> None:
        self.lines: dict[int, list[int]] = {}
        """The id of each list -> the line on which each item begins."""
        self._left = most
        self._parser = _Events(text)

    def read(self) -> object:
        """The only document, or `None`."""
        documents: list[object] = []
        try:
            while not isinstance(event := self._parser.get_event(), yaml.StreamEndEvent):
                if isinstance(event, yaml.DocumentStartEvent) and documents:
                    raise ComposerError(None, None, "there is another document", event.start_mark)
                if isinstance(event, yaml.NodeEvent):
                    documents.append(self._value(event))
        finally:
            self._parser.dispose()
        return next(iter(documents), None)

    def _value(self, event: Any) -> object:
        self._check(event)
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event.value) if event.implicit[0] else event.value
        return self._items() if isinstance(event, yaml.SequenceStartEvent) else self._entries()

    def _check(self, event: Any) -> None:
        self._left -= 1
        problem = ""
        if isinstance(event, yaml.AliasEvent) or event.tag is not None:
            problem = f"{'aliases' if isinstance(event, yaml.AliasEvent) else 'tags'} are not allowed"
        elif self._left < 0:
            problem = "there are too many values"
        if problem:
            raise ComposerError(None, None, problem, event.start_mark)

    def _items(self) -> list[object]:
        found: list[object] = []
        lines = self.lines[id(found)] = []
        while not isinstance(event := self._parser.get_event(), yaml.SequenceEndEvent):
            lines.append(event.start_mark.line + 1)
            found.append(self._value(event))
        return found

    def _entries(self) -> dict[object, object]:
        found: dict[object, object] = {}
        seen: set[str] = set()
        while not isinstance(event := self._parser.get_event(), yaml.MappingEndEvent):
            scalar = isinstance(event, yaml.ScalarEvent)
            if not scalar or event.value in seen:
                problem = f"the key {event.value!r} occurs twice" if scalar else "a key must be a plain word"
                raise ConstructorError(None, None, problem, event.start_mark)
            seen.add(event.value)
            key = self._value(event)
            found[key] = self._value(self._parser.get_event())
        return found


def _scalar(text: str) -> object:
    if text and text[0] not in _FIRST:
        return text
    return next((read(text) for pattern, read in _PATTERNS if pattern.match(text)), text)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        del data
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        del indentless
        super().increase_indent(flow, False)


for _tag, _pattern, _ in _SCALARS:  # those of 1.1 stay, too: the dumper quotes what another reader would misread
    _first = ["n", "~", ""] if _tag == "null" else ["t", "f"] if _tag == "bool" else list("-.0123456789")
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first)


_BLOCK = re.compile(r"[^\x00-\x09\x0b-\x1f\x7f-\xa0\u2028\u2029\ufeff\ud800-\udfff]*")


class _Block(str):
    """A text that is written as a block scalar, even on one line."""

    __slots__ = ()


def _represent_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    fits = _BLOCK.fullmatch(text) and text.strip() and not re.search(r"[ \t](\n|$)", text)
    return dumper.represent_scalar("tag:yaml.org,2002:str", str(text), style="|" if fits else '"')


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    if "\n" in text:
        return _represent_block(dumper, text)
    # PyYAML writes some line breaks of Unicode unquoted, and reads them back as spaces.
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if _BLOCK.fullmatch(text) else '"')


_Dumper.add_representer(_Block, _represent_block)
_Dumper.add_representer(str, _represent_text)


def dump(graph: str | None, prompts: Mapping[str, Mapping[str, Any]]) -> str:
    """The text of a file: block scalars, two spaces of indent, the order of *prompts*."""
    body = {path: _blocks(data) for path, data in prompts.items()}
    head: dict[str, Any] = {"format": FORMAT, **({"graph": graph} if graph else {}), "prompts": body}
    text = yaml.dump(head, Dumper=_Dumper, allow_unicode=True, sort_keys=False, width=2**31, default_flow_style=False)
    return _HEADER + text


def _blocks(data: Mapping[str, Any]) -> dict[str, Any]:
    blocks = dict(data)
    if "instructions" in blocks:
        blocks["instructions"] = _Block(blocks["instructions"])
    for part in ("tools", "fields"):
        if part in blocks:
            blocks[part] = {name: _Block(text) for name, text in blocks[part].items()}
    return blocks


def parse_yaml(text: str, most: float = math.inf) -> object:
    """Plain data from an untrusted YAML text of at most so many values.

    Raises:
        ValueError: invalid YAML, or YAML with tags, aliases or duplicate keys.
    """
    return _parsed(text, most)[0]


def parse_yaml_rows(text: str) -> list[tuple[int, object]]:
    """The items of a YAML list (or of the list `cases` of a mapping), each with the line that it begins on.

    Raises:
        ValueError: as for `parse_yaml`, or the text is not a list.
    """
    root, lines = _parsed(text, math.inf)
    rows = root.get("cases") if is_dict(root) else root
    if not is_list(rows):
        msg = "it is neither a list nor a mapping with a list of `cases`"
        raise ValueError(msg)
    return list(zip(lines[id(rows)], rows, strict=True))


def _parsed(text: str, most: float) -> tuple[object, dict[int, list[int]]]:
    try:
        reader = _Reader(text, most)
        return reader.read(), reader.lines
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(_short(error)) from error


def _short(error: Exception) -> str:
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        mark = error.problem_mark
        return f"{error.problem} (line {mark.line + 1}, column {mark.column + 1})"
    return " ".join(str(error).split())[:200] or type(error).__name__


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)

    format: int
    graph: str | None = None
    prompts: dict[str, object]


def read(path: str | os.PathLike[str]) -> tuple[str | None, dict[str, object]]:
    """The graph's name and the entries of a prompts file.

    Raises:
        PromptError: the file cannot be read; the message names it, and the line if there is one.
    """
    try:
        raw = read_regular(path, MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: an invalid path
        msg = f"{path}: the prompts file cannot be read: {_reason(error)}"
        raise PromptError(msg) from error
    if len(raw) > MAX_BYTES:
        msg = f"{path}: larger than {MAX_BYTES:,} bytes; this is not a prompts file"
        raise PromptError(msg)
    try:
        file = _File.model_validate(parse_yaml(raw.decode(), _MOST_VALUES))
    except ValidationError as error:
        msg = (
            f"{path}: this is not a prompts file, at {problems_of(error, whole='the file', most=1)}; it begins with "
            f"`format: {FORMAT}` and has `prompts:` (`Prompts.of(graph).save(path)` writes one)"
        )
        raise PromptError(msg) from error
    except ValueError as error:
        msg = f"{path}: not a YAML file that can be read: {error}"
        raise PromptError(msg) from error
    if file.format != FORMAT:
        msg = f"{path}: written in format {file.format}, but this version of stagegraph reads format {FORMAT}"
        raise PromptError(msg)
    return file.graph, file.prompts


def write(path: str | os.PathLike[str], text: str) -> None:
    """Replace the file in one step: a reader sees the old text or the new one, never a part.

    Raises:
        PromptError: the file system refuses; the old file is unchanged.
    """
    target = Path(path)
    temporary: Path | None = None
    try:
        data = text.encode()
        target = target.resolve()  # a link stays a link, and its file is replaced
        if target.exists() and not target.is_file():
            reason = "it is not a regular file"
            raise OSError(errno.EINVAL, reason)
        handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.chmod(target.stat().st_mode & 0o777 if target.exists() else 0o644)
        temporary.replace(target)
    except (OSError, ValueError, RuntimeError) as error:  # the latter two: an invalid path
        msg = f"{target}: the prompts could not be saved: {_reason(error)}"
        raise PromptError(msg) from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)  # it still exists only after a failure


def _reason(error: Exception) -> object:
    return getattr(error, "strerror", None) or error
