"""Repeated requests: the same `Idempotency-Key` with the same body is the same run, in every process.

The run's id is made of the key, so that the journal itself lets only one of several requests begin it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

from fastapi import Header, Request

from stagegraph.schema.serialize import hashed

from .problems import Problem

_BODY = "idempotency_body"
"""The name in a run's metadata of the hash of the body that began it."""

Key = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=255,
        pattern=r"^[!-~]([ -~]*[!-~])?$",
        description="Makes a repeated request the same run: a value of the client's own, for one body.",
    ),
]


@dataclass(frozen=True, slots=True)
class Repeatable:
    """What a request with a key begins, or has begun before."""

    run_id: str
    """A hash, since a key is whatever a client sends, and may be a secret of that client."""
    body: str
    """A hash of the body, without its layout."""

    @classmethod
    async def of(cls, request: Request, key: str, graph: str, user: str | None) -> Repeatable:
        """The key of a user for a graph; other users have other runs under it."""
        body = (await request.body()).decode()
        with suppress(ValueError, RecursionError):  # a body that is no JSON is refused soon
            body = json.dumps(json.loads(body), sort_keys=True)
        return cls(hashed("request", json.dumps([graph, user, key])), hashed(body))

    @property
    def metadata(self) -> dict[str, object]:
        """What is recorded with the run."""
        return {_BODY: self.body}

    def check(self, metadata: Mapping[str, object]) -> None:
        """Refuse to take a run for that of another body; one whose record was redacted counts as the same.

        Raises:
            Problem: the run was begun with another body.
        """
        before = metadata.get(_BODY)
        if isinstance(before, str) and len(before) == len(self.body) and before.isalnum() and before != self.body:
            text = "this `Idempotency-Key` was used with another body; a new request takes a new key"
            raise Problem(409, "idempotency-key", text)
