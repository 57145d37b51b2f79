"""`stagegraph draw`: what a graph declares, and the data of a recorded run."""

from pathlib import Path

import pytest

from forked import cli

GRAPH = """
from pydantic import BaseModel
from stagegraph import Graph, step

class Text(BaseModel):
    text: str

class Short(Text):
    pass

@step
async def cut(text: Text) -> Text:
    return Text(text=text.text[:2])

@step
async def shout(text: Text) -> Text:
    return Text(text=text.text.upper())

class Cuts(Graph[Text, Text]):
    cut = cut
    shout = shout
    async def flow(self, text: Text) -> Text:
        return await self.cut(await self.shout(text))

class Other(Graph[Text, Text]):
    cut = cut
    async def flow(self, text: Text) -> Text:
        return await self.cut(text)
"""


@pytest.fixture(name="folder")
def _folder(tmp_path: Path) -> Path:
    (tmp_path / "g.py").write_text(GRAPH)
    return tmp_path


def test_a_recorded_run_is_drawn_as_it_was(folder: Path) -> None:
    """The declared arrows are called guesses; `--run` has an arrow for what really went from one call to the next."""
    declared = cli(folder, "draw", "g.py:Cuts")
    assert "guesses" in declared.stdout.splitlines()[0]
    assert declared.stdout.count("-.->") == 2
    for graph in ("g.py:Cuts", "g.py:Other"):
        assert cli(folder, "run", graph, "text: long").returncode == 0
    drawn = cli(folder, "draw", "g.py:Cuts", "--run", "last")  # the last one of this graph
    assert drawn.returncode == 0, drawn.stderr
    assert "guesses" not in drawn.stdout
    assert "shout<br/>" in drawn.stdout
    assert drawn.stdout.count("-->") == 1
    wrong = cli(folder, "draw", "g.py:Other", "--run", "nope")
    assert (wrong.returncode, "there is no run 'nope'" in wrong.stderr) == (1, True)


def test_a_drawing_is_text(folder: Path) -> None:
    """A picture is refused before anything is done; a page of text has the drawing as a block."""
    for name in ("x.svg", "x.png", "x.html"):
        refused = cli(folder, "draw", "g.py:Cuts", "--out", name)
        assert refused.returncode == 2
        assert "Mermaid text" in refused.stderr
        assert not (folder / name).exists()
    assert cli(folder, "draw", "g.py:Cuts", "--out", "x.md").returncode == 0
    assert (folder / "x.md").read_text().startswith("```mermaid\n%% ")
    assert cli(folder, "draw", "g.py:Cuts", "--out", "x.mmd").returncode == 0
    assert "flowchart TD" in (folder / "x.mmd").read_text()
