"""Prompts, datasets with their items, and experiments, kept as a Langfuse server keeps them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from _observations import PROJECT, iso
from _otlp import Span
from _queries import Query, Refused, Row, cursor_page, moment, now, numbered_page

__all__ = ["Datasets", "Prompts", "experiments"]

_AT: Final = "langfuse.experiment."
_LATEST: Final = "latest"


def _new() -> dict[str, list[Row]]:
    return {}


@dataclass
class Prompts:
    """Versions by name, oldest first."""

    by_name: dict[str, list[Row]] = field(default_factory=_new)

    def id_of(self, name: str, version: int) -> str | None:
        """The id a generation is linked to, when that version exists."""
        found = [one for one in self.by_name.get(name, []) if one["version"] == version]
        return f"prompt-{name}-{version}" if found else None

    def create(self, body: Row) -> Row:
        """A new version, which takes its labels from the versions that had them."""
        name, kind = str(body["name"]), str(body.get("type") or "text")
        versions = self.by_name.setdefault(name, [])
        if versions and versions[-1]["type"] != kind:
            raise Refused(
                400, "Previous versions have different prompt type. Create a new prompt with a different name."
            )
        if _LATEST in (body.get("labels") or []):
            raise Refused(400, "Label 'latest' is always assigned to the latest prompt version")
        tags: list[str] | None = body.get("tags")
        if tags is None:
            tags = list(versions[-1]["tags"]) if versions else []
        made: Row = {
            "name": name,
            "version": versions[-1]["version"] + 1 if versions else 1,
            "type": kind,
            "prompt": body["prompt"],
            "labels": [],
            "tags": tags,
            "config": body.get("config") or {},
            "commitMessage": body.get("commitMessage"),
            "resolutionGraph": None,
            "createdAt": now(),
            "updatedAt": now(),
        }
        versions.append(made)
        for version in versions:
            version["tags"] = list(tags)
        self._give(name, made, [*(body.get("labels") or []), _LATEST])
        return made

    def _give(self, name: str, version: Row, labels: list[str]) -> None:
        for other in self.by_name[name]:
            other["labels"] = [label for label in other["labels"] if label not in labels]
        version["labels"] += dict.fromkeys(labels)
        version["updatedAt"] = now()

    def get(self, name: str, query: Query) -> Row:
        """One version; the one labelled `production` when neither number nor label is asked for."""
        (version,), (label,) = query.get("version", [None]), query.get("label", [None])
        if version is not None and label is not None:
            raise Refused(400, "Cannot specify both version and label")
        label = (label or "production") if version is None else None
        for one in self.by_name.get(name, []):
            if str(one["version"]) == version or label in one["labels"]:
                return one
        wanted = f"version {version}" if label is None else f"label '{label}'"
        raise Refused(404, f"Prompt not found: '{name}' with {wanted}")

    def relabel(self, name: str, version: str, labels: list[str]) -> Row:
        """Labels are added to a version and taken from the others: none is ever removed by this call."""
        if _LATEST in labels:
            raise Refused(400, "Label 'latest' is always assigned to the latest prompt version")
        found = self.get(name, {"version": [version]})
        self._give(name, found, [label for label in labels if label not in found["labels"]])
        return found


@dataclass
class Datasets:
    """Datasets by name, and items by id."""

    by_name: dict[str, Row] = field(default_factory=dict[str, Row])
    items: dict[str, Row] = field(default_factory=dict[str, Row])

    def create(self, body: Row) -> Row:
        """Make a dataset, or change the one of that name."""
        name = str(body["name"])
        old = self.by_name.get(name, {"id": uuid.uuid4().hex, "createdAt": now()})
        fields = ("description", "metadata", "inputSchema", "expectedOutputSchema")
        self.by_name[name] = {
            **dict.fromkeys(fields),
            **old,
            **{key: body[key] for key in fields if key in body},
            "name": name,
            "projectId": PROJECT,
            "updatedAt": now(),
        }
        return self.by_name[name]

    def get(self, name: str) -> Row:
        """The dataset of this name."""
        if name not in self.by_name:
            raise Refused(404, f"Dataset not found: {name}")
        return self.by_name[name]

    def put_item(self, body: Row) -> Row:
        """Make an item, or change the one of that id; what was not sent, or sent as null, stays."""
        dataset = self.get(str(body["datasetName"]))
        key = str(body.get("id") or uuid.uuid4().hex)
        old = self.items.get(key, {"status": "ACTIVE", "createdAt": now()})
        if old.get("datasetId", dataset["id"]) != dataset["id"]:
            raise Refused(404, f"The dataset item with id {key} was not found in the dataset {dataset['name']}")
        fields = ("input", "expectedOutput", "metadata", "sourceTraceId", "sourceObservationId")
        changed = now()
        self.items[key] = {
            **dict.fromkeys(fields),
            **old,
            **{name: body[name] for name in (*fields, "status") if body.get(name) is not None},
            "id": key,
            "datasetId": dataset["id"],
            "datasetName": dataset["name"],
            "updatedAt": changed,
            "version": changed,
            "mediaReferences": [],
        }
        return self.items[key]

    def listed(self, query: Query) -> Row:
        """Active and archived items, newest first."""
        for name in query.get("datasetName", []):
            self.get(name)
        rows = [item for item in self.items.values() if item["datasetName"] in query.get("datasetName", [])]
        return numbered_page(rows[::-1], query)


def experiments(spans: Sequence[Span], query: Query) -> Row:
    """One row an experiment id, of the group `core`."""
    begin = moment(query["fromStartTime"][0])
    runs: dict[str, list[Span]] = {}
    for span in spans:
        if name := span.attributes.get(_AT + "id"):
            runs.setdefault(name, []).append(span)
    rows: list[Row] = []
    for key, group in runs.items():
        at = {name: value for span in group for name, value in span.attributes.items()}
        rows.append(
            {
                "id": key,
                "name": at.get(_AT + "name") or key,
                "description": at.get(_AT + "description"),
                "startTime": iso(min(span.start for span in group)),
                "endTime": iso(max(span.end for span in group)),
                "itemCount": len({span.attributes.get(_AT + "item.id") for span in group}),
                "datasetId": at.get(_AT + "dataset.id"),
            }
        )
    page, meta = cursor_page(
        (row for row in rows if moment(row["startTime"]) >= begin), query, by="endTime", highest=100
    )
    return {"data": page, "meta": meta}
