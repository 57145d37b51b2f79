"""Tracing in real processes: their imports, their end, their forks and their threads."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from time import monotonic

import pytest
from langfuse_server import LangfuseServer

BEGINNING = """
import asyncio, os, sys, threading
from stagegraph import Graph, Runner, feedback, step

@step
async def shout(text: str) -> str:
    return text.upper()

class Echo(Graph[str, str]):
    shout = shout

    async def flow(self, text: str) -> str:
        return await self.shout(text)

def go(runner, count=1):
    async def several():
        for _ in range(count):
            run = await runner.run(Echo(), "a")
            assert run.output == "A"
            os.write(1, f"{run.id}\\n".encode())  # whole lines, whoever else writes
    asyncio.run(several())
"""
PATIENT = "from stagegraph.tracing import LangfuseTracing\nrunner = Runner(tracing=LangfuseTracing(exit_seconds=30))\n"
"""For what has to arrive, on machines of any speed."""
GENEROUS = 25.0
"""Seconds that a program may take that would take 60 if it waited for its server."""


class Programs:
    """Runs programs that have the keys of a server, and a timeout so long that only the end can cut it short."""

    def __init__(self, server: LangfuseServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        self.started: list[subprocess.Popen[str]] = []
        self.variables = {name: value for name, value in os.environ.items() if "LANGFUSE" not in name}
        self.variables |= {**server.variables, "LANGFUSE_TIMEOUT": "60"}

    def start(self, text: str, **variables: str) -> subprocess.Popen[str]:
        path = self.folder / "program.py"
        path.write_text(BEGINNING + text, "utf-8")
        program = subprocess.Popen(
            [sys.executable, str(path)],
            env=self.variables | variables,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.started.append(program)
        return program

    def run(self, text: str, **variables: str) -> list[str]:
        """The runs of a program that has to end well, by id."""
        ids, said = self.end(self.start(text, **variables))
        assert "Traceback" not in said, said
        return ids

    @staticmethod
    def end(program: subprocess.Popen[str]) -> tuple[list[str], str]:
        out, said = program.communicate(timeout=50)
        assert program.returncode == 0, said
        return out.split(), said

    def arrived(self, ids: list[str]) -> bool:
        """Whether the traces of these runs, and no others, are at the server, with every span once."""
        traces = {span.trace_id for span in self.server.spans}
        return len(traces) == len(ids) and all(self.server.tree(one) == [("Echo", ["step:shout"])] for one in traces)


@pytest.fixture(name="programs")
def _programs(server: LangfuseServer, tmp_path: Path) -> Iterator[Programs]:
    programs = Programs(server, tmp_path)
    yield programs
    for program in programs.started:
        with program:  # which waits for it, and closes its pipes
            program.kill()


@pytest.mark.parametrize("switch", [{"LANGFUSE_SECRET_KEY": ""}, {"LANGFUSE_TRACING_ENABLED": "false"}])
def test_without_tracing_nothing_of_it_is_loaded(programs: Programs, switch: dict[str, str]):
    """Neither OpenTelemetry's SDK nor Langfuse's is imported, no thread is started and nothing is said."""
    ids, said = programs.end(
        programs.start(
            """
go(Runner())
assert Runner().tracing is None
loaded = [name for name in sys.modules if name.startswith(("opentelemetry.sdk", "langfuse", "stagegraph.tracing"))]
assert not loaded, loaded
assert threading.active_count() == 1
""",
            **switch,
        )
    )
    assert (len(ids), said) == (1, "")
    assert not programs.server.requests


def test_with_keys_langfuses_own_package_is_not_needed(programs: Programs):
    """Tracing speaks OpenTelemetry: the `langfuse` package is not even imported."""
    ids = programs.run(PATIENT + "go(runner)\nassert 'langfuse' not in sys.modules")
    assert programs.arrived(ids)


def test_what_waits_is_delivered_at_the_end(programs: Programs):
    """A program that only runs a graph and ends loses nothing, though it never flushes."""
    ids = programs.run(PATIENT + "go(runner, 50)\nasyncio.run(feedback('r', 'good', 1, runner=runner))")
    assert len(ids) == 50
    assert programs.arrived(ids)
    assert [score["name"] for score in programs.server.scores] == ["good"]
    assert len(programs.server.requests) <= 4


def test_the_end_has_patience_for_a_short_illness(programs: Programs):
    """One failure while the program ends is not the end of its spans."""
    programs.server.fail_next(2, 503)
    ids = programs.run(PATIENT + "go(runner)")
    assert programs.arrived(ids)


def test_an_end_by_an_exception_delivers_too(programs: Programs):
    """A program that fails shows the runs it made before."""
    program = programs.start(PATIENT + "go(runner)\nraise SystemExit(3)")
    out, said = program.communicate(timeout=50)
    assert (program.returncode, said) == (3, "")
    assert programs.arrived(out.split())


@pytest.mark.parametrize("late", ["", "import atexit\natexit.register(go, runner)\n"])
def test_a_hanging_server_does_not_keep_a_program(programs: Programs, late: str):
    """The end waits for the default of two seconds and says in one line what did not arrive."""
    programs.server.delay = 60
    begun = monotonic()
    text = f"runner = Runner()\n{late}go(runner, 3)\nasyncio.run(feedback('r', 'good', 1, runner=runner))"
    _, said = programs.end(programs.start(text))
    assert monotonic() - begun < GENEROUS
    assert "Traceback" not in said
    assert sorted(line.split()[0] for line in said.splitlines()) == ["observations", "scores"]
    assert programs.server.secret_key not in said


def test_a_server_that_is_away_does_not_keep_a_program(programs: Programs):
    """With the port closed the end is short, too, and quiet but for one line."""
    programs.server.close()
    begun = monotonic()
    _, said = programs.end(programs.start("go(Runner(), 3)"))
    assert monotonic() - begun < GENEROUS
    assert len(said.splitlines()) == 1


def test_the_end_after_a_close_that_gave_up_is_short(programs: Programs):
    """What `close` gave up is not waited for again."""
    programs.server.delay = 60
    begun = monotonic()
    _, said = programs.end(programs.start(PATIENT + "go(runner)\nrunner.tracing.close(0.1)"))
    assert monotonic() - begun < GENEROUS
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("before", [0, 1])
def test_runs_of_the_end_itself_do_no_harm(programs: Programs, before: int):
    """A graph that runs when tracing is closed, or no thread can be started any more, runs well and unseen."""
    ids, said = programs.end(
        programs.start(f"import atexit\n{PATIENT}atexit.register(go, runner)\ngo(runner, {before})")
    )
    assert "Traceback" not in said
    assert len(ids) == before + 1


FORK = """
def forked(work):
    child = os.fork()
    if not child:
        code = 1
        try:
            work()
            runner.tracing.close(30)
            assert runner.tracing.lost == 0
            code = 0
        finally:
            os._exit(code)
    return child
"""

if not hasattr(os, "fork"):
    pytest.skip("this system does not fork", allow_module_level=True)


def test_parent_and_child_send_what_is_theirs(programs: Programs):
    """After a fork in the middle of everything, each span arrives once: the parent's by it, the child's by it."""
    text = """
go(runner, 3)  # these still wait when the fork is made
children = [forked(lambda: go(runner, 2)) for _ in range(3)]
go(runner, 2)
assert [os.waitpid(child, 0)[1] for child in children] == [0, 0, 0]
"""
    ids = programs.run(PATIENT + FORK + text)
    assert len(set(ids)) == 11
    assert programs.arrived(ids)


def test_a_fork_while_the_thread_sends(programs: Programs):
    """The child inherits neither the lock nor the connection that the parent's thread is using."""
    programs.server.fail_next(1, 503, retry_after=0.5)
    text = """
go(runner)
asyncio.run(runner.tracing.flush(0.3))
stop = threading.Event()
def busy():
    while not stop.is_set():
        runner.tracing.spans.flush(0)
threads = [threading.Thread(target=busy) for _ in range(4)]
for thread in threads:
    thread.start()
children = [forked(lambda: go(runner)) for _ in range(8)]
stop.set()
assert [os.waitpid(child, 0)[1] for child in children] == [0] * 8
"""
    ids = programs.run(PATIENT + FORK + text)
    assert len(set(ids)) == 9
    assert programs.arrived(ids)


def test_made_before_the_fork_used_after_it(programs: Programs):
    """A server that loads its program before it forks its workers: they exit like programs, and lose nothing."""
    text = """
for _ in range(3):
    if not os.fork():
        go(runner, 2)
        sys.exit()
for _ in range(3):
    assert os.wait()[1] == 0
assert threading.active_count() == 1
"""
    ids = programs.run(PATIENT + text)
    assert len(set(ids)) == 6
    assert programs.arrived(ids)


@pytest.mark.parametrize("moment", ["before the answer", "after it"])
def test_deployed_prompts_reach_the_children_of_a_fork(programs: Programs, moment: str):
    """A server that loads its program before it forks its workers: each fetches the prompts for itself, and again."""
    text = f"""
from pydantic_ai import Agent
from stagegraph import Prompt, Prompts, Stage
from stagegraph.tracing import deploy_prompts, langfuse_prompts

class Say(Graph[str, str]):
    a = Stage(str, Agent(instructions="code"))
    async def flow(self, text: str) -> str:
        return await self.a(text)

def text_of(prompts):
    return {{path: prompt.instructions for path, prompt in asyncio.run(prompts.current()).items()}}

def worker():
    if {moment == "before the answer"}:
        assert text_of(prompts) == {{"a": "one"}}, "the first"
    deploy_prompts(Prompts({{"a": Prompt("two")}}), Say(), label="production")
    for _ in range(600):
        if text_of(prompts) == {{"a": "two"}}:
            return
        threading.Event().wait(0.05)
    raise AssertionError("never fetched again")

deploy_prompts(Prompts({{"a": Prompt("one")}}), Say(), label="production")
prompts = langfuse_prompts(Say(), label="production", ttl=0, wait=30)
if {moment == "after it"}:
    assert text_of(prompts) == {{"a": "one"}}
runner = Runner(tracing=LangfuseTracing(exit_seconds=30))
assert os.waitpid(forked(worker), 0)[1] == 0
"""
    programs.server.delay = 0.3
    assert programs.run(PATIENT + FORK + text) == []


@pytest.mark.parametrize("warm", [0, 2])
@pytest.mark.parametrize("method", ["fork", "forkserver", "spawn"])
def test_workers_of_multiprocessing_lose_nothing(programs: Programs, method: str, warm: int):
    """A worker's end is an end: what it had is sent without a flush, however it was started."""
    text = f"""
if __name__ == "__main__":
    import multiprocessing
    go(runner, {warm})
    context = multiprocessing.get_context({method!r})
    workers = [context.Process(target=work) for _ in range(2)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
"""
    ids = programs.run(PATIENT + "def work():\n    go(runner, 2)\n" + text)
    assert len(set(ids)) == 4 + warm
    assert programs.arrived(ids)


def test_several_programs_trace_at_once(programs: Programs):
    """Programs do not know of each other, and do not mix."""
    several = [programs.start(PATIENT + "go(runner, 5)") for _ in range(3)]
    ids = [one for program in several for one in programs.end(program)[0]]
    assert len(set(ids)) == 15
    assert programs.arrived(ids)


def test_threads_with_their_own_loops_share_one_tracing(programs: Programs):
    """Runners made at the same time in several threads have one tracing from the environment, with one thread."""
    text = """
begin = threading.Barrier(8)
runners = []
def work():
    begin.wait()
    runner = Runner()
    runners.append(runner)
    go(runner, 5)
threads = [threading.Thread(target=work) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
assert len({id(runner.tracing) for runner in runners}) == 1
assert len(runners) == 8
assert runners[0].tracing.lost == 0
assert asyncio.run(runners[0].tracing.flush(30))
"""
    ids = programs.run(text)
    assert len(set(ids)) == 40
    assert programs.arrived(ids)


def test_programs_with_strict_warnings_end_quietly(programs: Programs):
    """No socket is left for the garbage collector, which some programs treat as an error."""
    ids, said = programs.end(programs.start(PATIENT + "go(runner)", PYTHONWARNINGS="error::ResourceWarning"))
    assert said == ""
    assert programs.arrived(ids)
