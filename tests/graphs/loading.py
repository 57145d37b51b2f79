"""How the tests load a ready-made graph: from its file, as the command line does."""

from pathlib import Path
from typing import Any

from stagegraph.cli.load import load_graph

GRAPHS = Path(__file__).parents[2] / "graphs"


def graph_module(name: str) -> Any:
    """The module of `graphs/<name>/graph.py`."""
    import sys

    return sys.modules[type(load_graph(str(GRAPHS / name))).__module__]
