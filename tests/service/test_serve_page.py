"""`stagegraph serve` and its page in a real browser: typed in, watched, answered, and safe whatever a model wrote."""

import re
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import Select, WebDriverWait

from browser import chromium
from forked import Process, python

GRAPH = '''
from typing import Literal
from pydantic import BaseModel, Field
from pydantic_ai import Agent, DeferredToolRequests
from pydantic_ai.messages import ModelResponse, TextPart, ToolCallPart, ToolReturnPart
from pydantic_ai.models.function import FunctionModel
from stagegraph import Graph, Stage, fan_out, step

EVIL = """</script><img src=x onerror="document.title='pwned'">"""

class Request(BaseModel):
    text: str = Field(description="What to tidy up.<script>")
    mood: Literal["kind", "strict"]
    times: int = 2
    ask: bool = False

class Report(BaseModel):
    lines: list[str]

agent = Agent(output_type=[str, DeferredToolRequests], instructions="Tidy up.")

@agent.tool_plain(requires_approval=True)
def delete(path: str) -> str:
    """Delete a file."""
    return f"{path} is gone"

def model(messages, info):
    results = [part for message in messages for part in message.parts if isinstance(part, ToolReturnPart)]
    if not results:
        return ModelResponse([ToolCallPart("delete", {"path": EVIL})])
    return ModelResponse([TextPart(f"done: {results[-1].content}")])

@step
async def line(text: str) -> str:
    if "fail" in text:
        raise ValueError(EVIL)
    return f"{text} {EVIL}"

class Tidy(Graph[Request, Report]):
    """Tidy up <b>carefully</b>."""
    line = line
    clean = Stage(str, agent, model=FunctionModel(model))

    async def flow(self, request: Request) -> Report:
        lines = await fan_out(self.line, [f"{request.mood} {request.text} {i}" for i in range(request.times)])
        return Report(lines=[*lines, await self.clean(request.text)] if request.ask else lines)
'''


@pytest.fixture(scope="module", name="url")
def _url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    (folder / "graph.py").write_text(GRAPH, "utf-8")
    words = ("-m", "stagegraph", "serve", "graph.py:Tidy", "--port", "0")
    with Process(*words, cwd=folder, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        found = re.search(r"http://\S+", said)
        assert found, said + process.stderr.read()
        yield found[0]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert (folder / ".stagegraph" / "runs.db").exists()


def test_a_graph_is_served_from_the_command_line(url: str):
    """The endpoints and the page are there; a page of somebody else cannot reach them by a name of its own."""
    with httpx.Client(base_url=url, trust_env=False, timeout=30) as client:
        answer = client.post("/runs", json={"text": "x", "mood": "kind", "times": 1})
        assert answer.json()["status"] == "succeeded"
        page = client.get("/")
        assert page.headers["x-frame-options"] == "DENY"
        assert "Tidy up &lt;b&gt;carefully&lt;/b&gt;." in page.text
        assert client.get("/", headers={"Host": "evil.example"}).status_code == 400


DEPS = """
from pathlib import Path
from stagegraph import Graph, current_call, step

@step
async def say(text: str) -> str:
    return f"{text} of {current_call().deps}"

class Say(Graph[str, str]):
    say = say
    async def flow(self, text: str) -> str:
        return await self.say(text)

async def shop():
    Path("opened").open("a").write("x")
    yield "the shop"
    Path("closed").touch()
"""


def test_deps_are_made_once_for_the_whole_service(tmp_path: Path):
    """Every run has them, and what was opened is closed when the service ends."""
    (tmp_path / "graph.py").write_text(DEPS, "utf-8")
    words = ("-m", "stagegraph", "serve", "graph.py", "--port", "0", "--deps", "graph.py:shop")
    with Process(*words, cwd=tmp_path, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        said = process.stderr.readline()
        with httpx.Client(base_url=said.split()[-1], trust_env=False, timeout=30) as client:
            assert [client.post("/runs", json=text).json()["output"] for text in "ab"] == [
                "a of the shop",
                "b of the shop",
            ]
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=30)
    assert (tmp_path / "opened").read_text("utf-8") == "x"
    assert (tmp_path / "closed").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["graph.py:Tidy", "--port", "{taken}"], "something else listens there"),
        (["graph.py:Tidy", "--host", "no.such.host.invalid"], "there is no such host"),
        (["nowhere.py"], "there is no such file"),
        (["nowhere"], "there is no folder, file or module of this name"),
        (["graph.py:Tody"], "did you mean `Tidy`?"),
    ],
)
def test_a_mistake_is_one_line(tmp_path: Path, options: list[str], said: str):
    """What is wrong and what to do, without a traceback."""
    (tmp_path / "graph.py").write_text(GRAPH, "utf-8")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        given = [option.format(taken=taken.getsockname()[1]) for option in options]
        ended = python("-m", "stagegraph", "serve", *given, cwd=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.startswith("error: ")
    assert said in ended.stderr
    assert "Traceback" not in ended.stderr


@pytest.fixture(scope="module", name="browser")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    yield from chromium(tmp_path_factory.mktemp("chromium"), "1200,800")


def run(browser: webdriver.Chrome, url: str, text: str, *, ask: bool = False) -> None:
    browser.get(url)
    browser.find_element(By.NAME, "text").send_keys(text)
    Select(browser.find_element(By.NAME, "mood")).select_by_visible_text("strict")
    if ask:
        browser.find_element(By.NAME, "ask").click()
    browser.find_element(By.ID, "start").click()


def until(browser: webdriver.Chrome, status: str) -> None:
    WebDriverWait(browser, 30).until(lambda b: b.find_element(By.ID, "status").text == status)


@pytest.mark.browser
def test_a_run_is_typed_in_and_watched(browser: webdriver.Chrome, url: str, tmp_path: Path):
    """The form comes from the input type, the calls appear, and the result is text, whatever is in it."""
    run(browser, url, "attic")
    until(browser, "succeeded")
    keys = [element.text for element in browser.find_elements(By.CSS_SELECTOR, "#calls .key")]
    assert keys == ["Tidy", "line[0]", "line[1]"]
    assert {e.get_attribute("class") for e in browser.find_elements(By.CSS_SELECTOR, "#calls li")} == {"succeeded"}
    assert "strict attic 1 </script><img" in browser.find_element(By.ID, "result").text
    assert browser.title == "Tidy"
    assert not browser.find_elements(By.TAG_NAME, "img")
    assert browser.save_screenshot(str(tmp_path / "page.png"))
    assert not [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]]


@pytest.mark.browser
def test_a_failure_says_where(browser: webdriver.Chrome, url: str):
    """The place, not the message, which is for those who run the service."""
    run(browser, url, "fail")
    until(browser, "failed")
    assert browser.find_element(By.ID, "problem").text == "It failed at line[0]."
    assert "pwned" not in browser.find_element(By.TAG_NAME, "body").text


@pytest.mark.browser
def test_a_question_is_answered(browser: webdriver.Chrome, url: str):
    """A run that asks shows what it asks, and goes on when somebody has decided."""
    run(browser, url, "cellar", ask=True)
    until(browser, "suspended")
    assert "</script><img" in browser.find_element(By.CSS_SELECTOR, ".question pre").text
    browser.find_element(By.XPATH, "//button[text()='Approve']").click()
    until(browser, "succeeded")
    assert "is gone" in browser.find_element(By.ID, "result").text


@pytest.mark.browser
def test_a_wrong_input_is_explained(browser: webdriver.Chrome, url: str):
    """What the service says about it is shown."""
    browser.get(url)
    field = browser.find_element(By.NAME, "times")
    browser.execute_script("arguments[0].type = 'text'; arguments[0].value = 'many'", field)
    browser.find_element(By.ID, "start").click()
    WebDriverWait(browser, 30).until(lambda b: "body/times" in b.find_element(By.ID, "problem").text)
    assert browser.find_element(By.ID, "status").text == "Not started"
