"""What is known of a run besides its values, as a row of a journal has it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from types import MappingProxyType
from typing import Annotated

from pydantic import Field, SkipValidation, TypeAdapter
from pydantic_core import to_jsonable_python

from stagegraph.data.call import Cause
from stagegraph.schema.errors import DeclarationError
from stagegraph.schema.types import is_mapping

Seconds = Annotated[float, Field(gt=-6e10, lt=6e10)]
"""A time, or a moment since 1970 in the years that a calendar has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Labels:
    """What is known of a run besides its values: what the caller said about it, and what resuming it needs."""

    metadata: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    tags: tuple[SkipValidation[str], ...] = ()
    session_id: SkipValidation[str | None] = None
    user_id: SkipValidation[str | None] = None
    resumed: tuple[Seconds, ...] = ()
    """When the run was resumed, each time in seconds since 1970."""
    ended: tuple[Seconds, ...] = ()
    """When each of its segments ended: at an interruption, a suspension, or the end of the run. Where a process died,
    the end of the last call that was recorded."""
    crashes: int = 0
    """How often the run's process died during the run."""
    models: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Stage path -> the model that this run alone was given."""
    override: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """Call key -> the output that the call gets in this run, as JSON data."""
    override_whole: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """The same as `CallRow.output_whole`, where an output needs it."""
    origins: Mapping[str, tuple[str, int]] = field(default_factory=lambda: MappingProxyType({}))
    """Stage path -> name and version of its deployed prompt."""
    limits: Mapping[str, object] = field(default_factory=lambda: MappingProxyType({}))
    """What this run alone may spend: the fields of `Limits` that are set."""
    replay: str | None = None
    """The id of the run whose outputs it may use."""
    cause: Cause | None = None
    """`CallError.cause` of the run's error."""
    redacted: tuple[str, ...] = ()
    """The columns that `redact=` changed, and without which the run cannot be resumed."""

    @classmethod
    def from_json(cls, text: str) -> Labels:
        """The labels of a row.

        Raises:
            ValueError: the text does not hold labels.
        """
        return _labels().validate_python(json.loads(text))

    def to_json(self) -> str:
        """The text of a row's column; an object without JSON in the metadata is written as `str` shows it.

        Raises:
            DeclarationError: the metadata cannot be written as JSON.
        """
        data = {
            name: dict(value) if is_mapping(value) else value
            for name in _LABELS
            if (value := getattr(self, name)) or name in OF_CALLER
        }
        try:
            return json.dumps(data, ensure_ascii=False, default=str)
        except (TypeError, ValueError):  # a key that is not a text, or an object that contains itself
            pass
        try:
            return json.dumps(to_jsonable_python(data, fallback=str), ensure_ascii=False)
        except (TypeError, ValueError) as error:
            msg = f"the metadata of a run cannot be recorded: {error}; give a mapping of names to JSON values"
            raise DeclarationError(msg) from error


@cache
def _labels() -> TypeAdapter[Labels]:
    return TypeAdapter(Labels)


_LABELS = Labels.__slots__
OF_CALLER = ("metadata", "tags", "session_id", "user_id")
"""The labels that a caller gives, which `Run` has as well; they are always written."""
