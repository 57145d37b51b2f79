"""Prompts, datasets and dataset items, kept as a Langfuse server keeps them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from typing import Any, Final

from _observations import PROJECT
from _queries import Query, Refused, Row, moment, now, numbered_page

__all__ = ["Datasets", "Prompts"]

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

    def get(self, name: str, version: int | None, label: str | None) -> Row:
        """One version; the one labelled `production` when neither number nor label is asked for."""
        if version is not None and label is not None:
            raise Refused(400, "Cannot specify both version and label")
        label = (label or "production") if version is None else None
        for one in self.by_name.get(name, []):
            if one["version"] == version or label in one["labels"]:
                return one
        wanted = f"version {version}" if label is None else f"label '{label}'"
        raise Refused(404, f"Prompt not found: '{name}' with {wanted}")

    def relabel(self, name: str, version: int, labels: list[str]) -> Row:
        """Labels are added to a version and taken from the others: none is ever removed by this call."""
        if _LATEST in labels:
            raise Refused(400, "Label 'latest' is always assigned to the latest prompt version")
        found = self.get(name, version, None)
        self._give(name, found, [label for label in labels if label not in found["labels"]])
        return found

    def listed(self, query: Query) -> Row:
        """One row a name, for the versions that fulfil the filters."""
        rows: list[Row] = []
        for name, versions in self.by_name.items():
            kept = [
                one
                for one in versions
                if name in query.get("name", [name])
                and all(label in one["labels"] for label in query.get("label", []))
                and all(tag in one["tags"] for tag in query.get("tag", []))
            ]
            if kept:
                rows.append(
                    {
                        "name": name,
                        "type": kept[-1]["type"],
                        "versions": [one["version"] for one in kept],
                        "labels": sorted({label for one in kept for label in one["labels"]}),
                        "tags": kept[-1]["tags"],
                        "lastUpdatedAt": max(one["updatedAt"] for one in kept),
                        "lastConfig": kept[-1]["config"],
                    }
                )
        return numbered_page(rows, query)

    def delete(self, name: str, query: Query) -> None:
        """Remove the versions asked for, or all."""
        numbers = [int(text) for text in query.get("version", [])]
        gone = [
            one
            for one in self.by_name.get(name, [])
            if one["version"] in (numbers or [one["version"]])
            and all(label in one["labels"] for label in query.get("label", []))
        ]
        if not gone:
            raise Refused(404, f"Prompt not found: '{name}'")
        self.by_name[name] = [one for one in self.by_name[name] if one not in gone]


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

    def item(self, key: str) -> Row:
        """The item of this id."""
        if key not in self.items:
            raise Refused(404, f"Dataset item not found: {key}")
        return self.items[key]

    def listed(self, query: Query) -> Row:
        """Active and archived items, newest first."""
        names = {
            "datasetName": "datasetName",
            "sourceTraceId": "sourceTraceId",
            "sourceObservationId": "sourceObservationId",
        }
        for name in query.get("datasetName", []):
            self.get(name)
        until = [moment(text) for text in query.get("version", [])]
        rows: list[Row] = [
            item
            for item in self.items.values()
            if all(item[name] in query.get(name, [item[name]]) for name in names)
            and all(moment(item["createdAt"]) <= limit for limit in until)
        ]
        return numbered_page(rows[::-1], query)

    def listed_datasets(self, query: Query) -> Row:
        """Datasets, newest first."""
        rows: list[Any] = list(self.by_name.values())
        return numbered_page(rows[::-1], query)
