"""Files in inputs, outputs and messages: sent once beside the spans, which hold references to them.

The bytes are taken out where a span is made, so that the queue of spans stays small. A file is uploaded when a span was
sent that still refers to it: what `redact=` removes from the span is not sent either.
"""

from __future__ import annotations

import base64
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from .attributes import Names

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

_BASE64 = r"[A-Za-z0-9+/_-]{4,}={0,2}"
_TYPE = r"[\w.+/-]+"
_BYTES = re.compile(rf'"data":"(?P<text>{_BASE64})","media_type":"(?P<type>{_TYPE})"')
_PART = re.compile(rf'"mime_type":"(?P<type>{_TYPE})","(?:modality":"\w+",")?content":"(?P<text>{_BASE64})"')
_ADDRESS = re.compile(rf'"data:(?P<type>{_TYPE});base64,(?P<text>{_BASE64})"')
"""A `BinaryContent` as Pydantic writes it, a part of a chat as Pydantic AI does, and an address with data in it. Each
begins with a literal, since a long text is searched for it quickly."""
_REFERENCE = re.compile(r'(?<=")@@@langfuseMedia:type=([\w.+/-]+)\|id=([\w-]+)\|source=(\w+)@@@(?=")')
_FIELDS = {Names.INPUT: "input", Names.OUTPUT: "output", "gen_ai.output.messages": "output", "final_result": "output"}
_URI = "base64_data_uri"
_MOST_BYTES, _MOST_FILES = 64_000_000, 10_000


@dataclass(slots=True)
class File:
    """A file that a span refers to."""

    content: bytes
    """Empty when the server has it."""
    type: str
    digest: str
    size: int


class Media:
    """The files of the spans that were not sent yet, and those that the server has.

    Args:
        upload: Sends one file for an observation: `(file, trace_id, observation_id, field)`.
        lose: Counts files that could not be sent, with the reason.
    """

    def __init__(self, upload: Callable[[File, str, str, str], None], lose: Callable[[int, str], None]) -> None:
        self._upload, self._lose = upload, lose
        self.enabled = os.environ.get("LANGFUSE_MEDIA_UPLOAD_ENABLED", "true").lower() not in {"false", "0"}
        """By Langfuse's own variable; without uploads, files are replaced by their sizes."""
        self.begin()

    def begin(self) -> None:
        """Start empty, also in a forked child: the parent sends its own spans."""
        self._lock = threading.Lock()
        self._files: dict[str, File] = {}
        self._bytes = 0
        self._seen: dict[tuple[re.Pattern[str], int, int], str] = {}
        """Form, hash and length of a file's base64 -> its name, since a conversation holds a file again and again."""

    def taken_out(self, text: str) -> str:
        """JSON with references in the place of files."""
        for form in (_BYTES, _PART, _ADDRESS):
            text = form.sub(self._reference, text)
        return text

    def _reference(self, found: re.Match[str]) -> str:
        text, type_, uri = found["text"], found["type"], found.re is _ADDRESS
        name = self._seen.get(seen := (found.re, hash(text), len(text)), "")
        if name not in self._files:
            name = self._file(found, text, type_, uri=uri)
            if not name:
                return found[0]
            self._seen[seen] = name
        reference = f"@@@langfuseMedia:type={type_}|id={name}|source={_URI if uri else 'bytes'}@@@"
        if not self.enabled:
            reference = f"[{len(text)} characters of base64]"
        whole, begin, end = found.string, found.start("text"), found.end("text")
        lead = '"' if uri else whole[found.start() : begin]
        return lead + reference + whole[end : found.end()]

    def _file(self, found: re.Match[str], text: str, type_: str, *, uri: bool) -> str:
        """Keep a file until it is uploaded; returns its name, or nothing if it could not be read back as it was."""
        if found.re is not _PART and any(char in text for char in ("-_" if uri else "+/")):
            return ""
        standard = text.replace("-", "+").replace("_", "/")
        try:
            content = base64.b64decode(standard)
        except ValueError:
            return ""
        # The end decides whether it comes back: encoding a large file again would hold up the event loop.
        end = len(content) - (len(content) % 3 or 3)
        if len(text) % 4 or base64.b64encode(content[end:]).decode() != standard[-4:]:
            return ""
        digest = base64.b64encode(sha256(content).digest()).decode()
        name = digest.replace("+", "-").replace("/", "_")[:22]
        if self.enabled:
            self._keep(name, File(content, type_, digest, len(content)))
        return name

    def _keep(self, name: str, file: File) -> None:
        with self._lock:
            if name in self._files:
                return
            self._files[name] = file
            self._bytes += file.size
            dropped = 0
            while self._bytes > _MOST_BYTES or len(self._files) > _MOST_FILES:
                oldest = self._files.pop(next(iter(self._files)))
                self._bytes -= len(oldest.content)
                self._seen.clear()
                dropped += bool(oldest.content)
        if dropped:
            self._lose(dropped, "too many files wait")

    def send(self, span: ReadableSpan) -> None:
        """Upload the files that a span refers to."""
        if span.context is None:
            return
        place = f"{span.context.trace_id:032x}", f"{span.context.span_id:016x}"
        for name, value in (span.attributes or {}).items():
            if not isinstance(value, str) or "@@@langfuseMedia:" not in value:
                continue
            for file in filter(None, map(self._files.get, references([value]))):
                try:
                    self._upload(file, *place, _FIELDS.get(name, "input"))
                except Exception as error:  # noqa: BLE001 - the span itself was sent
                    self._lose(1, f"a file: {error}")
                    continue
                with self._lock:
                    self._bytes -= len(file.content)
                    file.content = b""


def references(texts: Iterable[str | None]) -> set[str]:
    """The ids of the files that JSON refers to."""
    return {found[2] for text in texts if text is not None for found in _REFERENCE.finditer(text)}


def put_back(text: str | None, files: Mapping[str, bytes]) -> str | None:
    """JSON with the files that were found in the place of their references."""

    def file(found: re.Match[str]) -> str:
        content = files.get(found[2])
        if content is None:
            return found[0]
        if found[3] == _URI:
            return f"data:{found[1]};base64,{base64.b64encode(content).decode()}"
        return base64.urlsafe_b64encode(content).decode()

    return None if text is None else _REFERENCE.sub(file, text)
