"""What needs a package of an extra says which one to install, in Python and on the command line."""

from __future__ import annotations

from pathlib import Path

import pytest

from forked import python

GRAPH = """
from pydantic_ai import Agent
from stagegraph import Graph, Stage

class Echo(Graph[str, str]):
    say = Stage(str, Agent(output_type=str))

    async def flow(self, text: str) -> str:
        return await self.say(text)

def metric(example, run):
    return 1.0
"""
WITHOUT = """
import sys
for name in {packages!r}:
    for loaded in [one for one in sys.modules if one == name or one.startswith((name + ".", "stagegraph.{room}"))]:
        del sys.modules[loaded]
    sys.modules[name] = None
"""
COMMAND = "\nsys.argv = ['stagegraph', {words}]\nfrom stagegraph.cli import main\nmain()"


@pytest.mark.parametrize(
    ("extra", "package", "room", "code"),
    [
        ("service", "fastapi", "service", "import stagegraph.service"),
        ("service", "starlette", "service", "from stagegraph.service import router"),
        ("service", "uvicorn", "service", COMMAND.format(words="'serve', 'g.py'")),
        ("service", "fastapi", "service", COMMAND.format(words="'serve', 'g.py'")),
        ("optimize", "gepa", "optimize", "from stagegraph.optimize import tune"),
        ("optimize", "dspy", "optimize", "import stagegraph.optimize as o; o.GEPA"),
        (
            "optimize",
            "gepa",
            "optimize",
            COMMAND.format(
                words="'tune', 'g.py', 'g.py:metric', '--train', 'e.jsonl', '--val', 'e.jsonl', '--runs', '1'"
            ),
        ),
        ("local", "openai", "local", "import stagegraph.local"),
        ("local", "openai", "local", COMMAND.format(words="'run', 'g.py', 'x', '--model', 'local:smollm2'")),
        ("local", "xllamacpp", "local", COMMAND.format(words="'run', 'g.py', 'x', '--model', 'local:smollm2'")),
    ],
)
def test_a_missing_package_is_named_with_its_extra(
    tmp_path: Path, extra: str, package: str, room: str, code: str
) -> None:
    """The last line is the message; a command prints no traceback."""
    (tmp_path / "g.py").write_text(GRAPH)
    (tmp_path / "e.jsonl").write_text('{"input": "a"}\n')
    done = python("-c", WITHOUT.format(packages=[package], room=room) + code, cwd=tmp_path)
    last = done.stderr.splitlines()[-1]
    assert done.returncode == 1
    assert package in last
    assert f"pip install 'stagegraph[{extra}]'" in last
    assert ("Traceback" in done.stderr) == ("sys.argv" not in code)
