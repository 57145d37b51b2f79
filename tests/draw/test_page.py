"""The page of a run in a real browser: found, opened, searched, drawn, and safe whatever a model wrote."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from browser import chromium
from stagegraph import Graph, Runner, fan_out, feedback, settle, step
from stagegraph.draw import page_of
from stagegraph.journal import MemoryJournal

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
