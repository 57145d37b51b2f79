"""Who may go on with a run that another process held."""

from dataclasses import replace

import pytest
from echoing import Echo

from stagegraph import JournalError, Runner
from stagegraph.journal import Journal
from stagegraph.journal.owner import this_process


async def held_by(journal: Journal, owner: str, run_id: str = "r") -> Runner:
    """A runner, and a run in its journal that somebody holds."""
    runner = Runner(journal=journal)
    await runner.run(Echo(), "x", run_id=run_id)
    row = await journal.run(run_id)
    assert row is not None
    await journal.put(replace(row, status="running", output=None, owner=owner))
    return runner


async def test_a_run_of_a_host_that_is_gone_can_be_taken_over(journal: Journal) -> None:
    """The refusal says how; from a living process of this host, which is there to be seen, no run is taken over."""
    runner = await held_by(journal, "pod-1/1/1")
    with pytest.raises(JournalError, match=r"on host 'pod-1'.*take_over=True.*stagegraph resume r --take-over"):
        await runner.resume("r")
    assert (await runner.resume("r", take_over=True)).output == "x"
    runner = await held_by(journal, this_process(), "mine")
    with pytest.raises(JournalError, match="already running"):
        await runner.resume("mine", take_over=True)
