"""The prompts file: YAML that reads like text, written completely or not at all, and read as untrusted input."""

# PyYAML's classes are only partly typed.
# pyright: reportUnknownMemberType=false, reportUnknownVariableType=false, reportUnknownArgumentType=false

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from stagegraph.schema.errors import PromptError, problems_of

FORMAT = 1
MAX_BYTES = 5_000_000
"""A larger file is refused."""

_HEADER = "# Prompts of a stagegraph graph: stage path -> instructions, demos, tools, fields.\n"


class _Loader(yaml.SafeLoader):
    """Plain data only: no tags, no aliases (with them a small file can become huge data), no duplicate keys."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()
        refused = "aliases" if isinstance(event, yaml.AliasEvent) else "tags" if event.tag is not None else None
        if refused is not None:
            raise ComposerError(None, None, f"{refused} are not allowed", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key, _ in node.value:
            scalar = isinstance(key, yaml.ScalarNode)
            if not scalar or key.value in seen:
                problem = f"the key {key.value!r} occurs twice" if scalar else "a key must be a plain word"
                raise ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep=deep)


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: object) -> bool:
        del data
        return True

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        del indentless
        super().increase_indent(flow, False)


_Loader.yaml_implicit_resolvers = {}  # PyYAML's are those of YAML 1.1, where `no`, `12:30` and dates are not texts
for _tag, _pattern, _first_characters in (
    ("null", r"null|~|", ["n", "~", ""]),
    ("bool", r"true|false", ["t", "f"]),
    ("int", r"-?(0|[1-9][0-9]*)", list("-0123456789")),
    ("float", r"-?(0|[1-9][0-9]*)(\.[0-9]+)?([eE][-+]?[0-9]+)?|-?\.inf|\.nan", list("-.0123456789")),
):
    for _side in (_Loader, _Dumper):  # the dumper keeps those of 1.1 too: it quotes what another reader would misread
        _side.add_implicit_resolver(f"tag:yaml.org,2002:{_tag}", re.compile(f"(?:{_pattern})$"), _first_characters)


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


def parse_yaml(text: str) -> object:
    """Plain data from an untrusted YAML text.

    Raises:
        ValueError: invalid YAML, or YAML with tags, aliases or duplicate keys.
    """
    try:
        return yaml.load(text, Loader=_Loader)  # noqa: S506 - a stricter SafeLoader
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise ValueError(_short(error)) from error


def parse_yaml_rows(text: str) -> list[tuple[int, object]]:
    """The items of a YAML list (or of the list `cases` of a mapping), each with the line that it begins on.

    Raises:
        ValueError: as for `parse_yaml`, or the text is not a list.
    """
    loader = _Loader(text)
    try:
        node: Any = loader.get_single_node()
        if isinstance(node, yaml.MappingNode):
            node = next((value for key, value in node.value if key.value == "cases"), node)
        if not isinstance(node, yaml.SequenceNode):
            line = 1 if node is None else node.start_mark.line + 1
            msg = f"it is neither a list nor a mapping with a list of `cases` (line {line})"
            raise ValueError(msg)  # noqa: TRY004 - every problem of a text is a ValueError here
        return [(item.start_mark.line + 1, loader.construct_object(item, deep=True)) for item in node.value]
    except (yaml.YAMLError, RecursionError) as error:
        raise ValueError(_short(error)) from error
    finally:
        loader.dispose()


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
        with Path(path).open("rb") as stream:
            raw = stream.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: an invalid path
        msg = f"{path}: the prompts file cannot be read: {_reason(error)}"
        raise PromptError(msg) from error
    if len(raw) > MAX_BYTES:
        msg = f"{path}: larger than {MAX_BYTES:,} bytes; this is not a prompts file"
        raise PromptError(msg)
    try:
        file = _File.model_validate(parse_yaml(raw.decode()))
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
