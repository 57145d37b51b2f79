"""What a function does, as a hash that another process finds equal: its code, and what it holds on to."""

from __future__ import annotations

import dis
import functools
import json
import sys
import sysconfig
import types
from collections.abc import Collection, Iterator, Mapping
from enum import Enum
from hashlib import blake2b
from typing import Any, cast

from pydantic import BaseModel
from pydantic_ai.agent import AbstractAgent
from pydantic_ai.models import Model

from stagegraph.nodes.node import Node

__all__ = ["Fingerprint", "functions_of", "hash_of", "name_of"]

_LIBRARIES = {"stagegraph", "pydantic", "pydantic_ai"}
_FOLDERS = tuple({sysconfig.get_paths()[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_STORES = {"STORE_GLOBAL", "STORE_DEREF"}
_PLAIN = (str, int, float, complex, bytes, bool, type(None), range)
_FOLLOWED = (*_PLAIN, types.FunctionType, types.MethodType, functools.partial, type)


def hash_of(value: object) -> str:
    """A short hash of plain data."""
    text = json.dumps(value, sort_keys=True, default=repr)
    return blake2b(text.encode("utf-8", "replace"), digest_size=8).hexdigest()


def name_of(model: Model[Any] | str | None) -> str | None:
    """A model in a line that another process writes the same way."""
    return model if model is None or isinstance(model, str) else f"{model.system}:{model.model_name}"


class Fingerprint:
    """A hash of what was given, followed into a user's own functions and classes; libraries count by name.

    It is made of bytecode, which comments and layout do not change. Constants of a module are in it as far as a
    function names them: texts and numbers, and lists and mappings that are written in capitals.
    """

    def __init__(self, value: object) -> None:
        self.unknown: list[str] = []
        """The types of what could not be looked into, so that a change in there is not noticed."""
        self._own = _top(getattr(value, "__module__", None))
        self._seen: dict[int, tuple[int, object]] = {}
        self.text = hash_of(self._of(value))

    def _of(self, value: Any) -> Any:
        """The value as plain data."""
        identity = getattr(value, "identity", None) if not isinstance(value, type) else None
        if isinstance(identity, str):
            return identity
        if isinstance(value, Enum):
            return [type(value).__qualname__, value.name]
        if isinstance(value, _PLAIN):
            return [type(value).__name__, repr(value)]
        if isinstance(value, (types.ModuleType, types.BuiltinFunctionType)):
            return value.__name__
        if isinstance(value, Model):
            return name_of(cast("Model[Any]", value))
        if id(value) in self._seen:
            return f"see {self._seen[id(value)][0]}"
        self._seen[id(value)] = len(self._seen), value  # kept alive, so that no other value gets its id
        return self._inside(value)

    def _inside(self, value: Any) -> Any:
        if isinstance(value, Mapping):
            items = cast("Mapping[Any, Any]", value).items()
            return ["mapping", sorted(json.dumps([self._of(one) for one in item]) for item in items)]
        if isinstance(value, (list, tuple)):
            kind = "list" if isinstance(value, list) else "tuple"
            return [kind, [self._of(one) for one in cast("list[Any]", value)]]
        if isinstance(value, (set, frozenset)):
            return ["set", sorted(json.dumps(self._of(one)) for one in cast("set[Any]", value))]
        if isinstance(value, functools.partial):
            part = cast("functools.partial[Any]", value)
            return ["partial", *(self._of(one) for one in (part.func, part.args, part.keywords))]
        if isinstance(value, types.MethodType):
            return ["method", self._of(value.__func__), self._of(value.__self__)]
        if isinstance(value, types.FunctionType):
            return self._function(value)
        if isinstance(value, type):
            return self._class(cast("type[Any]", value))
        return self._object(value)

    def _function(self, function: types.FunctionType) -> Any:
        code = function.__code__
        if self._is_library(code.co_filename, function.__module__):
            return f"{function.__module__}.{function.__qualname__}"
        codes = list(_codes(code))
        written = {one.argval for each in codes for one in dis.get_instructions(each) if one.opname in _STORES}
        names = dict.fromkeys(name for each in codes for name in each.co_names)
        held: dict[str, Any] = {}
        for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=True):
            if name not in written:  # a counter says nothing about what is done
                held[name] = _content(cell)
        for name in names:
            if name in function.__globals__ and name not in written:
                held.update(self._constants(name, function.__globals__[name], names))
        return [
            [_facts(one) for one in codes],
            self._of(function.__defaults__),
            self._of(function.__kwdefaults__),
            {name: self._of(value) for name, value in held.items()},
        ]

    def _is_library(self, file: str, module: str | None) -> bool:
        top = _top(module)
        known = top in _LIBRARIES or top in sys.stdlib_module_names
        return known or (top != self._own and (file or _file_of_module(module)).startswith(_FOLDERS))

    def _constants(self, name: str, value: Any, names: Collection[str]) -> Iterator[tuple[str, Any]]:
        """What a name at the top of a module stands for, where it decides what a function does."""
        if isinstance(value, types.ModuleType):
            if not self._is_library(getattr(value, "__file__", None) or "", value.__name__):
                for inner in sorted(set(names) & vars(value).keys()):
                    yield from self._constants(f"{name}.{inner}", getattr(value, inner), ())
        elif isinstance(value, _FOLLOWED) or name.rpartition(".")[2].isupper():
            yield name, value

    def _class(self, cls: type) -> Any:
        found: list[Any] = [f"{cls.__module__}.{cls.__qualname__}"]
        for base in cls.__mro__:
            if self._is_library(_file_of(base), base.__module__) or issubclass(base, Node):
                continue
            found += [[name, self._of(function)] for name, function in functions_of(cast("Any", base))]
            found += [[name, self._of(value)] for name, value in _constants_of(cast("Any", base))]
        return found

    def _object(self, value: Any) -> Any:
        kind = cast("type[Any]", type(value))
        if isinstance(value, (Node, AbstractAgent)):
            node = cast("Any", value)
            return [kind.__qualname__, node.__node__.name if isinstance(value, Node) else node.name]
        if isinstance(value, BaseModel):
            return [self._of(kind), self._of(dict(value))]
        if self._is_library(_file_of(kind), kind.__module__):
            text = repr(value)
            if " at 0x" in text or text.startswith("<"):
                self.unknown.append(kind.__qualname__)
                return kind.__qualname__
            return text
        fields = dict(getattr(value, "__dict__", {}))
        for base in kind.__mro__:
            slots = vars(base).get("__slots__", ())
            for name in (slots,) if isinstance(slots, str) else slots:
                if hasattr(value, name) and not name.startswith("__"):
                    fields[name] = getattr(value, name)
        return [self._of(kind), self._of(fields)]


def functions_of(cls: type) -> Iterator[tuple[str, types.FunctionType]]:
    """What a class itself defines, methods of all kinds and properties."""
    for name, value in vars(cls).items():
        inner = cast("object", value.fget if isinstance(value, property) else getattr(value, "__func__", value))
        if isinstance(inner, types.FunctionType):
            yield name, inner


def _constants_of(cls: type) -> Iterator[tuple[str, object]]:
    for name, value in vars(cls).items():
        if isinstance(value, _PLAIN) and not name.startswith("__"):
            yield name, value


def _codes(code: types.CodeType) -> Iterator[types.CodeType]:
    """A function's code, and that of the functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _codes(constant)


def _facts(code: types.CodeType) -> list[Any]:
    constants = [
        sorted(map(repr, cast("frozenset[Any]", one))) if isinstance(one, frozenset) else repr(one)
        for one in code.co_consts[_has_docstring(code) :]
        if not isinstance(one, types.CodeType)
    ]
    return [code.co_code.hex(), code.co_names, code.co_varnames, code.co_freevars, constants]


def _has_docstring(code: types.CodeType) -> bool:
    """Whether the first constant is a text that no instruction reads."""
    read = {one.arg for one in dis.get_instructions(code) if one.opname in {"LOAD_CONST", "RETURN_CONST"}}
    return isinstance(next(iter(code.co_consts), None), str) and 0 not in read


def _content(cell: types.CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:  # not filled yet
        return None


def _file_of(cls: type) -> str:
    functions = [one for one in vars(cls).values() if isinstance(one, types.FunctionType)]
    return functions[0].__code__.co_filename if functions else ""


def _file_of_module(module: str | None) -> str:
    return getattr(sys.modules.get(module or ""), "__file__", None) or ""


def _top(module: str | None) -> str:
    return (module or "").partition(".")[0]
