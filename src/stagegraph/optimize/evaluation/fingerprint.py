"""A hash of what a user's function does: its source, and the values that it uses."""

from __future__ import annotations

import ast
import dis
import functools
import inspect
import sys
import sysconfig
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import suppress
from types import CellType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

from stagegraph.data.examples import digest_of
from stagegraph.schema.types import is_mapping, is_sequence, is_set

_LIBRARIES = {"stagegraph", "pydantic", "pydantic_ai", *sys.stdlib_module_names}
_FOLDERS = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_PLAIN = (str, int, float, complex, bytes, type(None), range)
_FOLLOWED = (*_PLAIN, FunctionType, MethodType, functools.partial, type)


class Fingerprint:
    """A hash that changes when a user's function changes, or anything of the user's that it uses.

    It covers the source (not its comments), default values, closures, attributes of objects, and what the function
    names in its module: helpers, classes, texts and numbers, and lists and mappings with a name in capitals. A variable
    that the function itself assigns, such as a counter, is left out. What a library defines counts by its name.
    """

    def __init__(self, value: object) -> None:
        self.unknown: list[str] = []
        """The types of values that could not be read: a change in them is not noticed."""
        self._package = _package(getattr(value, "__module__", None))
        self._seen: dict[int, tuple[int, object]] = {}
        self.text = digest_of(self._data(value))

    def _data(self, value: Any) -> Any:
        """The value as plain data, with a reference where it occurs again."""
        if isinstance(value, _PLAIN):
            return repr(value)
        if id(value) in self._seen:
            return f"see {self._seen[id(value)][0]}"
        self._seen[id(value)] = len(self._seen), value  # kept alive, so that no other value gets its id
        if is_sequence(value):
            return [self._data(one) for one in value]
        if is_mapping(value):
            return self._data(list(value.items()))
        if is_set(value):
            return self._data(sorted(value, key=repr))  # every process has another order
        if isinstance(value, functools.partial):
            return self._data([value.func, value.args, value.keywords])
        if isinstance(value, MethodType):
            return self._data([value.__func__, value.__self__])
        if isinstance(value, FunctionType):
            return self._function(value)
        if isinstance(value, type):
            own = [base for base in value.__mro__ if not self._is_library(base.__module__)]
            members = [member for base in own for member in _members(base)]
            return [f"{value.__module__}.{value.__qualname__}", self._data(members)]
        return self._object(value)

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
        return [self._source(function), self._data([function.__defaults__, function.__kwdefaults__, used])]

    def _named(self, scope: Mapping[str, Any], names: set[str]) -> dict[str, Any]:
        """What code with these names uses of a module, and of the user's modules in it."""
        found: dict[str, Any] = {}
        for name in sorted(names & scope.keys()):
            value = scope[name]
            if isinstance(value, ModuleType) and not self._is_library(value.__name__):
                found[name] = self._named(vars(value), names - {name})
            elif isinstance(value, _FOLLOWED) or name.isupper():
                found[name] = value
        return found

    def _source(self, function: FunctionType) -> str:
        try:
            source = textwrap.dedent(inspect.getsource(function.__code__))
        except OSError:  # code that was typed in, or that a dataclass made
            if not function.__name__.startswith("__"):
                self.unknown.append(f"function without a source file ({function.__qualname__})")
            return function.__qualname__
        with suppress(SyntaxError):  # the lines of a lambda need not be a statement
            source = ast.unparse(ast.parse(source))
        return source

    def _object(self, value: Any) -> Any:
        kind: type = value.__class__
        if isinstance(identity := getattr(value, "identity", None), str):
            return identity
        if not self._is_library(kind.__module__):
            return self._data([kind, value.__getstate__()])
        name = getattr(value, "__qualname__", None) or getattr(value, "__name__", None) or repr(value)
        if name.startswith("<") or " at 0x" in name:
            self.unknown.append(kind.__qualname__)
            return kind.__qualname__
        return name

    def _is_library(self, module: str | None) -> bool:
        file = getattr(sys.modules.get(module or ""), "__file__", None) or ""
        package = _package(module)
        return package in _LIBRARIES or (package != self._package and file.startswith(_FOLDERS))


def _members(cls: type) -> Iterator[tuple[str, Any]]:
    """The methods, properties and plain values that a class itself defines."""
    for name, value in vars(cls).items():
        function = value.fget if isinstance(value, property) else getattr(value, "__func__", value)
        if isinstance(function, FunctionType) or (isinstance(value, _PLAIN) and not name.startswith("__")):
            yield name, function


def _codes(code: CodeType) -> Iterator[CodeType]:
    """A function's code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes(constant)


def _package(module: str | None) -> str:
    return (module or "").partition(".")[0]
