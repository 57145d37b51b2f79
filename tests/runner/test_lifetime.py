"""How many runs a runner takes, how it ends, and what it takes up when it begins again."""

from __future__ import annotations

import asyncio
import os
import pickle
import socket
from dataclasses import replace

import anyio
import pytest

from scripted import others
from stagegraph import (
    BusyError,
    DeclarationError,
    Graph,
    JournalError,
    LiveRun,
    Run,
    RunError,
    Runner,
    current_call,
    step,
)
from stagegraph.journal import CancelRow, Journal, MemoryJournal, RunFilter, RunRow, SqliteJournal


class Gate:
    """Lets steps through when it is open, and knows what came."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.opened = anyio.Event()
        self._arrived = anyio.Event()

    async def crowd(self, size: int) -> None:
        with anyio.fail_after(30):
            while len(self.seen) < size:
                self._arrived = anyio.Event()
                await self._arrived.wait()

    async def come(self, text: str) -> None:
        self.seen.append(text)
        self._arrived.set()
        await self.opened.wait()


@step
async def before(text: str) -> str:
    gate = current_call().deps
    assert isinstance(gate, Gate)
    gate.seen.append(f"before {text}")
    return text


@step
async def wait(text: str) -> str:
    gate = current_call().deps
    assert isinstance(gate, Gate)
    await gate.come(text)
    return text.upper()


class Waits(Graph[str, str]):
    """One step at once, one at the gate."""

    before = before
    wait = wait

    async def flow(self, text: str) -> str:
        return await self.wait(await self.before(text))


async def test_a_full_runner_says_so_at_once():
    """Who finds no seat waits where a place in line is left, in order; the next is told when to try again.

    Without `max_queued` there is no line at all.
    """
    gate, runner = Gate(), Runner(max_runs=1, max_queued=1)
    first, second = runner.start(Waits(), "a", deps=gate), runner.start(Waits(), "b", deps=gate)
    await gate.crowd(2)
    with pytest.raises(BusyError, match="1 runs are going on and 1 wait") as caught:
        await runner.run(Waits(), "c", deps=gate)
    assert 1 <= caught.value.retry_after <= 60
    again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - our own
    assert again.retry_after == caught.value.retry_after
    with pytest.raises(BusyError):
        runner.start(Waits(), "c", deps=gate)
    assert gate.seen == ["before a", "a"]
    gate.opened.set()
    assert [(await live.result()).output for live in (first, second)] == ["A", "B"]
    assert (await runner.run(Waits(), "c", deps=gate)).output == "C"
    gate, runner = Gate(), Runner(max_runs=1)
    live = runner.start(Waits(), "a", deps=gate)
    with pytest.raises(BusyError, match="1 runs are going on, and no more may"):
        runner.start(Waits(), "b", deps=gate)
    gate.opened.set()
    await live.result()


@pytest.mark.parametrize("begun", [True, False])
async def test_a_seat_is_given_back_by_who_leaves(begun: bool):
    """A run that is cancelled in its seat or in the line makes room."""
    gate, runner = Gate(), Runner(max_runs=1, max_queued=1, journal=MemoryJournal())
    first, second = runner.start(Waits(), "a", deps=gate), runner.start(Waits(), "b", deps=gate)
    if begun:
        await gate.crowd(2)
    await second.cancel()
    third = runner.start(Waits(), "c", deps=gate)
    await first.cancel()
    gate.opened.set()
    assert (await third.result()).output == "C"
    assert (await runner.run(Waits(), "d", deps=gate)).output == "D"
    with pytest.raises(RunError, match="cancelled"):
        await second.result()


@pytest.mark.parametrize("options", [{"max_queued": 1}, {"max_runs": 1, "max_queued": -1}, {"max_runs": 0}])
def test_limits_that_make_no_sense(options: dict[str, int]):
    """They are refused where they are written, as is resuming without a journal, where nothing is known of runs."""
    with pytest.raises(DeclarationError, match="Runner"):
        Runner(**options)
    with pytest.raises(DeclarationError, match="journal"):
        Runner(resume_interrupted=True)


async def test_a_lifespan_waits_for_what_goes_on():
    """No run may begin any more, those that go on end; the runner may be used for another life."""
    gate, runner = Gate(), Runner(journal=MemoryJournal())
    for _ in range(2):
        async with runner.lifespan():
            assert runner.ready
            live = runner.start(Waits(), "a", deps=gate)
            assert runner.live(live.run_id) is live
            gate.opened.set()
        assert live.done
        assert runner.live(live.run_id) is None
        assert not runner.ready
        with pytest.raises(BusyError, match="shutting down"):
            runner.start(Waits(), "b", deps=gate)
    assert not [task for task in others() if "stagegraph" in task.get_name()]


async def interrupted(journal: Journal, gate: Gate, *texts: str) -> list[LiveRun[str, str]]:
    """Runs that did not make a deadline."""
    runner = Runner(journal=journal, drain_seconds=0.01)
    async with runner.lifespan():
        lives = [runner.start(Waits(), text, deps=gate) for text in texts]
        await gate.crowd(2 * len(texts))
    return lives


async def test_what_did_not_make_the_deadline_is_taken_up():
    """It is cancelled, stays running in the journal without an owner, and goes on with what it had."""
    journal, gate = MemoryJournal(), Gate()
    lives = await interrupted(journal, gate, "a", "b")
    for live in lives:
        with pytest.raises(RunError, match="cancelled"):
            await live.result()
        row = await journal.run(live.run_id)
        assert row is not None
        assert (row.status, row.owner) == ("running", None)
    again = Gate()
    again.opened.set()

    async def deps_of(row: RunRow) -> Gate:
        assert row.run_id in {live.run_id for live in lives}
        return again

    runner = Runner(journal=journal, resume_interrupted=True, max_runs=1)
    runner.add(Waits(), deps_of=deps_of)
    async with runner.lifespan():
        await again.crowd(2)
    assert sorted(again.seen) == ["a", "b"]  # what came before is not done again
    rows = [await journal.run(live.run_id) for live in lives]
    assert [row.status for row in rows if row is not None] == ["succeeded"] * 2


async def test_what_somebody_cancelled_stays_cancelled():
    """Also while the runner shuts down."""
    journal, gate = MemoryJournal(), Gate()
    runner = Runner(journal=journal)
    async with runner.lifespan():
        live = runner.start(Waits(), "a", deps=gate)
        await gate.crowd(2)
        await live.cancel()
    row = await journal.run(live.run_id)
    assert row is not None
    assert row.status == "cancelled"


async def test_a_graph_that_is_not_known_is_left_alone(caplog: pytest.LogCaptureFixture):
    """Another service may know it."""
    journal, gate = MemoryJournal(), Gate()
    [live] = await interrupted(journal, gate, "a")
    async with Runner(journal=journal, resume_interrupted=True).lifespan():
        with anyio.fail_after(30):
            while "nothing here can take it up" not in caplog.text:
                await anyio.lowlevel.checkpoint()
    row = await journal.run(live.run_id)
    assert row is not None
    assert row.status == "running"


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
async def test_a_run_is_taken_up_from_where_it_was_read(kind: str, tmp_path):
    """Between reading and claiming somebody else may have had it: then the claim is refused, even if it is over."""
    journal = MemoryJournal() if kind == "memory" else SqliteJournal(tmp_path / "runs.db")
    gate = Gate()
    [live] = await interrupted(journal, gate, "a")
    lives = [await Runner(journal=journal).start_resume(live.run_id, graph=Waits(), deps=gate) for _ in range(2)]
    gate.opened.set()
    ends = await asyncio.gather(*(one.result() for one in lives), return_exceptions=True)
    [finished] = [end for end in ends if isinstance(end, Run)]
    assert finished.output == "A"
    [refused] = [one for one, end in zip(lives, ends, strict=True) if isinstance(end, JournalError)]
    with pytest.raises(JournalError):
        await refused.recorded()
    assert gate.seen.count("a") == 2
    await journal.aclose()


async def test_a_live_run_is_recorded_before_anybody_relies_on_it():
    """`recorded` waits until the journal has the run, even while it waits in line."""
    journal, gate = MemoryJournal(), Gate()
    runner = Runner(journal=journal, max_runs=1, max_queued=1)
    lives = [runner.start(Waits(), text, deps=gate, user_id="u") for text in "ab"]
    for live in lives:
        await live.recorded()
        assert await journal.run(live.run_id) is not None
        assert (live.graph, live.user_id, live.session_id, live.segment) == ("Waits", "u", None, 0)
    gate.opened.set()
    await asyncio.gather(*(live.result() for live in lives))


async def died(journal: Journal, run_id: str) -> None:
    """Make a run look as if the process that held it had been killed."""
    row = await journal.run(run_id)
    assert row is not None
    await journal.put(replace(row, status="running", owner=f"{socket.gethostname()}/{os.getpid()}/before"))


async def test_a_run_that_kills_its_process_is_left_alone():
    """`resume_attempts` counts processes that died, not orderly shutdowns; other runs are finished as ever."""
    journal, gate = MemoryJournal(), Gate()
    bad, good = await interrupted(journal, gate, "bad", "good")

    async def deps_of(_row: RunRow) -> Gate:
        return gate

    for count in (4, 6):  # taken up once after a death, and once after a shutdown
        if count == 4:
            await died(journal, bad.run_id)
        runner = Runner(journal=journal, drain_seconds=0.01, resume_interrupted=True, resume_attempts=1)
        runner.add(Waits(), deps_of=deps_of)
        async with runner.lifespan():
            await gate.crowd(count + 2)
    await died(journal, bad.run_id)
    gate.opened.set()
    runner = Runner(journal=journal, resume_interrupted=True, resume_attempts=1)
    runner.add(Waits(), deps_of=deps_of)
    async with runner.lifespan():
        await gate.crowd(9)
    rows = {run.run_id: await journal.run(run.run_id) for run in (bad, good)}
    left, done = rows[bad.run_id], rows[good.run_id]
    assert done is not None
    assert done.status == "succeeded"
    assert left is not None
    assert (left.status, left.owner) == ("failed", None)
    assert "ended 2 times" in (left.error or "")
    again = await Runner(journal=journal).resume(bad.run_id, graph=Waits(), deps=gate)
    assert again.output == "BAD"  # a person may still try


async def test_a_lifespan_waits_for_a_run_that_is_awaited_somewhere():
    """`await runner.run(...)` in a request counts as well: it may end, or it is ended at the deadline."""
    journal, gate = MemoryJournal(), Gate()
    runner = Runner(journal=journal, drain_seconds=0.01)
    async with anyio.create_task_group() as group:
        caught: list[RunError] = []

        async def request() -> None:
            with pytest.raises(RunError, match="cancelled: this runner is shutting down") as error:
                await runner.run(Waits(), "a", deps=gate)
            caught.append(error.value)

        async with runner.lifespan():
            group.start_soon(request)
            await gate.crowd(2)
    assert caught[0].run.status == "cancelled"
    row = await journal.run(caught[0].run.id)
    assert row is not None
    assert (row.status, row.owner) == ("running", None)
    gate.opened.set()
    assert (await Runner(journal=journal).resume(row.run_id, graph=Waits(), deps=gate)).output == "A"


@pytest.mark.parametrize("how", ["run", "start"])
async def test_a_run_is_cancelled_through_the_journal(how: str, tmp_path):
    """Its holder sees the wish, whether somebody waits for the run or not; the run is cancelled, not left."""
    journal, gate = SqliteJournal(tmp_path / "runs.db"), Gate()
    runner = Runner(journal=journal)
    async with runner.lifespan(), anyio.create_task_group() as group:

        async def started(*args, **options) -> None:
            await runner.start(*args, **options).result()

        async def request() -> None:
            doing = runner.run if how == "run" else started
            with pytest.raises(RunError, match="cancelled"):
                await doing(Waits(), "a", deps=gate, run_id="r")

        group.start_soon(request)
        await gate.crowd(2)
        other = SqliteJournal(tmp_path / "runs.db")
        await other.put(CancelRow(run_id="r", segment=7))  # of another time
        await other.put(CancelRow(run_id="r", segment=0))
        await other.aclose()
    row = await journal.run("r")
    assert row is not None
    assert (row.status, row.owner, await journal.cancels()) == ("cancelled", None, [])
    gate.opened.set()
    assert (await Runner(journal=journal).resume("r", graph=Waits(), deps=gate)).output == "A"
    assert await journal.prune(keep=0) == 1
    await journal.aclose()


@pytest.mark.parametrize("max_runs", [None, 3])
async def test_interrupted_runs_are_taken_up_within_the_limit_of_the_runner(max_runs: int | None):
    """All at once, or as many as the runner runs; the others follow."""
    journal, gate = MemoryJournal(), Gate()
    texts = [f"{number:02}" for number in range(20)]
    lives = await interrupted(journal, gate, *texts)
    again, most = Gate(), max_runs or len(texts)

    async def deps_of(_row: RunRow) -> Gate:
        return again

    runner = Runner(journal=journal, resume_interrupted=True, max_runs=max_runs)
    runner.add(Waits(), deps_of=deps_of)
    async with runner.lifespan():
        await again.crowd(most)
        for _ in range(100):
            await anyio.lowlevel.checkpoint()
        assert sorted(again.seen) == texts[:most]  # the oldest come first
        again.opened.set()
        await again.crowd(len(texts))
    rows = [await journal.run(live.run_id) for live in lives]
    assert {row.status for row in rows if row is not None} == {"succeeded"}


async def test_what_is_interrupted_while_a_service_lives_is_taken_up():
    """Also a run that could not be taken up at first, since its deps could not be made; the log tells of it."""
    journal, gate = MemoryJournal(), Gate()
    gate.opened.set()
    made: list[str] = []

    async def deps_of(row: RunRow) -> Gate:
        made.append(row.run_id)
        if len(made) == 1:
            raise ConnectionError(row.run_id)
        return gate

    runner = Runner(journal=journal, resume_interrupted=True)
    runner.add(Waits(), deps_of=deps_of)
    async with runner.lifespan():
        run = await runner.run(Waits(), "a", deps=gate)
        await died(journal, run.id)
        with anyio.fail_after(60):
            while not await journal.runs(RunFilter(status="succeeded")):  # noqa: ASYNC110 - others change it
                await anyio.sleep(0.01)
    row = await journal.run(run.id)
    assert row is not None
    assert (row.status, row.segment, made) == ("succeeded", 1, [run.id] * 2)


async def test_a_run_that_needs_its_input_again_is_tried_once(caplog: pytest.LogCaptureFixture):
    """It stays as it is, for a person who has the input; the log says so once, not at every look."""
    journal, gate = MemoryJournal(), Gate()
    gate.opened.set()
    tried: list[str] = []

    async def deps_of(row: RunRow) -> Gate:
        tried.append(row.run_id)
        return gate

    runner = Runner(journal=journal, resume_interrupted=True)
    runner.add(Waits(), deps_of=deps_of)
    async with runner.lifespan():
        for run_id in ("secret", "other"):
            await runner.run(Waits(), "x", deps=gate, run_id=run_id)
            row = await journal.run(run_id)
            assert row is not None
            await journal.put(replace(row, input_whole="" if run_id == "secret" else None))
            await died(journal, run_id)
            with anyio.fail_after(60):
                while run_id not in tried:  # noqa: ASYNC110 - others change it
                    await anyio.sleep(0.01)
    assert tried == ["secret", "other"]
    assert caplog.text.count("does not hold its whole input") == 1


async def test_no_run_is_taken_up_by_a_service_that_ends():
    """What is interrupted by the shutdown itself is left to others."""
    journal, gate = MemoryJournal(), Gate()
    runner = Runner(journal=journal, drain_seconds=0.01, resume_interrupted=True)
    runner.add(Waits())
    async with runner.lifespan():
        live = runner.start(Waits(), "a", deps=gate)
        await gate.crowd(2)
    row = await journal.run(live.run_id)
    assert row is not None
    assert (row.status, row.owner, row.segment) == ("running", None, 0)
