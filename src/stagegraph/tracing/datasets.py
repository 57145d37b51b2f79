"""Langfuse data sets: examples written to them and read from them, and graphs evaluated on them as experiments."""

from __future__ import annotations

import json
import logging
from collections.abc import Awaitable, Callable, Generator, Iterable
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from inspect import isawaitable
from statistics import fmean
from typing import TYPE_CHECKING, Any, Generic, cast
from urllib.parse import quote

import anyio
from pydantic import ValidationError
from typing_extensions import TypeVar

from stagegraph.data.examples import Example
from stagegraph.data.score import Feedback
from stagegraph.record.run import RunError
from stagegraph.schema.errors import TracingError, first_problem, leaves

from ._connection import Connection
from ._ids import observation_id, trace_id
from ._rest import Rest
from .langfuse import LangfuseTracing

if TYPE_CHECKING:
    from stagegraph.data.score import Scored
    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run
    from stagegraph.runner.runner import Runner

__all__ = ["Experiment", "ExperimentRow", "from_dataset", "run_experiment", "to_dataset"]

In = TypeVar("In", default=Any)
Out = TypeVar("Out", default=Any)

log = logging.getLogger("stagegraph.tracing")

_SIDE_BY_SIDE = 8
_ORDER = "example_order"
"""The key in an item's metadata: when `to_dataset` was called, and which of its examples it was."""


async def to_dataset(
    examples: Iterable[Example[Any]],
    name: str,
    *,
    description: str | None = None,
    connection: Connection | None = None,
) -> int:
    """Put examples into a Langfuse data set, which is made if there is none; gives how many.

    An example with the same id is replaced. Examples that came from recorded runs are linked to the run and the call.

    Raises:
        TracingError: the server does not take them; those before have been sent.
    """
    count = 0
    async with Rest(connection or Connection.of()) as rest:
        about = {"description": description} if description is not None else {}
        await rest.post("v2/datasets", {"name": name, **about})
        limiter = anyio.CapacityLimiter(_SIDE_BY_SIDE)

        began = datetime.now(UTC).isoformat()

        async def put(example: Example[Any], order: str) -> None:
            async with limiter:
                await rest.post("dataset-items", _item(example, name, order))

        with _ungrouped():
            async with anyio.create_task_group() as group:
                for example in examples:
                    group.start_soon(put, example, f"{began}/{count:09}")
                    count += 1
    return count


@contextmanager
def _ungrouped() -> Generator[None]:
    """Raise the first error of a task group by itself."""
    try:
        yield
    except BaseExceptionGroup as group:
        first = leaves(group)[0]
        raise first from first.__cause__


def _item(example: Example[Any], dataset: str, order: str) -> dict[str, Any]:
    """What the server is sent; as examples go there side by side, *order* says where this one stood."""
    data = example.data()
    # Ids are unique in a whole project, and the same example may stand in several data sets.
    item = {
        "id": sha256(f"{dataset}\0{example.id}".encode()).hexdigest()[:32],
        "datasetName": dataset,
        "input": data["input"],
        "expectedOutput": data.get("expected"),
        "metadata": {**data.get("metadata", {}), "example_id": example.id, _ORDER: order},
    }
    run_id, key = example.metadata.get("run_id"), example.metadata.get("key")
    if isinstance(run_id, str):
        item["sourceTraceId"] = trace_id(run_id)
        if isinstance(key, str):
            item["sourceObservationId"] = observation_id(run_id, key, int(example.metadata.get("segment") or 0))
    return item


async def from_dataset(name: str, graph: Node[In, Any], *, connection: Connection | None = None) -> list[Example[In]]:
    """The active items of a Langfuse data set, with inputs of the graph's type: the oldest first, as they were given.

    Raises:
        TracingError: there is no such data set, an input does not fit (it names the item), or nobody answers.
    """
    return [example for example, _ in await _items(name, graph, connection or Connection.of())]


async def _items(name: str, graph: Node[In, Any], connection: Connection) -> list[tuple[Example[In], dict[str, Any]]]:
    found: list[tuple[str, Example[In], dict[str, Any]]] = []
    async with Rest(connection) as rest:
        async for item in rest.rows("dataset-items", datasetName=name, limit=100):
            if item.get("status", "ACTIVE") != "ACTIVE":
                continue
            try:
                given = graph.__node__.input_type.load(item.get("input"))
            except (ValidationError, ValueError) as error:
                reason = first_problem(error) if isinstance(error, ValidationError) else str(error)
                msg = f"item {item.get('id')} of data set {name!r} is no {graph.__node__.input_type.name}: {reason}"
                raise TracingError(msg) from error
            told: Any = item.get("metadata")
            metadata = dict(cast("dict[str, Any]", told)) if isinstance(told, dict) else {}
            id_ = str(metadata.pop("example_id", None) or item.get("id"))
            order = str(metadata.pop(_ORDER, None) or item.get("createdAt") or "")
            found.append((order, Example(given, item.get("expectedOutput"), id_, metadata), item))
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
    side_by_side: int = _SIDE_BY_SIDE,
) -> Experiment[In, Out]:
    """Run a graph on every item of a Langfuse data set, and record it there as an experiment.

    Args:
        graph: What to evaluate.
        dataset: The data set's name.
        runner: Runs it; its tracing is `LangfuseTracing`.
        metrics: Name -> a function (also an async one) of the example and the whole run, which gives a number. A run
            that failed is not scored; a metric that fails is logged and gives no score.
        name: Of the experiment; the graph's name and the time without it.
        description: What a reader should know.
        side_by_side: How many items run at once.

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
    async with Rest(connection) as rest:
        dataset_id = str((await rest.get(f"v2/datasets/{quote(dataset, safe='')}")).get("id"))
        projects: Any = (await rest.get("projects")).get("data") or [{}]
    experiment = _experiment_id(str(projects[0].get("id")), dataset_id, label)
    rows: dict[str, ExperimentRow[In, Out]] = {}
    limiter = anyio.CapacityLimiter(side_by_side)

    async def one(example: Example[In], item: dict[str, Any]) -> None:
        about = {
            "id": experiment,
            "name": label,
            "description": description,
            "dataset.id": dataset_id,
            "item.id": str(item["id"]),
            "item.expected_output": json.dumps(example.data().get("expected")),
        }
        async with limiter:
            try:
                run = await runner.run(graph, example.input, metadata={"experiment": about})
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
                _send(tracing, run, metric, scores[metric])
        rows[str(item["id"])] = ExperimentRow(example, run, scores)

    with _ungrouped():
        async with anyio.create_task_group() as group:
            for example, item in items:
                group.start_soon(one, example, item)
    await tracing.flush()
    return Experiment(label, experiment, dataset, tuple(rows[str(item["id"])] for _, item in items))


def _send(tracing: LangfuseTracing, run: Run[Any, Any], name: str, value: Scored) -> None:
    now = datetime.now(UTC)
    tracing.score(run.id, Feedback(name=name, value=value, time=now), 0, run.started)


def _experiment_id(project: str, dataset: str, name: str) -> str:
    """The id that the server works out for an experiment of this name on this data set."""
    text = json.dumps(["langfuse-experiment-v1", project, dataset, name], separators=(",", ":"), ensure_ascii=False)
    return sha256(text.encode()).hexdigest()[:16]
