"""Typed values as text for a model; the same for live inputs and for demos."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any

from pydantic import BaseModel
from pydantic_ai import format_as_xml
from pydantic_ai.messages import UserContent, is_multi_modal_content

from stagegraph.schema.types import is_dict, is_sequence


def render_input(value: object) -> str | list[UserContent]:
    """The default prompt for a value: text as it is, models as XML, media fields as content parts after the XML."""
    if isinstance(value, str):
        return value
    if is_multi_modal_content(value):
        return [value]
    media: list[UserContent] = []
    tag = type(value).__name__ if isinstance(value, BaseModel) else "input"
    text = format_as_xml(_without_media(value, media), root_tag=tag)
    return [text, *media] if media else text


def _without_media(value: Any, media: list[UserContent]) -> Any:
    """The value with each media part replaced by its number; the parts are added to *media* in order."""
    if is_multi_modal_content(value):
        media.append(value)
        return f"[attachment {len(media)}]"
    before = len(media)
    if isinstance(value, BaseModel):
        fields = type(value).model_fields.items()
        parts: Any = {name: _without_media(getattr(value, name), media) for name, field in fields if not field.exclude}
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: _without_media(getattr(value, field.name), media) for field in dataclasses.fields(value)}
    elif is_sequence(value):
        parts = [_without_media(item, media) for item in value]
    elif is_dict(value):
        parts = {key: _without_media(item, media) for key, item in value.items()}
    else:
        return value
    return parts if len(media) > before else value


def render_output(value: object, dump: Callable[[object], Any]) -> str:
    """The output of a demo: text as it is, everything else as the JSON that a model would return."""
    return value if isinstance(value, str) else json.dumps(dump(value), ensure_ascii=False)


def demo_block(demos: Sequence[tuple[str | Sequence[UserContent], str]]) -> str:
    """Demos as one `<examples>` block for the instructions; media parts are left out."""
    lines = ["<examples>"]
    for given, answer in demos:
        text = given if isinstance(given, str) else "\n".join(part for part in given if isinstance(part, str))
        lines += ["<example>", "<input>", text, "</input>", "<output>", answer, "</output>", "</example>"]
    return "\n".join([*lines, "</examples>"])
