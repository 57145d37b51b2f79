"""The endpoints of a Langfuse server, by path."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

from _http import Answer, Request
from _media import Media
from _observations import GROUPS, PROJECT, project, row
from _otlp import Span, decode
from _queries import Query, Refused, Row, cursor_page, matches, moment
from _records import Datasets, Prompts, experiments
from _scores import Scores

__all__ = ["Api"]

_SAME: Final = {
    "name": "name",
    "userId": "userId",
    "sessionId": "sessionId",
    "type": "type",
    "traceId": "traceId",
    "level": "level",
    "version": "version",
    "environment": "environment",
}
"""Parameters that a column has to equal."""


class Api:
    """What the server knows, and its answers to requests with the right keys."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        """What was received, in order."""
        self.lag = 0
        """How many reads of observations do not see a span yet."""
        self.omit: set[str] = set()
        """Fields left out of observation rows, as on servers that lack them."""
        self.spoil: Callable[[list[Row]], list[Any]] = lambda rows: rows
        """What makes an answer odd: it gets the rows of a page of observations and gives others."""
        self.rejected_scores: set[str] = set()
        """Names of scores that are rejected: their batch is answered with 207."""
        self._reads = 0
        self._arrived: list[int] = []
        scores, prompts, datasets, media = self._scores, self._prompts, self._datasets, self._media = (
            Scores(),
            Prompts(),
            Datasets(),
            Media(),
        )
        plain: list[tuple[str, str, Callable[[Request], Any]]] = [
            ("GET", "health", lambda _: {"status": "OK", "version": "4.59.0"}),
            ("GET", "projects", self._projects),
            ("POST", "otel/v1/traces", self._traces),
            ("POST", "scores", lambda one: Answer(*scores.accept(one.json, self.rejected_scores))),
            ("GET", "v3/scores", lambda one: scores.listed(one.query)),
            ("GET", "v2/observations", self._observations),
            ("POST", "v2/prompts", lambda one: prompts.create(one.json)),
            ("POST", "v2/datasets", lambda one: datasets.create(one.json)),
            ("POST", "media", media.announce),
            ("POST", "dataset-items", lambda one: datasets.put_item(one.json)),
            ("GET", "dataset-items", lambda one: datasets.listed(one.query)),
            ("GET", "experiments", lambda one: experiments(self._visible(), one.query)),
        ]
        named: list[tuple[str, str, Callable[[Request, str], Any]]] = [
            ("GET", "v2/prompts/([^/]+)", lambda one, name: prompts.get(name, one.query)),
            ("GET", "v2/datasets/([^/]+)", lambda _, name: datasets.get(name)),
            ("PATCH", "media/([^/]+)", media.confirm),
            ("GET", "media/([^/]+)", media.get),
        ]
        relabel = ("PATCH", "v2/prompts/([^/]+)/versions/([0-9]+)", self._relabel)
        routes: list[tuple[str, str, Callable[..., Any]]] = [*plain, *named, relabel]
        self._routes = [(method, re.compile(f"/api/public/{path}"), endpoint) for method, path, endpoint in routes]
        storage = re.compile("/storage/([^/]+)")
        self._routes += [("PUT", storage, media.put), ("GET", storage, media.read)]

    def answer_to(self, request: Request) -> Answer:
        """Find the endpoint; names in a path are decoded only now, so an unencoded slash finds nothing."""
        for method, path, endpoint in self._routes:
            found = path.fullmatch(request.path)
            if found and method == request.method:
                try:
                    result = endpoint(request, *map(unquote, found.groups()))
                except Refused as refused:
                    return Answer(refused.status, {"message": refused.message, "error": type(refused).__name__})
                return result if isinstance(result, Answer) else Answer(200, result)
        known = any(path.fullmatch(request.path) for _, path, _ in self._routes)
        return Answer(405 if known else 404, {"message": f"{request.method} {request.path} is not served here"})

    def _projects(self, _: Request) -> Row:
        organization = {"id": "org-test", "name": "Test"}
        return {"data": [{"id": PROJECT, "name": "Test", "organization": organization, "metadata": {}}]}

    def _traces(self, request: Request) -> Answer:
        headers = request.headers
        if "x-protobuf" not in headers.get("content-type", ""):
            raise Refused(415, "Expected application/x-protobuf")
        try:
            found = decode(request.body, headers.get("content-encoding", ""), headers.get("x-langfuse-sdk-version", ""))
        except Exception as error:
            raise Refused(400, f"Not OTLP: {error}") from error
        self.spans += found
        self._arrived += [self._reads] * len(found)
        return Answer(200, b"", {"Content-Type": "application/x-protobuf"})

    def _relabel(self, request: Request, name: str, version: str) -> Row:
        return self._prompts.relabel(name, version, request.json["newLabels"])

    def _visible(self) -> list[Span]:
        """The spans a read may see; a span that was sent again counts once, as last sent."""
        self._reads += 1
        seen = [span for span, at in zip(self.spans, self._arrived, strict=True) if self._reads > at + self.lag]
        return list({(span.trace_id, span.span_id): span for span in seen}.values())

    def _observations(self, request: Request) -> Row:
        query = request.query
        fields = query.get("fields", ["core,basic"])[0].split(",")
        if unknown := set(fields) - GROUPS.keys():
            raise Refused(400, f"Unknown field groups: {sorted(unknown)}")
        if query.get("parseIoAsJson") == ["true"]:
            raise Refused(400, "parseIoAsJson is no longer supported")
        rows = [row(span, self._prompts.id_of) for span in self._visible()]
        chosen = (
            matches(rows, query["filter"][0]) if "filter" in query else [one for one in rows if _wanted(one, query)]
        )
        page, meta = cursor_page(chosen, query, by="startTime", highest=1000)
        expanded = query.get("expandMetadata", [""])[0].split(",")
        return {"data": self.spoil([project(one, fields, expanded, self.omit) for one in page]), "meta": meta}


def _wanted(row: Row, query: Query) -> bool:
    root = [text == "true" for text in query.get("isRootObservation", [])]
    parent = query.get("parentObservationId", [])
    start = moment(row["startTime"])
    return (
        all(row[column] in query[name] for name, column in _SAME.items() if name in query)
        and all(row["isRootObservation"] == wanted for wanted in root)
        and all((row["parentObservationId"] or "") == wanted for wanted in parent)
        and all(start >= moment(text) for text in query.get("fromStartTime", []))
        and all(start < moment(text) for text in query.get("toStartTime", []))
    )
