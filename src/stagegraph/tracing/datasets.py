"""Langfuse data sets: writing and reading their examples, and evaluating graphs on them as experiments."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from inspect import isawaitable
from statistics import fmean
from typing import TYPE_CHECKING, Any, Generic
from urllib.parse import quote

from pydantic import ValidationError
from typing_extensions import TypeVar

from stagegraph.data.examples import Example, in_parallel
from stagegraph.data.score import Feedback
from stagegraph.record.rows import EXPERIMENT
from stagegraph.record.run import RunError
from stagegraph.schema.errors import TracingError, first_problem
from stagegraph.schema.types import is_mapping

from .api import Api, as_sent
from .attributes import observation_id, trace_id
from .connection import Connection
from .tracing import LangfuseTracing

if TYPE_CHECKING:
    from langfuse.api import DatasetItem

    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run
    from stagegraph.runner.runner import Runner

In = TypeVar("In", default=Any)
Out = TypeVar("Out", default=Any)

log = logging.getLogger("stagegraph.tracing")

_CONCURRENCY = 8
_NEVER = "1970-01-01T00:00:00Z"
_MISSING: dict[str, Any] = {
    "status": "ACTIVE", "expectedOutput": None, "metadata": None, "mediaReferences": [],
    "datasetId": "", "datasetName": "", "createdAt": _NEVER, "updatedAt": _NEVER,
}  # fmt: skip
"""Defaults for fields of an item that older servers do not send."""
_ORDER = "example_order"
"""The key in an item's metadata for the time of the `to_dataset` call and the example's index in it."""


async def to_dataset(
    examples: Iterable[Example[Any]],
    name: str,
    *,
    description: str | None = None,
    connection: Connection | None = None,
) -> int:
    """Put examples into a Langfuse data set, which is created if necessary; returns the number of examples.

    An example with the same id is replaced. Examples from recorded runs are linked to the run and the call.

    Raises:
        TracingError: the server does not accept an example; earlier ones have been sent.
    """
    began = datetime.now(UTC).isoformat()
    rows = [_item(example, name, f"{began}/{place:09}") for place, example in enumerate(examples)]
    async with Api(connection or Connection.of()) as api:
        about = {"description": description} if description is not None else {}
        await api.ask("datasets", api.sdk.datasets.create, name=name, **about)

        async def put(row: dict[str, Any]) -> None:
            await api.ask("dataset-items", api.sdk.dataset_items.create, **as_sent(row, "dataset-items"))

        await in_parallel([partial(put, row) for row in rows], _CONCURRENCY)
    return len(rows)


def _item(example: Example[Any], dataset: str, order: str) -> dict[str, Any]:
    """The request for one example; requests are sent concurrently, so *order* keeps the example's position."""
    data = example.data()
    # Ids are unique in a whole project, and several data sets may contain the same example.
    item = {
        "id": sha256(f"{dataset}\0{example.id}".encode()).hexdigest()[:32],
        "dataset_name": dataset,
        "input": data["input"],
        "expected_output": data.get("expected"),
        "metadata": {**data.get("metadata", {}), "example_id": example.id, _ORDER: order},
    }
    run_id, key = example.metadata.get("run_id"), example.metadata.get("key")
    if isinstance(run_id, str):
        item["source_trace_id"] = trace_id(run_id)
        if isinstance(key, str):
            item["source_observation_id"] = observation_id(run_id, key, int(example.metadata.get("segment") or 0))
    return item


async def from_dataset(name: str, graph: Node[In, Any], *, connection: Connection | None = None) -> list[Example[In]]:
    """The active items of a Langfuse data set with inputs of the graph's type, the oldest first, in their given order.

    Raises:
        TracingError: no such data set, an input that does not fit (the message names the item), or no answer.
    """
    return [example for example, _ in await _items(name, graph, connection or Connection.of())]


async def _items(name: str, graph: Node[In, Any], connection: Connection) -> list[tuple[Example[In], DatasetItem]]:
    from langfuse.api import DatasetItem  # noqa: PLC0415

    found: list[tuple[str, Example[In], DatasetItem]] = []

    def unusable() -> None:
        msg = f"data set {name!r} has an item that cannot be read"
        raise TracingError(msg)

    async with Api(connection) as api:
        get, query = api.sdk.dataset_items.list, {"dataset_name": name, "limit": 100}
        rows: AsyncGenerator[DatasetItem] = api.rows(
            f"data set {name!r}", get, query, DatasetItem, unusable=unusable, defaults=_MISSING
        )
        async for item in rows:
            if item.status != "ACTIVE":
                continue
            try:
                given = graph.__node__.input_type.load(item.input)
            except (ValidationError, ValueError) as error:
                reason = first_problem(error) if isinstance(error, ValidationError) else str(error)
                msg = f"item {item.id} of data set {name!r} does not fit {graph.__node__.input_type.name}: {reason}"
                raise TracingError(msg) from error
            metadata: dict[str, Any] = dict(item.metadata) if is_mapping(item.metadata) else {}
            id_ = str(metadata.pop("example_id", None) or item.id)
            order = str(metadata.pop(_ORDER, None) or item.created_at.isoformat())
            found.append((order, Example(given, item.expected_output, id_, metadata), item))
    found.reverse()
    return [(example, item) for _, example, item in sorted(found, key=lambda one: one[0])]


@dataclass(frozen=True, slots=True)
class ExperimentRow(Generic[In, Out]):
    """One item of an experiment."""

    example: Example[In]
    run: Run[In, Out]
    scores: dict[str, float]


@dataclass(frozen=True, slots=True)
class Experiment(Generic[In, Out]):
    """A graph evaluated on every item of a data set."""

    name: str
    id: str
    dataset: str
    rows: tuple[ExperimentRow[In, Out], ...]

    def mean(self, score: str = "score") -> float:
        """The mean of a score over all items that have it."""
        return fmean([row.scores[score] for row in self.rows if score in row.scores])


Metric = Callable[["Example[Any]", "Run[Any, Any]"], "float | Awaitable[float]"]


async def run_experiment(
    graph: Node[In, Out],
    dataset: str,
    *,
    runner: Runner,
    metrics: dict[str, Metric],
    name: str | None = None,
    description: str | None = None,
    concurrency: int = _CONCURRENCY,
) -> Experiment[In, Out]:
    """Run a graph on every item of a Langfuse data set, and record it there as an experiment.

    Args:
        graph: The graph to evaluate.
        dataset: The data set's name.
        runner: Runs the graph; its tracing is `LangfuseTracing`.
        metrics: Name -> a function (also an async one) of the example and the whole run that returns a number. A failed
            run is not scored; a metric that fails is logged and gives no score.
        name: Name of the experiment; by default the graph's name and the time.
        description: A text for readers of the experiment.
        concurrency: Number of items that run at once.

    Raises:
        TracingError: the runner does not trace to Langfuse, there is no such data set, or the server does not answer.
    """
    tracing = runner.tracing
    if not isinstance(tracing, LangfuseTracing):
        msg = "an experiment is recorded in Langfuse: give the runner `tracing=LangfuseTracing(...)`"
        raise TracingError(msg)
    connection = tracing.connection
    label = name or f"{graph.__node__.name} - {datetime.now(UTC).isoformat(timespec='seconds')}"
    items = await _items(dataset, graph, connection)
    async with Api(connection) as api:
        get = api.sdk.datasets.get
        dataset_id = (await api.ask(f"data set {dataset!r}", get, quote(dataset, safe=""))).id
        projects = (await api.ask("projects", api.sdk.projects.get)).data
    experiment = _experiment_id(projects[0].id if projects else "None", dataset_id, label)
    rows: dict[str, ExperimentRow[In, Out]] = {}

    async def evaluate(row: tuple[Example[In], DatasetItem]) -> None:
        example, item = row
        about = {
            "id": experiment,
            "name": label,
            "description": description,
            "dataset.id": dataset_id,
            "item.id": item.id,
            "item.expected_output": json.dumps(example.data().get("expected")),
        }
        try:
            run = await runner.run(graph, example.input, metadata={EXPERIMENT: about})
        except RunError as error:
            run = error.run
        scores: dict[str, float] = {}
        for metric, judge in metrics.items() if run.status == "succeeded" else ():
            try:
                value = judge(example, run)
                scores[metric] = float(await value if isawaitable(value) else value)
            except Exception:
                log.exception("metric `%s` failed on example %s, run %s", metric, example.id, run.id)
                continue
            score = Feedback(name=metric, value=scores[metric], time=datetime.now(UTC))
            tracing.score(run.id, score, 0, run.started)
        rows[item.id] = ExperimentRow(example, run, scores)

    await in_parallel([partial(evaluate, item) for item in items], concurrency)
    await tracing.flush()
    return Experiment(label, experiment, dataset, tuple(rows[item.id] for _, item in items))


def _experiment_id(project: str, dataset: str, name: str) -> str:
    """The id that the server computes for an experiment with this name on this data set."""
    text = json.dumps(["langfuse-experiment-v1", project, dataset, name], separators=(",", ":"), ensure_ascii=False)
    return sha256(text.encode()).hexdigest()[:16]
