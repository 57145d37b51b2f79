"""From the name that a person typed to a graph or a function: a folder, a file or a module, and what is in it."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from stagegraph.schema.errors import DeclarationError, closest

if TYPE_CHECKING:
    from stagegraph import Node

_loaded: dict[tuple[Path, int], ModuleType] = {}
"""The files that were loaded, as they were then."""


def load_graph(text: str) -> Node[Any, Any]:
    """`graphs/feedback_digest`, `path/to/file.py`, `path/to/file.py:Class`, `module:Class` or `...:Class.stage`.

    Raises:
        DeclarationError: there is no such graph, or its code cannot be imported.
    """
    place, name = _split(text)
    path = Path(place)
    if path.is_dir():
        path /= "graph.py"
    hint = "; a graph is a folder with a graph.py, FILE.py:Class, or module:Class"
    module = _module_at(path, hint) if path.suffix == ".py" or path.exists() else _module_named(place, text)
    return _instance(_named(module, name, text) if name else _only_graph(module, text), text)


def load_function(text: str | None) -> Any:
    """`path/to/file.py:function` or `module:function`; `None` for `None`.

    Raises:
        DeclarationError: there is no such function, or its code cannot be imported.
    """
    if text is None:
        return None
    place, name = _split(text)
    if not name:
        msg = f"{text!r}: say which function, as in FILE.py:function or module:function"
        raise DeclarationError(msg)
    found = _named(_module_at(Path(place)) if place.endswith(".py") else _module_named(place, text), name, text)
    if not callable(found):
        msg = f"{text}: {type(found).__name__} is no function"
        raise DeclarationError(msg)
    return found


@asynccontextmanager
async def made_deps(function: Any) -> AsyncGenerator[object]:
    """The deps that a function makes: a plain one, an async one, or one that yields them; `None` without a function.

    Raises:
        DeclarationError: it takes arguments, or fails.
    """
    plain = inspect.unwrap(function) if function is not None else None
    async with AsyncExitStack() as stack:
        try:
            if inspect.isasyncgenfunction(plain):
                made = await stack.enter_async_context(asynccontextmanager(plain)())
            elif inspect.isgeneratorfunction(plain):
                made = stack.enter_context(contextmanager(plain)())
            else:
                made = None if function is None else function()
                made = await made if inspect.isawaitable(made) else made
        except Exception as error:
            name = getattr(function, "__name__", function)
            msg = f"--deps: `{name}()` made no deps: {type(error).__name__}: {error}; it is called without arguments"
            raise DeclarationError(msg) from error
        yield made


def is_below_here(text: str) -> bool:
    """Whether the code that a name stands for is a file below the current directory.

    Somebody else may have written the journal that has the name: it may not choose any code of this machine.
    """
    place = Path(_split(text)[0]).resolve()
    return place.exists() and place.is_relative_to(Path.cwd())


def _split(text: str) -> tuple[str, str]:
    """The file or module, and the name in it; a path may contain a colon."""
    if ":" not in text or Path(text).exists():
        return text, ""
    place, _, name = text.rpartition(":")
    return place, name


def _module_at(path: Path, hint: str = "") -> ModuleType:
    if not path.is_file():
        msg = f"{path}: there is no such file{hint}"
        raise DeclarationError(msg)
    version = (path.resolve(), path.stat().st_mtime_ns)
    if version in _loaded:  # a graph and the function for its deps may be in one file, with classes that both use
        return _loaded[version]
    _importable_from(path.parent)  # so that a graph may import the files beside it
    name = f"stagegraph_user_{path.stem}_{hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        msg = f"{path}: this is no Python file"
        raise DeclarationError(msg)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # types that refer to each other are looked up here
    try:
        spec.loader.exec_module(module)
    except DeclarationError:
        raise
    except Exception as error:
        raise _import_failed(str(path), error) from error
    _loaded[version] = module
    return module


def _module_named(name: str, text: str) -> ModuleType:
    _importable_from(Path.cwd())
    try:
        return importlib.import_module(name)
    except DeclarationError:
        raise
    except Exception as error:
        # An empty or a relative name is a ValueError or a TypeError.
        no_module = isinstance(error, ModuleNotFoundError) and error.name is not None and name.startswith(error.name)
        if no_module or isinstance(error, (ValueError, TypeError)):
            msg = f"{text!r}: there is no folder, file or module of this name"
            raise DeclarationError(msg) from error
        raise _import_failed(name, error) from error


def _importable_from(folder: Path) -> None:
    if str(folder.resolve()) not in sys.path:
        sys.path.insert(0, str(folder.resolve()))


def _import_failed(place: str, error: Exception) -> DeclarationError:
    """An error that names the line of the user's code."""
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in frames if "importlib" not in frame.filename and frame.filename != __file__]
    where = f" ({lines[-1].filename}, line {lines[-1].lineno}: {lines[-1].line})" if lines else ""
    return DeclarationError(f"{place}: importing it failed: {type(error).__name__}: {error}{where}")


def _only_graph(module: ModuleType, text: str) -> object:
    """The one graph of a module that is not part of another one."""
    own: list[Any] = [value for value in vars(module).values() if _is_own_graph(value, module)]
    if len(own) > 1:
        inner: set[type] = set()
        for graph in own:
            try:
                made = _instance(graph, text)
            except DeclarationError:
                continue  # a class that needs arguments is listed with the others, and fails when it is chosen
            inner |= {type(node) for path, node in made.__node__.tree.nodes.items() if path}
        own = [graph for graph in own if graph not in inner] or own
    if len(own) == 1:
        return own[0]
    msg = f"{text}: no graph here"
    if own:
        names = ", ".join(graph.__name__ for graph in own)
        msg = f"{text}: there are several graphs, {names}: say which, {text}:{own[0].__name__}"
    raise DeclarationError(msg)


def _is_own_graph(value: Any, module: ModuleType) -> bool:
    """Whether a value is a graph's class that the module itself defines."""
    from stagegraph import Graph

    return (
        isinstance(value, type)
        and issubclass(value, Graph)
        and value.__module__ == module.__name__
        and not inspect.isabstract(cast("Any", value))
    )


def _named(module: ModuleType, name: str, text: str) -> object:
    found: object = module
    for part in name.split("."):
        if not hasattr(found, part):
            options = [option for option in vars(found) if not option.startswith("_")]
            graphs = [name for name, value in vars(found).items() if _is_own_graph(value, module)]
            there = f"; graphs here: {', '.join(graphs)}" if graphs else ""
            msg = f"{text}: there is no {part!r} here{closest(part, options)}{there}"
            raise DeclarationError(msg)
        found = getattr(found, part)
    return found


def _instance(found: Any, text: str) -> Node[Any, Any]:
    from stagegraph import Node

    kind = type(found).__name__
    if isinstance(found, type) and issubclass(found, Node):
        try:
            return cast("Node[Any, Any]", found())
        except TypeError as error:
            hint = "give a ready instance a name in the file"
            msg = f"{text}: {found.__name__} cannot be made without arguments ({error}); {hint}"
            raise DeclarationError(msg) from error
    if isinstance(found, Node):
        return cast("Node[Any, Any]", found)
    msg = f"{text}: {kind} is no graph, stage or step"
    raise DeclarationError(msg)
