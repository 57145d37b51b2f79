"""Who may go on with a run that another process held."""

from dataclasses import replace

import pytest
from echoing import Echo

from stagegraph import JournalError, Runner
from stagegraph.journal import Journal
from stagegraph.journal.owner import this_process

pytestmark = pytest.mark.anyio


async def held_by(journal: Journal, owner: str) -> Runner:
    """A runner, and a run `r` in its journal that somebody holds."""
    runner = Runner(journal=journal)
    await runner.run(Echo(), "x", run_id="r")
    row = await journal.run("r")
    assert row is not None
    await journal.put(replace(row, status="running", output=None, owner=owner))
    return runner


async def test_a_run_of_a_host_that_is_gone_can_be_taken_over(journal: Journal) -> None:
    """Nobody can tell from here whether it is: the refusal says how to say so."""
    runner = await held_by(journal, "pod-1/1/1")
    with pytest.raises(JournalError, match=r"on host 'pod-1'.*take_over=True.*stagegraph resume r --take-over"):
        await runner.resume("r")
    assert (await runner.resume("r", take_over=True)).output == "x"


async def test_a_living_process_of_this_host_is_never_taken_over_from(journal: Journal) -> None:
    """It is there to be seen."""
    runner = await held_by(journal, this_process())
    with pytest.raises(JournalError, match="already running"):
        await runner.resume("r", take_over=True)
