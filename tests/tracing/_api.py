"""The endpoints of a Langfuse server, by path."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import unquote

from _experiments import experiment_items, experiments
from _http import Answer, Request
from _media import Media
from _observations import GROUPS, PROJECT, project, row
from _otlp import Span, decode
from _queries import Query, Refused, Row, cursor_page, matches, moment
from _records import Datasets, Prompts
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
    """What the server knows, and its answers."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.scores = Scores()
        self.prompts = Prompts()
        self.datasets = Datasets()
        self.media = Media()
        self.lag = 0
        self.omit: set[str] = set()
        self.spoil: Callable[[list[Row]], list[Any]] = lambda rows: rows
        self.rejected_scores: set[str] = set()
        self._reads = 0
        self._arrived: list[int] = []
        plain: list[tuple[str, str, Callable[[Request], Any]]] = [
            ("GET", "health", lambda _: {"status": "OK", "version": "4.59.0"}),
            ("GET", "projects", self._projects),
            ("POST", "otel/v1/traces", self._traces),
            ("POST", "scores", self._scores),
            ("GET", "v3/scores", lambda request: self.scores.listed(request.query)),
            ("GET", "v2/observations", self._observations),
            ("POST", "v2/prompts", lambda request: self.prompts.create(request.json)),
            ("GET", "v2/prompts", lambda request: self.prompts.listed(request.query)),
            ("POST", "v2/datasets", lambda request: self.datasets.create(request.json)),
            ("GET", "v2/datasets", lambda request: self.datasets.listed_datasets(request.query)),
            ("POST", "media", self.media.announce),
            ("POST", "dataset-items", lambda request: self.datasets.put_item(request.json)),
            ("GET", "dataset-items", lambda request: self.datasets.listed(request.query)),
            ("GET", "experiments", lambda request: experiments(self._visible(), self.scores, request.query)),
            ("GET", "experiment-items", self._experiment_items),
        ]
        named: list[tuple[str, str, Callable[[Request, str], Any]]] = [
            ("DELETE", "scores/([^/]+)", self._delete_score),
            ("GET", "v2/prompts/([^/]+)", self._prompt),
            ("DELETE", "v2/prompts/([^/]+)", self._delete_prompt),
            ("GET", "v2/datasets/([^/]+)", lambda _, name: self.datasets.get(name)),
            ("GET", "dataset-items/([^/]+)", lambda _, key: self.datasets.item(key)),
            ("DELETE", "dataset-items/([^/]+)", self._delete_item),
            ("PATCH", "media/([^/]+)", self.media.confirm),
            ("GET", "media/([^/]+)", self.media.get),
        ]
        relabel = ("PATCH", "v2/prompts/([^/]+)/versions/([0-9]+)", self._relabel)
        routes: list[tuple[str, str, Callable[..., Any]]] = [*plain, *named, relabel]
        self._routes = [(method, re.compile(f"/api/public/{path}"), endpoint) for method, path, endpoint in routes]
        storage = re.compile("/storage/([^/]+)")
        self._routes += [("PUT", storage, self.media.put), ("GET", storage, self.media.read)]

    def answer(self, request: Request) -> Answer:
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

    def _scores(self, request: Request) -> Answer:
        return Answer(*self.scores.accept(request.json, lambda body: body.get("name") in self.rejected_scores))

    def _delete_score(self, _: Request, key: str) -> Answer:
        self.scores.by_id.pop(key, None)
        self.scores.rows.pop(key, None)
        return Answer(202, {"message": "Score deletion request received"})

    def _prompt(self, request: Request, name: str) -> Row:
        version, label = request.query.get("version"), request.query.get("label")
        return self.prompts.get(name, int(version[0]) if version else None, label[0] if label else None)

    def _relabel(self, request: Request, name: str, version: str) -> Row:
        return self.prompts.relabel(name, int(version), request.json["newLabels"])

    def _delete_prompt(self, request: Request, name: str) -> Answer:
        self.prompts.delete(name, request.query)
        return Answer(204, b"")

    def _delete_item(self, _: Request, key: str) -> Row:
        del self.datasets.items[self.datasets.item(key)["id"]]
        return {"message": "Dataset item successfully deleted"}

    def _visible(self) -> list[Span]:
        """The spans a read may see; a span that was sent again counts once, as last sent."""
        self._reads += 1
        seen = [span for span, at in zip(self.spans, self._arrived, strict=True) if self._reads > at + self.lag]
        return list({(span.trace_id, span.span_id): span for span in seen}.values())

    def _experiment_items(self, request: Request) -> Row:
        rows = [(span, row(span, self.prompts.id_of)) for span in self._visible()]
        return experiment_items(rows, self.scores, request.query)

    def _observations(self, request: Request) -> Row:
        query = request.query
        fields = query.get("fields", ["core,basic"])[0].split(",")
        if unknown := set(fields) - GROUPS.keys():
            raise Refused(400, f"Unknown field groups: {sorted(unknown)}")
        if query.get("parseIoAsJson") == ["true"]:
            raise Refused(400, "parseIoAsJson is no longer supported")
        rows = [row(span, self.prompts.id_of) for span in self._visible()]
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
