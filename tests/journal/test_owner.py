"""Who may go on with a run that somebody else held: nobody, as long as its holder lives."""

import asyncio
import multiprocessing
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path

import pytest
from echoing import Echo

from forked import Process
from stagegraph import Graph, JournalError, RunError, Runner
from stagegraph.journal import Journal, RunFilter, RunRow, SqliteJournal
from stagegraph.runner.recovery import counted

RUBBISH = ["pod-1/1/1", "host/x/y", "", "gone", "../../etc/passwd", "0" * 32, "A" * 32, "\x00", "x" * 10_000, "a/b"]
"""What may stand in the place of an owner: of an older version, of another machine, of an attacker."""


async def interrupted(journal: Journal, run_id: str, owner: str) -> None:
    """A run that somebody holds, or held."""
    await Runner(journal=journal).run(Echo(), "x", run_id=run_id)
    row = await journal.run(run_id)
    assert row is not None
    await journal.put(replace(row, status="running", output=None, owner=owner))


async def owner_of(journal: Journal, run_id: str) -> str | None:
    row = await journal.run(run_id)
    assert row is not None
    return row.owner


@pytest.mark.parametrize("owner", RUBBISH)
async def test_an_owner_without_a_lock_holds_nothing(journal: Journal, owner: str) -> None:
    """Such a run is interrupted: it is listed, resumed and forgotten like any other."""
    for run_id in ("one", "two"):
        await interrupted(journal, run_id, owner)
    assert {row.run_id for row in await journal.runs(RunFilter(status="interrupted"))} == {"one", "two"}
    assert (await Runner(journal=journal).resume("one", graph=Echo())).output == "x"
    assert [row.run_id for row in await journal.runs(RunFilter(status="interrupted"))] == ["two"]
    assert await journal.prune(keep=0) == 1
    assert await journal.prune(older_than=-1) == 1


async def test_a_run_of_a_living_owner_stays_with_it(journal: Journal) -> None:
    """Nobody resumes it, lists it as interrupted or forgets it."""
    await interrupted(journal, "r", journal.owner)
    with pytest.raises(JournalError, match="already running"):
        await Runner(journal=journal).resume("r", graph=Echo())
    assert await journal.runs(RunFilter(status="interrupted")) == []
    assert await journal.prune(older_than=-1) == 0
    assert await owner_of(journal, "r") == journal.owner


async def test_a_journal_that_is_closed_leaves_its_runs(tmp_path: Path) -> None:
    """Two journals on one file are two owners, also in one process, and by way of a link; nothing is left beside it."""
    path, link = tmp_path / "runs.db", tmp_path / "link.db"
    link.symlink_to(path)
    first, second = SqliteJournal(path), SqliteJournal(link)
    await interrupted(first, "r", first.owner)
    assert first.owner != second.owner
    assert await owner_of(second, "r") == first.owner
    with pytest.raises(JournalError, match="already running"):
        await Runner(journal=second).resume("r", graph=Echo())
    await first.aclose()
    assert await owner_of(second, "r") not in {None, first.owner}
    assert (await Runner(journal=second).resume("r", graph=Echo())).output == "x"
    for journal in (first, second):
        await journal.aclose()
    assert {file.name for file in tmp_path.iterdir()} == {"runs.db", "link.db"}  # noqa: ASYNC240


HOLDER = """
import asyncio, sys
from stagegraph import Graph, Runner, step
from stagegraph.journal import SqliteJournal
@step
async def echo(text: str) -> str:
    print("holds", flush=True)
    await asyncio.Event().wait()
    return text
class Echo(Graph[str, str]):
    echo = echo
    async def flow(self, text: str) -> str:
        return await self.echo(text)
async def main():
    journal = SqliteJournal(sys.argv[1])
    await Runner(journal=journal).run(Echo(), "x", run_id="r")
    await journal.aclose()
asyncio.run(main())
"""


def namespaces() -> list[str]:
    """How a process is put into another pid namespace and under another host name, where that is allowed."""
    words = ["unshare", "--user", "--map-root-user", "--pid", "--uts", "--fork", "--kill-child"]
    tried = shutil.which("unshare") and subprocess.run([*words, "true"], check=False, capture_output=True)
    return words if tried and tried.returncode == 0 else []


@contextmanager
def holder(path: Path, *, elsewhere: bool) -> Iterator[subprocess.Popen[str]]:
    """A process that holds the run `r`."""
    pipes = {"stdout": subprocess.PIPE}
    if elsewhere:
        words = ["sh", "-c", 'hostname pod-7; exec "$@"', "sh", sys.executable, "-c", HOLDER, str(path)]
        process: subprocess.Popen[str] = subprocess.Popen([*namespaces(), *words], text=True, **pipes)
    else:
        process = Process("-c", HOLDER, path, **pipes)
    with process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "holds\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("elsewhere", [False, True])
async def test_a_living_process_takes_up_what_a_killed_one_held(tmp_path: Path, elsewhere: bool) -> None:
    """Within seconds, without a new start, whatever its host name and process number; before that it is left alone."""
    if elsewhere and not namespaces():
        pytest.skip("no namespaces here")
    path = tmp_path / "runs.db"
    journal = SqliteJournal(path)
    runner = Runner(journal=journal, resume_interrupted=True)
    runner.add(Echo())
    async with runner.lifespan(), asyncio.timeout(100):
        with holder(path, elsewhere=elsewhere) as process:
            with pytest.raises(JournalError, match="already running"):
                await runner.resume("r", graph=Echo())
            assert await journal.runs(RunFilter(status="interrupted")) == []
            process.kill()
        while not await journal.runs(RunFilter(status="succeeded")):  # noqa: ASYNC110 - it changes in another process
            await asyncio.sleep(0.05)
    row = await journal.run("r")
    assert row is not None
    assert (row.status, row.output, row.segment, row.read_labels().crashes) == ("succeeded", '"x"', 1, 1)
    await journal.aclose()
    assert await asyncio.to_thread(os.listdir, tmp_path) == ["runs.db"]


def forgotten_lock(tmp_path: Path) -> None:
    """Remove the files that say who lives, as a cleaner of temporary folders does."""
    for file in tmp_path.glob("*-owner-*"):
        file.unlink()


async def test_a_run_that_was_taken_over_ends_here(tmp_path: Path) -> None:
    """Nothing that it records after that reaches the journal, and the error says why; the other one is not disturbed."""
    path = tmp_path / "runs.db"
    gates = {name: asyncio.Event() for name in ("first", "second")}
    came: asyncio.Queue[str] = asyncio.Queue()

    class Slow(Graph[str, str]):
        echo = Echo.echo

        def __init__(self, name: str) -> None:
            self.name = name

        async def flow(self, text: str) -> str:
            came.put_nowait(self.name)
            await gates[self.name].wait()
            return await self.echo(f"{text} {self.name}")

    first, second = SqliteJournal(path), SqliteJournal(path)
    stale = Runner(journal=first).start(Slow("first"), "x", run_id="r")
    assert await came.get() == "first"
    await stale.recorded()
    await asyncio.to_thread(forgotten_lock, tmp_path)
    taken = await Runner(journal=second).start_resume("r", graph=Slow("second"))
    assert await came.get() == "second"
    row = await second.run("r")
    assert row is not None
    with pytest.raises(JournalError, match="another process has taken the run over"):
        await first.put(replace(row, owner=first.owner))
    gates["first"].set()
    with pytest.raises(RunError, match="another process has taken the run over"):
        await stale.result()
    assert [call.key for call in await second.calls("r")] == [""]
    assert await owner_of(second, "r") == second.owner
    gates["second"].set()
    assert (await taken.result()).output == "x second"
    row = await first.run("r")
    assert row is not None
    assert (row.status, row.output) == ("succeeded", '"x second"')
    for journal in (first, second):
        await journal.aclose()


def in_child(journal: SqliteJournal, pipe: Connection) -> None:
    """What a forked process that uses its parent's journal does."""

    async def main() -> None:
        refused = ""
        try:
            await Runner(journal=journal).resume("r", graph=Echo())
        except JournalError as error:
            refused = str(error)
        await Runner(journal=journal).run(Echo(), "x", run_id="of child")
        pipe.send((journal.owner, refused))

    asyncio.run(main())
    pipe.recv()  # the child lives on


@pytest.mark.parametrize("parent_ends", [False, True])
def test_a_forked_process_owns_nothing_of_its_parent(tmp_path: Path, parent_ends: bool) -> None:
    """It is an owner of its own, and keeps nothing of its parent's alive."""
    path = tmp_path / "runs.db"
    journal = SqliteJournal(path)
    asyncio.run(interrupted(journal, "r", journal.owner))
    ours, theirs = multiprocessing.Pipe()
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(journal, theirs))
    child.start()
    owner, refused = ours.recv()
    assert owner != journal.owner
    assert "already running" in refused

    async def look() -> set[str]:
        if parent_ends:
            await journal.aclose()
        other = SqliteJournal(path)
        free = {row.run_id for row in await other.runs(RunFilter(status="interrupted"))}
        assert (await other.run("of child")) is not None
        await other.aclose()
        return free

    assert asyncio.run(look()) == ({"r"} if parent_ends else set())
    ours.send(None)
    child.join()
    assert child.exitcode == 0


@pytest.mark.parametrize("fresh", [True, False])
async def test_a_cancelled_claim_takes_nothing(tmp_path: Path, fresh: bool) -> None:
    """In whichever turn of the event loop it is cancelled, the run is free afterwards, and can be claimed."""
    journal = SqliteJournal(tmp_path / "runs.db")
    for turns in range(40):
        run_id = f"r{turns}"
        if not fresh:
            await interrupted(journal, run_id, "pod-1/1/1")
        row = RunRow(run_id=run_id, graph="Echo", status="running", started=1.0, input='"x"', owner=journal.owner)
        known = await journal.run(run_id)
        mine = row if known is None else replace(counted(known), owner=journal.owner)
        claiming = asyncio.create_task(journal.claim(mine, fresh=fresh))
        for _ in range(turns):
            await asyncio.sleep(0)
        if turns % 4 == 3:
            await asyncio.to_thread(os.stat, tmp_path)  # the thread that takes it gets its time
        claiming.cancel()
        await asyncio.wait([claiming])
        found = await journal.run(run_id)
        if not claiming.cancelled():
            assert found is not None
            assert found.owner == journal.owner
            continue
        assert await journal.runs(RunFilter(status="interrupted", graph="Echo")) == ([] if fresh else [found])
        assert found is None or found.owner in {None, "gone"}
        assert found is None or found.segment == 0
        if found is not None:
            await journal.claim(replace(counted(found), status="running", owner=journal.owner), fresh=False)
    await journal.aclose()
