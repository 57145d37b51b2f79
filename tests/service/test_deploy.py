"""A new version is deployed while agents are in the middle of their tools: no run is lost."""

from __future__ import annotations

import os
import signal
from itertools import islice
from pathlib import Path

from serving import Worker, events

RUNS = int(os.environ.get("STAGEGRAPH_DEPLOYED_RUNS", "8"))


def test_runs_whose_agents_are_in_tools_are_finished_by_the_next_process(tmp_path: Path) -> None:
    """SIGTERM interrupts runs in every form of concurrency; each that was answered 202 ends well after the restart."""
    with Worker(tmp_path, "0.2", program="deployed.py") as first, first.client() as client:
        answers = [client.post("/runs?wait=false", json=number) for number in range(RUNS)]
        assert {answer.status_code for answer in answers} == {202}
        ids = [answer.json()["run_id"] for answer in answers]
        for run_id in ids[:-1]:  # the last one may be anywhere
            with client.stream("GET", f"/runs/{run_id}/events") as stream:
                seen = (event["event"] for event in events(stream))
                assert list(islice((kind for kind in seen if kind == "tool_called"), 2)) == ["tool_called"] * 2
        first.end(signal.SIGTERM)
    (tmp_path / "gate").touch()
    with Worker(tmp_path, "30", program="deployed.py") as second, second.client() as client:
        for run_id in ids:
            client.get(f"/runs/{run_id}/events")  # until its end
        ended = [client.get(f"/runs/{run_id}").json() for run_id in ids]
    assert [(one["status"], one["output"]) for one in ended] == [("succeeded", 2)] * RUNS
