"""Several processes on one journal file: a run that one of them holds is watched and cancelled from the other."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from serving import Worker, events


@pytest.fixture(name="workers")
def _workers(tmp_path: Path) -> Iterator[tuple[httpx.Client, httpx.Client]]:
    with (
        Worker(tmp_path, "30") as holder,
        Worker(tmp_path, "30") as other,
        holder.client() as one,
        other.client() as two,
    ):
        yield one, two


def keys(seen: list[dict[str, str]], kind: str) -> list[str]:
    return sorted(json.loads(event["data"])["key"] for event in seen if event["event"] == kind)


def test_progress_is_seen_from_another_process(workers: tuple[httpx.Client, httpx.Client], tmp_path: Path):
    """Calls are told as they are recorded, then the end; who was cut off goes on after what it has."""
    one, two = workers
    run_id = one.post("/runs?wait=false", json=1).json()["run_id"]
    with two.stream("GET", f"/runs/{run_id}/events") as stream:
        reading = events(stream)
        first = [next(reading) for _ in range(2 + 3 * 2)]  # the run, its graph, and what is done before the gate
    assert first[0]["event"] == "run_started"
    assert keys(first, "call_started") == ["", "quick[0]", "quick[1]", "quick[2]"]
    assert keys(first, "call_finished") == ["quick[0]", "quick[1]", "quick[2]"]
    (tmp_path / "gate").touch()
    with two.stream("GET", f"/runs/{run_id}/events", headers={"Last-Event-ID": first[-1]["id"]}) as stream:
        rest = list(events(stream))
    assert keys(rest, "call_finished") == ["", "gated[0]", "gated[1]", "gated[2]"]
    assert rest[-1]["event"] == "run_finished"
    assert json.loads(rest[-1]["data"])["output"] == [4, 6, 8]
    assert [json.loads(event["data"])["seq"] for event in [*first, *rest]] == list(range(len(first) + len(rest)))


@pytest.mark.parametrize("last", ["1-2", "j00000000-3", "nonsense", "-", "9" * 40])
def test_an_id_from_elsewhere_loses_nothing(workers: tuple[httpx.Client, httpx.Client], tmp_path: Path, last: str):
    """Who comes from another process with its event id is told everything."""
    one, two = workers
    (tmp_path / "gate").touch()
    run_id = one.post("/runs", json=1).json()["run_id"]
    seen = list(events(two.get(f"/runs/{run_id}/events", headers={"Last-Event-ID": last})))
    assert (seen[0]["event"], seen[-1]["event"]) == ("run_started", "run_finished")
    assert len(keys(seen, "call_finished")) == 7


def test_a_run_is_cancelled_from_another_process(workers: tuple[httpx.Client, httpx.Client], tmp_path: Path):
    """Its holder ends it, for good, and who waits for it there is told; what was cancelled can still be resumed."""
    one, two = workers
    run_id = one.post("/runs?wait=false", json=1).json()["run_id"]
    answer = two.post(f"/runs/{run_id}/cancel")
    assert (answer.status_code, answer.json()["status"]) == (200, "cancelled")
    assert one.get(f"/runs/{run_id}").json()["status"] == "cancelled"
    assert list(events(two.get(f"/runs/{run_id}/events")))[-1]["event"] == "run_finished"
    assert not (tmp_path / "gate").exists()
