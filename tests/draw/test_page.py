"""The page of a run in a real browser: found, opened, searched, drawn, and safe whatever a model wrote."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import anyio
import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from browser import chromium
from stagegraph import Graph, Runner, fan_out, feedback, settle, step
from stagegraph.draw import page_of, run_page
from stagegraph.journal import CallRow, MemoryJournal, RunRow
from stagegraph.record.labels import Labels

pytestmark = [pytest.mark.browser, pytest.mark.anyio]

EVIL = "</script><img src=x onerror=\"document.title='pwned'\"><script>document.title='pwned'</script>{{data}}"


@pytest.fixture(scope="module", name="browser")
def _browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    yield from chromium(tmp_path_factory.mktemp("chromium"), "1400,800")


@step
async def make(text: str) -> list[str]:
    return [f"{text} {number}" for number in range(3)]


@step
async def use(words: list[str]) -> str:
    if "bad" in words[0]:
        raise ValueError(EVIL)
    return EVIL


class Inner(Graph[str, str]):
    make = make
    use = use

    async def flow(self, text: str) -> str:
        return await self.use(await self.make(text))


class Outer(Graph[list[str], int]):
    inner = Inner()

    async def flow(self, texts: list[str]) -> int:
        return len(await settle(self.inner, texts, key=lambda text: text))


class Many(Graph[int, int]):
    make = make

    async def one(self, number: int) -> list[str]:
        return await self.make(f"item {number}")

    async def flow(self, size: int) -> int:
        return len(await fan_out(self.one, range(size)))


async def opened(browser: webdriver.Chrome, folder: Path, graph: Graph, given: object, anchor: str = "") -> Path:
    journal = MemoryJournal()
    runner = Runner(journal=journal)
    await runner.run(graph, given, run_id="r", metadata={"note": EVIL}, tags=(EVIL,))
    keys = [row.key for row in await journal.calls("r")]
    await feedback("r", "helpful", 0.5, comment=EVIL, runner=runner)
    await feedback("r", "right", True, key=keys[1], runner=runner)
    path = folder / "run.html"
    path.write_text(await page_of(journal, "r"), encoding="utf-8")
    browser.get("about:blank")
    browser.get(path.as_uri() + anchor)
    WebDriverWait(browser, 20).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, ".row"))
    return path


def shown(browser: webdriver.Chrome) -> list[str]:
    rows = browser.find_elements(By.CSS_SELECTOR, ".row")
    return [row.get_attribute("data-key") or "" for row in rows if row.is_displayed()]


def detail(browser: webdriver.Chrome) -> str:
    return browser.find_element(By.ID, "detail").text


async def test_calls_are_listed_folded_searched_and_opened(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """A tree of every call; branches fold; search finds by content; a click opens input, output and scores."""
    await opened(browser, tmp_path, Outer(), ["a", "bad"])
    everything = ["", "inner[a]", "inner[a].make", "inner[a].use", "inner[bad]", "inner[bad].make", "inner[bad].use"]
    assert shown(browser) == everything
    browser.find_element(By.ID, "fold").click()
    assert shown(browser) == ["", "inner[a]", "inner[bad]"]
    browser.find_element(By.ID, "fold").click()
    assert shown(browser) == everything
    search = browser.find_element(By.ID, "search")
    search.send_keys("bad 2")
    assert "inner[bad].make" in shown(browser)
    assert "inner[a].make" not in shown(browser)
    assert "of 7" in browser.find_element(By.ID, "found").text
    search.clear()
    search.send_keys(" ")
    browser.find_element(By.CSS_SELECTOR, '[data-key="inner[a].make"]').click()
    assert "a 2" in detail(browser)
    browser.find_element(By.CSS_SELECTOR, '[data-key="inner[a]"] .key').click()
    assert "FEEDBACK: RIGHT" in detail(browser).upper()


async def test_the_data_flow_is_drawn(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """An arrow from the call that made a value to the one that was given it; a box opens its call."""
    await opened(browser, tmp_path, Outer(), ["a", "bad"])
    browser.find_element(By.ID, "show-flow").click()
    boxes = browser.find_elements(By.CSS_SELECTOR, "#flow .link")
    assert len(boxes) == 4
    assert len(browser.find_elements(By.CSS_SELECTOR, "#flow path[marker-end]")) == 2
    boxes[0].click()
    assert "inner[" in detail(browser)


async def test_hostile_content_is_text(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """`#call=KEY` opens that call; markup and scripts in it, labels and scores are shown, and nothing runs or loads."""
    await opened(browser, tmp_path, Outer(), [EVIL, "bad"], "#call=inner%5Bbad%5D.use")
    assert detail(browser).startswith("inner[bad].use")
    assert "ValueError" in detail(browser)
    assert "<img src=x onerror=" in detail(browser)
    assert browser.title != "pwned"
    assert not browser.find_elements(By.TAG_NAME, "img")
    assert len(browser.find_elements(By.TAG_NAME, "script")) == 2
    loaded = browser.execute_script("return performance.getEntriesByType('resource').length")
    assert loaded == 0


async def test_a_thousand_calls_are_readable(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """Wide runs open, fold and search like small ones; the drawing counts them by path."""
    await opened(browser, tmp_path, Many(), 1_000)
    browser.find_element(By.ID, "search").send_keys("item 777 ")
    assert shown(browser) == ["", "make[777]"]
    browser.find_element(By.ID, "show-flow").click()
    assert "1000 calls" in browser.find_element(By.ID, "flow").text


def page_of_rows(browser: webdriver.Chrome, folder: Path, run: RunRow, calls: list[CallRow]) -> None:
    path = folder / "run.html"
    path.write_text(run_page(run, calls, []), encoding="utf-8")
    browser.get("about:blank")
    browser.get(path.as_uri())
    WebDriverWait(browser, 60).until(lambda driver: driver.find_elements(By.CSS_SELECTOR, ".row"))


def rows_of(count: int) -> list[CallRow]:
    """A graph with graphs of ten steps each."""
    root = CallRow(
        run_id="r", key="", path="", kind="graph", parent=None, position=0, status="succeeded", input="1", started=5
    )
    rows = [root]
    for number in range(count // 11):
        key = f"inner[{number}]"
        rows.append(replace(root, key=key, path="inner", parent="", position=len(rows)))
        for step_number in range(10):
            one = replace(root, key=f"{key}.make[{step_number}]", path="inner.make", kind="step", parent=key)
            rows.append(replace(one, position=len(rows), input=f'"item {number} {step_number}"', duration=0.5))
    return rows


async def test_very_many_calls_are_drawn_where_they_are_seen(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """The page has elements for the rows in view alone; scrolling, keys, folding, links and search reach all others."""
    run = RunRow(run_id="r", graph="Wide", status="succeeded", started=5, duration=1.0, input="1")
    page_of_rows(browser, tmp_path, run, rows_of(11_000))
    assert len(shown(browser)) < 200
    browser.execute_script("const left = document.getElementById('left'); left.scrollTop = left.scrollHeight")
    WebDriverWait(browser, 20).until(lambda _: "inner[999].make[9]" in shown(browser))
    assert "inner[0]" not in shown(browser)
    browser.execute_script("location.hash = '#call=inner%5B500%5D'")
    WebDriverWait(browser, 20).until(lambda _: detail(browser).startswith("inner[500]"))
    assert "inner[500]" in shown(browser)
    browser.find_element(By.ID, "rows").send_keys(Keys.ARROW_LEFT, Keys.ARROW_DOWN)
    assert detail(browser).startswith("inner[501]")
    assert "inner[500].make[0]" not in shown(browser)
    browser.find_element(By.ID, "rows").send_keys(Keys.HOME)
    assert detail(browser).startswith("Wide")
    browser.find_element(By.ID, "rows").send_keys(Keys.END)
    assert detail(browser).startswith("inner[999].make[9]")
    browser.find_element(By.ID, "fold").click()
    assert "inner[5]" in shown(browser) or "inner[990]" in shown(browser)
    browser.find_element(By.ID, "search").send_keys("item 777 3")
    assert shown(browser) == ["", "inner[777]", "inner[777].make[3]"]


def edges_of(browser: webdriver.Chrome, key: str) -> tuple[float, float]:
    """Where a call's bar begins and ends, in percent of the axis."""
    bar = browser.find_element(By.CSS_SELECTOR, f'[data-key="{key}"] .bar')
    left, width = (float((bar.get_attribute(name) or "").rstrip("%")) for name in ("x", "width"))
    return left, left + width


async def test_a_break_in_a_run_is_a_break_in_its_axis(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """Between two parts of a run nothing ran, however long that was: the parts stay readable, and the break is named."""
    labels = Labels(resumed=(1000.0, 100_000.0), ended=(10.0, 1020.0)).to_json()
    run = RunRow(
        run_id="r", graph="Wide", status="succeeded", started=0.0, duration=100_010.0, input="1", labels=labels
    )
    root = replace(rows_of(0)[0], started=0.0, duration=100_010.0)
    times = {"first": (0.0, 10.0), "second": (1000.0, 20.0), "third": (100_000.0, 10.0)}
    calls = [
        replace(root, key=key, path=key, kind="step", parent="", position=place, started=began, duration=seconds)
        for place, (key, (began, seconds)) in enumerate(times.items(), 1)
    ]
    page_of_rows(browser, tmp_path, run, [root, *calls])
    (a, b), (c, d), (e, f) = (edges_of(browser, key) for key in times)
    assert a == 0
    assert f == pytest.approx(100)
    assert (d - c) == pytest.approx(2 * (b - a))
    assert (f - e) == pytest.approx(b - a)
    assert 0 < c - b == pytest.approx(e - d)
    assert (b - a) > 20
    titles = [gap.get_attribute("title") for gap in browser.find_elements(By.CSS_SELECTOR, ".gap")]
    assert titles == ["nothing ran for 16 min 30 s", "nothing ran for 27 h 29 min"]
    ticks = browser.find_element(By.CSS_SELECTOR, "#axis .ticks").text
    assert "40.00 s" in ticks
    assert "27 h 46 min" in browser.find_element(By.ID, "facts").text


@step
async def wait(text: list[str]) -> str:
    await anyio.sleep_forever()
    return text[0]


class Waits(Graph[str, str]):
    make = make
    wait = wait

    async def flow(self, text: str) -> str:
        return await self.wait(await self.make(text))


async def test_an_interrupted_run_says_so(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """With the calls that it has made, also the one that it was in."""
    journal = MemoryJournal()
    runner = Runner(journal=journal, tracing=None, drain_seconds=0)
    async with runner.lifespan():
        live = runner.start(Waits(), "a", run_id="r")
        async for event in live.events():
            if event.type == "call_started" and event.key == "wait":
                break
    path = tmp_path / "run.html"
    path.write_text(await page_of(journal, "r"), encoding="utf-8")
    browser.get(path.as_uri())
    assert browser.find_element(By.CSS_SELECTOR, "#facts .badge").text == "interrupted"
    assert shown(browser) == ["", "make", "wait"]


async def test_light_and_dark(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """The page follows the system, and the button overrules it."""
    await opened(browser, tmp_path, Many(), 1)
    colors = []
    for scheme in ("light", "dark"):
        browser.execute_cdp_cmd(
            "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        )
        colors.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    browser.find_element(By.ID, "theme").click()
    colors.append(browser.execute_script("return getComputedStyle(document.body).backgroundColor"))
    assert colors[0] != colors[1]
    assert colors[2] == colors[0]


async def test_a_narrow_window_keeps_the_names(browser: webdriver.Chrome, tmp_path: Path) -> None:
    """On a telephone a call's name is read whole; its duration is a click away."""
    metrics = {"width": 420, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        await opened(browser, tmp_path, Outer(), ["a", "bad"])
        cut = "return [...document.querySelectorAll('.key')].filter((e) => e.scrollWidth > e.clientWidth).length"
        assert browser.execute_script(cut) == 0
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 420
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
