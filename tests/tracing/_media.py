"""Files as a Langfuse server keeps them: an upload is announced, put into a storage, and confirmed."""

from __future__ import annotations

import base64
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from _http import Answer, Request
from _queries import Refused
from langfuse.api import MediaContentType

__all__ = ["Media", "Stored"]


@dataclass
class Stored:
    """One file, and where it is referred to."""

    type: str
    size: int
    digest: str
    uses: list[tuple[str, str | None, str]]
    """Trace, observation, and field of it."""
    content: bytes | None = None
    status: int | None = None
    """As the client confirmed it."""

    @property
    def there(self) -> bool:
        return self.content is not None and self.status == 200


class Media:
    """The announced files by id."""

    def __init__(self) -> None:
        self.files: dict[str, Stored] = {}

    def announce(self, request: Request) -> Answer:
        """POST media: where to put a file; nowhere, if it is there already."""
        body = request.json
        digest, type_, size, field = (
            body.get(name) for name in ("sha256Hash", "contentType", "contentLength", "field")
        )
        if not isinstance(digest, str) or len(digest) != 44 or len(base64.b64decode(digest)) != 32:
            raise Refused(400, "sha256Hash has to be a base64 SHA-256")
        if type_ not in {one.value for one in MediaContentType}:
            raise Refused(400, f"Invalid contentType {type_}")
        if not isinstance(size, int) or size <= 0 or field not in {"input", "output", "metadata"}:
            raise Refused(400, "Invalid contentLength or field")
        if not body.get("traceId"):
            raise Refused(400, "A trace is required")
        key = digest.replace("+", "-").replace("/", "_")[:22]
        stored = self.files.setdefault(key, Stored(type_, size, digest, []))
        stored.uses.append((body["traceId"], body.get("observationId"), field))
        url = None if stored.there else f"http://{request.headers['host']}/storage/{key}?signature=x"
        return Answer(201, {"mediaId": key, "uploadUrl": url})

    def put(self, request: Request, key: str) -> Answer:
        """PUT into the storage, which checks what was announced, and refuses the server's keys."""
        stored, headers = self.files[key], request.headers
        if "authorization" in headers:
            raise Refused(400, "Only one auth mechanism allowed")
        digest = base64.b64encode(sha256(request.body).digest()).decode()
        if not digest == stored.digest == headers.get("x-amz-checksum-sha256") or len(request.body) != stored.size:
            raise Refused(403, "SignatureDoesNotMatch")
        if headers.get("content-type") != stored.type:
            raise Refused(403, "SignatureDoesNotMatch")
        stored.content = request.body
        return Answer(200, b"")

    def confirm(self, request: Request, key: str) -> Answer:
        """PATCH media/{id}: how the upload went."""
        body = request.json
        if not body.get("uploadedAt") or not isinstance(body.get("uploadHttpStatus"), int):
            raise Refused(400, "uploadedAt and uploadHttpStatus are required")
        self._known(key).status = body["uploadHttpStatus"]
        return Answer(204, b"")

    def get(self, request: Request, key: str) -> dict[str, Any]:
        """GET media/{id}: where to read a file."""
        stored = self._known(key)
        if not stored.there:
            raise Refused(404, "Media not yet uploaded")
        return {
            "mediaId": key,
            "contentType": stored.type,
            "contentLength": stored.size,
            "uploadedAt": "2026-01-01T00:00:00.000Z",
            "url": f"http://{request.headers['host']}/storage/{key}?signature=x",
            "urlExpiry": "2026-01-01T01:00:00.000Z",
        }

    def read(self, _: Request, key: str) -> Answer:
        """GET from the storage."""
        content = self.files[key].content
        if content is None:
            raise Refused(404, "NoSuchKey")
        return Answer(200, content)

    def _known(self, key: str) -> Stored:
        if key not in self.files:
            raise Refused(404, "Media not found")
        return self.files[key]
