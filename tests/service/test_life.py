"""Processes that end in every way while runs go on: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import signal
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from forked import python
from serving import Worker, events

RUNS = 12


def start(client: httpx.Client, count: int = RUNS) -> list[str]:
    """Begin runs that end when the gate is open."""
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda number: client.post("/runs?wait=false", json=number), range(count)))
    assert {answer.status_code for answer in answers} == {202}
    return [answer.json()["run_id"] for answer in answers]


def effects(folder: Path) -> Counter[str]:
    return Counter((folder / "effects").read_text("utf-8").splitlines())


def check_done(client: httpx.Client, folder: Path, ids: list[str], first: int = 0) -> None:
    """Every run has its output, and every call had its effect exactly once."""
    for number, run_id in enumerate(ids, first):
        with client.stream("GET", f"/runs/{run_id}/events") as stream:
            assert list(events(stream))[-1]["event"] == "run_finished"
        state = client.get(f"/runs/{run_id}").json()
        assert (state["status"], state["output"]) == ("succeeded", [2 * (number + i + 1) for i in range(3)])
    expected = {f"{run_id} {kind}[{i}]" for run_id in ids for kind in ("quick", "gated") for i in range(3)}
    assert effects(folder) == Counter(expected)


def wait_for_quick(client: httpx.Client, ids: list[str]) -> None:
    """Wait until every run is at its gate, with what it did before it in the journal."""
    for run_id in ids:
        status = "interrupted"
        while status == "interrupted":  # an earlier process has been at the gate, and this one has not taken it up yet
            with client.stream("GET", f"/runs/{run_id}/events") as stream:
                reading = events(stream)
                while '"key":"gated[2]"' not in next(reading)["data"]:
                    pass
            status = client.get(f"/runs/{run_id}").json()["status"]
        assert status == "running"


def ask(client: httpx.Client, folder: Path, number: int) -> tuple[threading.Thread, list[httpx.Response]]:
    """A request that waits for its run, from a thread of its own, once the run has begun; and where its answer comes."""
    answers: list[httpx.Response] = []
    asking = threading.Thread(target=lambda: answers.append(client.post("/runs", json=number)))
    asking.start()
    while len(set(effects_ids(folder))) <= number:
        asking.join(0.01)
        assert asking.is_alive()
    return asking, answers


def flush(client: httpx.Client) -> None:
    """A 202 is answered when everything that was recorded before is in the file."""
    client.post("/runs?wait=false", json=0)


def test_a_killed_service_goes_on_where_it_was(tmp_path: Path):
    """kill -9 under load: the next process finishes every run that was accepted, each effect once."""
    with Worker(tmp_path, "30") as first, first.client() as client:
        ids = start(client)
        wait_for_quick(client, ids)
        flush(client)
        first.end(signal.SIGKILL)
    (tmp_path / "gate").touch()
    with Worker(tmp_path, "30") as second, second.client() as client:
        last = next(iter(set(effects_ids(tmp_path)) - set(ids)), None)
        check_done_of(client, tmp_path, ids, last)


def effects_ids(folder: Path) -> list[str]:
    return [line.split()[0] for line in effects(folder)]


def check_done_of(client: httpx.Client, folder: Path, ids: list[str], other: str | None) -> None:
    """The same while one more run has effects of its own."""
    for run_id in [*ids, *([other] if other else [])]:
        with client.stream("GET", f"/runs/{run_id}/events") as stream:
            assert list(events(stream))[-1]["event"] == "run_finished"
    seen = effects(folder)
    assert set(seen.values()) == {1}
    for number, run_id in enumerate(ids):
        state = client.get(f"/runs/{run_id}").json()
        assert (state["status"], state["output"]) == ("succeeded", [2 * (number + i + 1) for i in range(3)])
        assert sum(line.startswith(run_id) for line in seen) == 6


def test_two_processes_take_up_each_run_once(tmp_path: Path):
    """Several processes start on one journal file after a crash: together they do what is left, once."""
    with Worker(tmp_path, "30") as first, first.client() as client:
        ids = start(client)
        wait_for_quick(client, ids)
        flush(client)
        first.end(signal.SIGKILL)
    others = [Worker(tmp_path, "30"), Worker(tmp_path, "30")]
    try:
        (tmp_path / "gate").touch()
        with others[0].client() as client:
            check_done_of(client, tmp_path, ids, None)
    finally:
        for other in others:
            other.__exit__()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_shutdown_that_cannot_wait_leaves_runs_to_be_taken_up(tmp_path: Path, number: int):
    """The deadline counts from the signal: who waits is told 503, and the next process finishes the runs."""
    with Worker(tmp_path, "0.2") as first, first.client() as client, first.client() as waiting:
        ids = start(client, 6)
        wait_for_quick(client, ids)
        asking, answers = ask(waiting, tmp_path, 6)
        first.end(number)
        asking.join(30)
        [answer] = answers
        assert answer.status_code == 503
        assert answer.json()["type"].endswith("interrupted")
        ids.append(answer.json()["run_id"])
    assert set(effects(tmp_path).values()) == {1}
    (tmp_path / "gate").touch()
    with Worker(tmp_path, "30") as second, second.client() as client:
        check_done(client, tmp_path, ids)


def test_a_shutdown_waits_for_runs_that_can_end(tmp_path: Path):
    """Runs that end before the deadline are finished by the process that is shutting down, and answered."""
    with Worker(tmp_path, "30") as first, first.client() as client, first.client() as waiting:
        ids = start(client, 4)
        wait_for_quick(client, ids)
        asking, answers = ask(waiting, tmp_path, 4)
        first.process.send_signal(signal.SIGTERM)
        (tmp_path / "gate").touch()
        assert first.process.wait(30) in {0, -signal.SIGTERM}
        asking.join(30)
        assert answers[0].status_code == 200
    assert set(effects(tmp_path).values()) == {1}
    assert len(effects(tmp_path)) == 6 * 5
    with Worker(tmp_path, "30") as second, second.client() as client:
        assert [client.get(f"/runs/{run_id}").json()["status"] for run_id in ids] == ["succeeded"] * 4


@pytest.mark.parametrize(
    "options", [("0.2",), ("0.2", "20"), ("30", "1"), ("30",)], ids=["plain", "patient", "impatient", "waiting"]
)
def test_a_handler_of_ones_own_is_drained_too(tmp_path: Path, options: tuple[str, ...]):
    """`await runner.run(...)` in a request ends before the deadline, ours or the server's, or can be taken up."""
    ends = options == ("30",)
    with Worker(tmp_path, *options) as first, first.client() as waiting:
        answers: list[httpx.Response] = []
        asking = threading.Thread(target=lambda: answers.append(waiting.post("/by-hand/5")))
        asking.start()
        while not (tmp_path / "effects").exists() or effects(tmp_path).total() < 3:
            asking.join(0.01)
            assert asking.is_alive()
        first.process.send_signal(signal.SIGTERM)
        if ends:
            (tmp_path / "gate").touch()
        first.process.wait(60)
        asking.join(30)
    if ends:
        assert [answer.json() for answer in answers] == [[12, 14, 16]]
        return
    assert [answer.status_code for answer in answers] == [500]
    [run_id] = set(effects_ids(tmp_path))
    (tmp_path / "gate").touch()
    with Worker(tmp_path, "30") as second, second.client() as client:
        check_done(client, tmp_path, [run_id], first=5)


def test_a_run_that_kills_its_process_is_given_up(tmp_path: Path):
    """It is taken up three times, then left as failed with the reason, and a person may still resume it."""
    with Worker(tmp_path, "30") as first, first.client() as client:
        [run_id] = start(client, 1)
        wait_for_quick(client, [run_id])
        flush(client)
        first.end(signal.SIGKILL)
    for _ in range(3):
        with Worker(tmp_path, "30") as again, again.client() as client:
            wait_for_quick(client, [run_id])
            flush(client)
            again.end(signal.SIGKILL)
    with Worker(tmp_path, "30") as last, last.client() as client:
        with client.stream("GET", f"/runs/{run_id}/events") as stream:
            assert list(events(stream))[-1]["event"] == "run_finished"
        state = client.get(f"/runs/{run_id}").json()
        assert (state["status"], state["failed_at"]) == ("failed", None)
        assert state["detail"].startswith("the process that ran it ended 4 times before the run did")
    journal = str(tmp_path / "runs.db")
    listed = python("-m", "stagegraph", "runs", "--journal", journal, "--status", "failed", check=True)
    assert "the process that ran it ended 4 times" in " ".join(listed.stdout.split())
