"""A hash of what a user's function does: its source, and the values that it uses."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import json
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from hashlib import blake2b
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

__all__ = ["Fingerprint", "functions_of", "hash_of"]

_LIBRARIES = {"stagegraph", "pydantic", "pydantic_ai", *sys.stdlib_module_names}
_FOLDERS = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PLAIN = (str, int, float, complex, bytes, type(None), range)
_FOLLOWED = (*_PLAIN, FunctionType, MethodType, functools.partial, type)


def hash_of(value: object) -> str:
    """A short hash of plain data."""
    text = json.dumps(value, sort_keys=True, default=repr)
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


class Fingerprint:
    """A hash that changes when a user's function changes, or anything of the user's that it uses.

    It covers the source (not its comments), default values, closures, attributes of objects, and what the function
    names in its module: helpers, classes, texts and numbers, and lists and mappings with a name in capitals. A variable
    that the function itself assigns, such as a counter, is left out. What a library defines counts by its name.
    """

    def __init__(self, value: object) -> None:
        self.unknown: list[str] = []
        """The types of values that could not be read: a change in them is not noticed."""
        self._own = _package(getattr(value, "__module__", None))
        self._seen: dict[int, tuple[int, object]] = {}
        self.text = hash_of(self._data(value))

    def _data(self, value: Any) -> Any:
        """The value as plain data, with a reference where it occurs again."""
        if isinstance(value, _PLAIN):
            return [type(value).__name__, repr(value)]
        if id(value) in self._seen:
            return f"see {self._seen[id(value)][0]}"
        self._seen[id(value)] = len(self._seen), value  # kept alive, so that no other value gets its id
        if isinstance(value, Mapping):
            return sorted(map(json.dumps, self._pairs(value)))
        if isinstance(value, (set, frozenset)):
            return sorted(map(json.dumps, self._items(value)))
        if isinstance(value, (list, tuple)):
            return ["list" if isinstance(value, list) else "tuple", *self._items(value)]
        if isinstance(value, functools.partial):
            return self._items((value.func, value.args, value.keywords))
        if isinstance(value, MethodType):
            return self._items((value.__func__, value.__self__))
        if isinstance(value, FunctionType):
            return self._function(value)
        return self._class(value) if isinstance(value, type) else self._object(value)

    def _items(self, values: Any) -> list[Any]:
        return [self._data(one) for one in values]

    def _pairs(self, mapping: Any) -> list[Any]:
        return [self._items(pair) for pair in mapping.items()]

    def _function(self, function: FunctionType) -> Any:
        if self._is_library(function.__module__):
            return f"{function.__module__}.{function.__qualname__}"
        codes = list(_codes(function.__code__))
        used = self._named(function.__globals__, {name for code in codes for name in code.co_names})
        cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
        used |= {name: cell.cell_contents for name, cell in cells if cell != CellType()}
        for instruction in (one for code in codes for one in dis.get_instructions(code)):
            if instruction.opname in {"STORE_GLOBAL", "STORE_DEREF"}:
                used.pop(instruction.argval, None)
        return [self._source(function), *self._items((function.__defaults__, function.__kwdefaults__, used))]

    def _named(self, scope: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
        """What code with these names uses of a module, and of the user's modules in it."""
        found: dict[str, Any] = {}
        for name in sorted(names & scope.keys()):
            value = scope[name]
            if isinstance(value, ModuleType):
                found |= {} if self._is_library(value.__name__) else {name: self._named(vars(value), names - {name})}
            elif isinstance(value, _FOLLOWED) or name.isupper():
                found[name] = value
        return found

    def _source(self, function: FunctionType) -> str:
        try:
            source = textwrap.dedent(inspect.getsource(function.__code__))
        except OSError:  # such as code that was typed in
            self.unknown.append(f"function without a source file ({function.__qualname__})")
            return function.__qualname__
        with suppress(SyntaxError):  # the lines of a lambda need not be a statement
            source = ast.unparse(ast.parse(source))
        return source

    def _class(self, cls: type) -> Any:
        own = [base for base in cls.__mro__ if not self._is_library(base.__module__)]
        functions = [function for base in own for function in functions_of(base)]
        constants = [item for base in own for item in vars(base).items() if isinstance(item[1], _PLAIN)]
        constants = [(name, value) for name, value in constants if not name.startswith("__")]
        return [f"{cls.__module__}.{cls.__qualname__}", *self._items((functions, constants))]

    def _object(self, value: Any) -> Any:
        kind: type = value.__class__
        if isinstance(identity := getattr(value, "identity", None), str):
            return identity
        if not self._is_library(kind.__module__):
            return self._items((kind, value.__getstate__()))
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or repr(value)
        if name.startswith("<") or " at 0x" in name:
            self.unknown.append(kind.__qualname__)
            return kind.__qualname__
        return name

    def _is_library(self, module: str | None) -> bool:
        file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
        package = _package(module)
        return package in _LIBRARIES or (package != self._own and file.startswith(_FOLDERS))


def functions_of(cls: type) -> Iterator[tuple[str, FunctionType]]:
    """The methods and properties that a class itself defines."""
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if isinstance(function, FunctionType):
            yield name, function


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]
