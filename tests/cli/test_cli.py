"""The command line as a shell user meets it: real processes, exit codes, standard output and error."""

import json
import os
import pty
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from forked import Process, cli

GRAPH = """
from pydantic import BaseModel
from pydantic_ai import Agent
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.messages import ModelResponse, TextPart
from stagegraph import Graph, Stage, fan_out, step

class Words(BaseModel):
    text: str
    shout: bool = False

def answer(messages, info):
    text = str(messages[0].parts[0].content)
    if "wait" in text:
        import sys, time
        print("WAITING", file=sys.stderr, flush=True)
        time.sleep(60)
    if "bad" in text:
        raise ValueError("no \\x1b[31m[bold]answer[/bold]")
    return ModelResponse([TextPart(text.upper())])

class Inner(Graph[str, str]):
    say = Stage(str, Agent(instructions="Say it."), model=FunctionModel(answer))
    async def flow(self, text: str) -> str:
        return await self.say(text)

class Outer(Graph[Words, list[str]]):
    inner = Inner()
    async def flow(self, words: Words) -> list[str]:
        return await fan_out(self.inner, words.text.split())
"""


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    (tmp_path / "graph").mkdir()
    (tmp_path / "graph" / "graph.py").write_text(GRAPH, encoding="utf-8")
    return tmp_path


@pytest.mark.parametrize(
    ("given", "stdin"),
    [
        ('{"text": "a b"}', ""),
        ("text: a b", ""),
        ("a b", ""),
        ("-", "a b"),
        ("in.json", ""),
        ("in.yaml", ""),
        ("in.txt", ""),
    ],
)
def test_an_input_is_json_yaml_text_a_file_or_standard_input(folder: Path, given: str, stdin: str) -> None:
    """Whatever form it comes in, the graph gets its typed input, and standard output holds only the result."""
    (folder / "in.json").write_text('{"text": "a b"}', encoding="utf-8")
    (folder / "in.yaml").write_text("text: a b\nshout: true\n", encoding="utf-8")
    (folder / "in.txt").write_text("a b", encoding="utf-8")
    done = cli(folder, "run", "graph", given, stdin=stdin)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["A", "B"]
    assert "succeeded: 2 calls, 2 requests" in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize("name", ["graph", "graph/graph.py", "graph/graph.py:Outer"])
def test_a_graph_is_a_folder_a_file_or_a_class(folder: Path, name: str) -> None:
    """The one graph that is no part of another is found; a class can be named."""
    done = cli(folder, "run", name, "x", "--json")
    assert json.loads(done.stdout)["output"] == ["X"]
    assert set(json.loads(done.stdout)) == {"run_id", "status", "output", "error", "usage", "cost"}


def test_a_part_of_a_graph_can_be_run(folder: Path) -> None:
    """A stage or an inner graph by its name, with a suggestion when it is mistyped."""
    assert json.loads(cli(folder, "run", "graph/graph.py:Inner.say", "x", "--json").stdout)["output"] == "X"
    done = cli(folder, "run", "graph/graph.py:Iner", "x")
    assert done.returncode == 1
    assert "did you mean `Inner`" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "nowhere", "x"], 1, "no folder, file or module"),
        (["run", "graph", "none.txt"], 1, "there is no such file"),
        (["run", "graph", "x", "--model", "nope:x"], 1, "cannot be used"),
        (["run", "graph", "x", "--set", "iner.say=test"], 2, "did you mean `inner.say`"),
        (["run", "graph", "x", "--prompts", "none.yaml"], 1, "No such file"),
        (["run", "graph", '{"txt": 1}'], 1, "text: Field required"),
        (["run", "graph", "bad"], 1, "inner[0].say"),
        (["run"], 2, "Missing argument"),
        (["show", "x"], 1, "no journal"),
        (["runs", "--status", "odd"], 2, "is no status"),
        (["runs", "--limit", "0"], 2, "--limit"),
        (["draw", "broken.py"], 1, "line 2"),
    ],
)
def test_a_mistake_is_explained_without_a_traceback(folder: Path, words: list[str], code: int, said: str) -> None:
    """Exit code 1 for what failed and 2 for how it was asked; the message says what to do, on standard error."""
    (folder / "broken.py").write_text("x = 1\nraise RuntimeError('mine')\n", encoding="utf-8")
    done = cli(folder, *words)
    assert done.returncode == code, done.stderr
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stderr
    assert not done.stdout


def test_a_failed_run_is_json_too(folder: Path) -> None:
    """With `--json`, standard output holds one JSON object whatever happened."""
    done = cli(folder, "run", "graph", "bad", "--json")
    assert done.returncode == 1
    data = json.loads(done.stdout)
    assert (data["status"], data["output"]) == ("failed", None)
    assert "inner[0].say" in data["error"]


def test_recorded_runs_can_be_listed_shown_compared_and_scored(folder: Path) -> None:
    """The journal is the local trace."""
    cli(folder, "run", "graph", "a b")
    cli(folder, "run", "graph", "bad")
    listed = [json.loads(line) for line in cli(folder, "runs", "--json").stdout.splitlines()]
    assert [run["status"] for run in listed] == ["failed", "succeeded"]
    first = listed[1]["run_id"]
    assert "inner[1].say" in cli(folder, "show", first[:8]).stdout
    shown = cli(folder, "show", "last", "--call", "inner[0].say").stdout
    assert "no \N{REPLACEMENT CHARACTER}[31m[bold]answer[/bold]" in shown
    assert cli(folder, "diff", first, first).returncode == 0
    differs = cli(folder, "diff", first, "last")
    assert differs.returncode == 1
    assert "only in the first run" in differs.stdout
    assert cli(folder, "feedback", first, "helpful", "0.5", "--call", "inner[0].say").returncode == 0
    assert cli(folder, "feedback", first, "good", "true", "--comment", "yes").returncode == 0
    assert "good=True" in cli(folder, "runs", "--score", "good").stdout
    assert "helpful=0.5 for inner[0].say" in cli(folder, "show", first).stdout
    page = cli(folder, "show", first, "--html", "out.html")
    assert page.returncode == 0
    assert "<!doctype html>" in (folder / "out.html").read_text("utf-8")
    assert cli(folder, "show", first, "--call", "inner[9].say").returncode == 1


def test_prompts_are_shown_compared_and_checked(folder: Path) -> None:
    """What a graph says is YAML; a file is compared and checked like any other source."""
    shown = cli(folder, "prompts", "show", "graph")
    assert "inner.say:" in shown.stdout
    (folder / "p.yaml").write_text(shown.stdout, encoding="utf-8")
    assert cli(folder, "prompts", "check", "graph", "p.yaml").returncode == 0
    assert cli(folder, "prompts", "diff", "graph", "p.yaml").returncode == 0
    (folder / "q.yaml").write_text(shown.stdout.replace("Say it.", "Sing it."), encoding="utf-8")
    differs = cli(folder, "prompts", "diff", "p.yaml", "q.yaml")
    assert differs.returncode == 1
    assert "+      Sing it." in differs.stdout
    (folder / "r.yaml").write_text(shown.stdout.replace("inner.say", "inner.sing"), encoding="utf-8")
    assert "there is no stage `inner.sing`" in cli(folder, "prompts", "check", "graph", "r.yaml").stderr


def test_a_killed_run_is_resumed_from_the_command_line(folder: Path) -> None:
    """`resume` finds the graph that the run was started with, and finishes it."""
    environment = {**os.environ, "STAGEGRAPH_JOURNAL": str(folder / "runs.db")}
    command = [sys.executable, "-m", "stagegraph", "run", "graph", "a wait"]
    run = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    while "WAITING" not in run.stderr.readline():
        pass
    run.kill()
    run.communicate()
    [listed] = cli(folder, "runs", "--status", "interrupted", "--json").stdout.splitlines()
    assert json.loads(listed)["status"] == "interrupted"
    assert "interrupted" in cli(folder, "show", "last").stdout
    assert "no runs" in cli(folder, "runs", "--status", "running").stdout
    (folder / "graph" / "graph.py").write_text(GRAPH.replace("time.sleep(60)", "time.sleep(0)"), encoding="utf-8")
    done = cli(folder, "resume", "last", "--json")
    assert json.loads(done.stdout)["output"] == ["A", "WAIT"], done.stderr


@pytest.mark.parametrize("given", ["../out.py:Up", "elsewhere:Up"])
def test_a_journal_does_not_choose_the_code_that_is_loaded(tmp_path: Path, given: str) -> None:
    """A run of a file that is not below the current directory is resumed only when somebody names that file."""
    (tmp_path / "out.py").write_text("print('loaded')\n" + UP, encoding="utf-8")
    (tmp_path / "here").mkdir()
    (tmp_path / "here" / "elsewhere.py").symlink_to(tmp_path / "out.py")
    assert cli(tmp_path / "here", "run", given, "x").returncode == 1
    refused = cli(tmp_path / "here", "resume", "last")
    assert refused.returncode == 1
    assert "GRAPH" in refused.stderr
    assert "loaded" not in refused.stdout
    assert "loaded" in cli(tmp_path / "here", "resume", "last", given).stdout


UP = """
from stagegraph import Graph, step

@step
async def up(text: str) -> str:
    raise OSError("closed")

class Up(Graph[str, str]):
    up = up
    async def flow(self, text: str) -> str:
        return await self.up(text)
"""
ASKS = """
from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart
from pydantic_ai.models.function import FunctionModel
from stagegraph import Graph, Stage

agent = Agent(output_type=[str, DeferredToolRequests])

@agent.tool_plain(requires_approval=True)
def delete(path: str) -> str:
    return f"{path} gone"

def model(messages, info):
    asks = ToolCallPart("delete", {"path": "p"}, tool_call_id="c1")
    return ModelResponse([asks if len(messages) == 1 else TextPart("done")])

class Tidy(Graph[str, str]):
    clean = Stage(str, agent, model=FunctionModel(model))
    async def flow(self, text: str) -> str:
        return await self.clean(text)
"""


@pytest.mark.parametrize("graph", ["tidy.py:Tidy", "tidy:Tidy"])
def test_a_suspended_run_shows_what_it_asks_and_how_to_answer(folder: Path, graph: str) -> None:
    """`show` prints the command, which works as it is; an answer that does not fit leaves the run waiting."""
    (folder / "tidy.py").write_text(ASKS, encoding="utf-8")
    printed = cli(folder, "run", graph, "x").stderr
    shown = cli(folder, "show", "last").stdout
    assert 'clean:c1 asks (approval): delete {"path": "p"}' in shown
    commands = [re.search(r"stagegraph (resume .*), or =false", " ".join(text.split())) for text in (printed, shown)]
    [command] = {found[1] for found in commands if found}
    assert ("tidy:Tidy" in command) == (graph == "tidy:Tidy")
    refused = cli(folder, *shlex.split(command.replace("=true", "=maybe")))
    assert (refused.returncode, "`clean:c1` asks whether" in refused.stderr) == (1, True)
    assert cli(folder, *shlex.split(command)).stdout == "done\n"


def test_an_interrupted_run_ends_with_130(folder: Path) -> None:
    """Ctrl-C cancels the run; the exit code is what shells expect, and the run is in the journal as cancelled."""
    code = GRAPH.replace("time.sleep(60)", "pass").replace(
        "return await self.say(text)",
        "import asyncio, sys; print('WAITING', file=sys.stderr, flush=True); await asyncio.sleep(60); return ''",
    )
    (folder / "graph" / "graph.py").write_text(code, encoding="utf-8")
    environment = {**os.environ, "STAGEGRAPH_JOURNAL": str(folder / "runs.db")}
    # A shell lets what it starts in the background ignore Ctrl-C, and this suite may be such a thing.
    hearing = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    program = hearing + "import runpy; runpy.run_module('stagegraph', run_name='__main__')"
    command = [sys.executable, "-c", program, "run", "graph", "x"]
    run = subprocess.Popen(command, cwd=folder, env=environment, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    while "WAITING" not in run.stderr.readline():
        pass
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert run.returncode == 130
    assert "Traceback" not in said
    assert json.loads(cli(folder, "runs", "--json").stdout)["status"] == "cancelled"


def test_a_closed_pipe_is_no_error(folder: Path) -> None:
    """`stagegraph draw ... | head -1` prints no traceback."""
    shell = f"{sys.executable} -m stagegraph draw graph | head -1"
    done = subprocess.run(["bash", "-c", shell], cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "flowchart TD\n"
    assert done.stderr == ""


@pytest.mark.parametrize("words", [2, 8])
def test_a_terminal_shows_a_tree(folder: Path, words: int) -> None:
    """On a terminal the calls are a tree that is drawn while they go on; of many, those that are done are counted."""
    main, side = pty.openpty()
    environment = {
        **os.environ,
        "TERM": "xterm",
        "COLUMNS": "100",
        "LINES": "40",
        "STAGEGRAPH_JOURNAL": str(folder / "j.db"),
    }
    pipes = {"stdin": subprocess.DEVNULL, "stdout": side, "stderr": side}
    run = Process("-m", "stagegraph", "run", "graph", "a " * words, cwd=folder, env=environment, **pipes)
    os.close(side)
    seen = b""
    try:
        while chunk := os.read(main, 4096):
            seen += chunk
    except OSError:
        pass  # the other end was closed
    assert run.wait(timeout=60) == 0
    _, _, end = seen.decode().rpartition(f"{words}/{words}")
    assert ("inner[0]" in end) == (words == 2)
    assert "succeeded" in end


def test_help_is_quick_and_complete() -> None:
    """`--help` and `--version` answer without loading the library."""
    code = "import sys; sys.argv = ['stagegraph', '--version']\nfrom stagegraph.cli import main\ntry: main()\nexcept SystemExit: pass\nassert 'pydantic' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "0.1.0"


def test_looking_at_runs_does_not_wait_for_pydantic_ai(folder: Path) -> None:
    """It takes most of a second to load, and a record that is read as it is needs nothing of it."""
    assert cli(folder, "run", "graph", "a b").returncode == 0
    for command in ("runs", "show last", "show last --call inner[0].say", "diff last last"):
        words = ["stagegraph", *command.split(), "--journal", str(folder / "runs.db")]
        code = f"import sys; sys.argv = {words}\nfrom stagegraph.cli import main\ntry: main()\nexcept SystemExit: pass\nassert 'pydantic_ai' not in sys.modules"
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
        assert (done.returncode, done.stderr) == (0, "")


SECRET_GRAPH = """
from pathlib import Path
from pydantic import BaseModel, SecretStr
from stagegraph import Graph, step

class Login(BaseModel):
    user: str
    password: SecretStr

@step
async def enter(login: Login) -> str:
    if not Path("gate").exists():
        raise OSError("closed")
    return login.password.get_secret_value()

class Enter(Graph[Login, str]):
    enter = enter
    async def flow(self, login: Login) -> str:
        return await self.enter(login)
"""


def test_an_input_that_is_not_recorded_whole_is_given_again(tmp_path: Path) -> None:
    """The command that says so is the one that helps."""
    (tmp_path / "graph.py").write_text(SECRET_GRAPH, "utf-8")
    given = '{"user": "ann", "password": "x1"}'
    assert cli(tmp_path, "run", "graph.py:Enter", given).returncode == 1
    (tmp_path / "gate").touch()
    assert "resume --input" in " ".join(cli(tmp_path, "resume", "last").stderr.split())
    done = cli(tmp_path, "resume", "last", "--input", given, "--json")
    assert json.loads(done.stdout)["output"] == "x1", done.stderr


DEPS_GRAPH = """
import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from stagegraph import Graph, current_call, step

@dataclass
class Shop:
    name: str

@step
async def sell(text: str) -> str:
    deps = current_call().deps
    assert isinstance(deps, Shop), deps
    if text == "wait" and not Path("gate").exists():
        raise OSError("closed")
    return f"{text} of {deps.name}"

class Sale(Graph[str, str]):
    sell = sell
    async def flow(self, text: str) -> str:
        return await self.sell(text)

def plain():
    return Shop("plain")

async def later():
    await asyncio.sleep(0)
    return Shop("later")

def yields():
    yield Shop("yields")
    Path("closed").touch()

@asynccontextmanager
async def opens():
    try:
        yield Shop("opens")
    finally:
        Path("closed").touch()

def two(row, other): ...

def fails():
    raise LookupError("no shop")
"""


@pytest.mark.parametrize("name", ["plain", "later", "yields", "opens"])
def test_deps_come_from_a_function(tmp_path: Path, name: str) -> None:
    """For a run and for its resume; what the function opened is closed at the end."""
    (tmp_path / "graph.py").write_text(DEPS_GRAPH, "utf-8")
    options = ("--json", "--deps", f"graph.py:{name}")
    failed = cli(tmp_path, "run", "graph.py:Sale", "wait", *options)
    assert failed.returncode == 1
    (tmp_path / "closed").unlink(missing_ok=True)
    (tmp_path / "gate").touch()
    resumed = cli(tmp_path, "resume", "last", *options)
    assert json.loads(resumed.stdout)["output"] == f"wait of {name}", resumed.stderr
    assert (tmp_path / "closed").exists() == (name in {"yields", "opens"})


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("two", "made no deps: TypeError"),
        ("fails", "made no deps: LookupError: no shop"),
        ("plainn", "did you mean `plain`?"),
        ("Path.x", "there is no 'x' here"),
    ],
)
def test_deps_that_cannot_be_made_are_one_line(tmp_path: Path, function: str, said: str) -> None:
    """Before anything runs."""
    (tmp_path / "graph.py").write_text(DEPS_GRAPH, "utf-8")
    for command in (("run", "graph.py:Sale", "a"), ("serve", "graph.py:Sale", "--port", "0")):
        ended = cli(tmp_path, *command, "--deps", f"graph.py:{function}")
        assert ended.returncode == 1
        assert said in " ".join(ended.stderr.split())
        assert "Traceback" not in ended.stderr
    assert not list(tmp_path.glob(".stagegraph/*.db-journal"))
