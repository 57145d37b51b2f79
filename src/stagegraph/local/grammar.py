"""From a JSON schema to a grammar whose every sentence is valid JSON and fits a number of tokens.

A small model repeats itself until it is stopped, and JSON that is stopped in the middle is worthless. So lists get a
most number of items and strings a most number of tokens, both chosen to fit the budget at worst. The bounds steer
generation only; what comes out is validated against the real type. Object fields keep their declared order and are
always written, optional ones too, and a list without a default has an item at least.

The language is llguidance's variant of Lark, which llama.cpp reads when a grammar starts with `%llguidance`. llama.cpp
silently ignores a grammar that it cannot read, so nothing is passed through that llguidance may not know.
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple, cast

from pydantic_ai.exceptions import UserError

from .pieces import Json, Piece, choice, compact, join, literal
from .scalars import CHUNK, KEY, TEXT, integer, number, string

__all__ = ["Grammar", "write_grammar"]

_ITEMS = (8, 6, 5, 4, 3, 2, 1)
"""Tried in turn for the most items of a list; lists inside lists get half as many."""
_WANTED = 6
"""Chunks that a string should have before a list may have more items: about 200 letters."""
_MOST = 28
"""Chunks of a string at most, unless the budget is large: about 1000 letters, some seconds of work."""
_NESTED = 3
"""How often a type may occur inside itself, itself included."""


class Grammar(NamedTuple):
    text: str
    tokens: int
    """The length of its longest sentence, at most."""


class _Place(NamedTuple):
    """Where in the schema a piece stands."""

    lists: int = 0
    inside: tuple[str, ...] = ()
    wanted: bool = True
    """Whether a list may not be empty. A small model writes `[]` wherever it can, and nothing follows from that, so
    only what has a default may be left empty."""


def write_grammar(schema: Json, budget: int) -> Grammar:
    """The grammar for a schema, with the most generous bounds that keep it within a budget of tokens.

    The bounds have a lower end, so the result may still be larger than a very small budget.

    Raises:
        UserError: the schema has parts that cannot be turned into a grammar, or allows no finite JSON.
    """
    most = max(_MOST, budget // (2 * CHUNK))
    items, chunks = 1, 1
    for items in _ITEMS:
        _, tokens, strings = _Writer(schema, items, 1).start()
        chunks = min((budget - tokens) // (CHUNK * strings), most) if strings else most * (tokens <= budget)
        if chunks >= _WANTED:
            break
    writer = _Writer(schema, items, max(chunks, 1))
    start = writer.start()
    rules = "".join(f"{name}: {text}\n" for text, name in writer.rules.items())
    text = f"%llguidance {{}}\nstart: {start.text}\n{rules}{TEXT}"
    return Grammar(text, start.tokens + CHUNK * start.strings * writer.chunks)


class _Writer:
    """Writes one schema with one set of bounds; a piece is `None` where nothing finite could stand."""

    def __init__(self, schema: Json, items: int, chunks: int) -> None:
        self.chunks = chunks
        self.rules: dict[str, str] = {}
        self._schema, self._items = schema, items
        self._known: dict[tuple[str, int, bool, frozenset[tuple[str, int]]], Piece | None] = {}

    def start(self) -> Piece:
        if (piece := self._value(self._schema, _Place())) is None:
            msg = "no finite JSON has the output type: it refers to itself without a way to end, or its limits conflict"
            raise UserError(msg)
        return piece

    def _value(self, schema: Json | bool, place: _Place) -> Piece | None:
        if isinstance(schema, bool):
            return self._value({}, place) if schema else None
        if reference := schema.get("$ref"):
            return self._reference(reference, place)
        if "const" in schema:
            return literal(compact(schema["const"]))
        if "enum" in schema:
            return choice([literal(compact(value)) for value in schema["enum"]])
        options: list[Json | bool] = schema.get("anyOf") or schema.get("oneOf") or []
        if options:
            # Pydantic's schema of a `Decimal` is a number or any string, and any string is not a decimal.
            decimal = any(isinstance(option, dict) and option.get("type") == "number" for option in options)
            return choice([self._value(o, place) for o in options if not (decimal and o == {"type": "string"})])
        if parts := schema.get("allOf"):
            if len(parts) > 1:
                msg = (
                    "local models cannot make a type that must fit several schemas (`allOf`) at once: declare it whole"
                )
                raise UserError(msg)
            return self._value(parts[0], place)
        kind = schema.get("type", "object" if "properties" in schema else "any")
        if isinstance(kind, list):
            return choice([self._typed(one, schema, place) for one in cast("list[str]", kind)])
        return self._typed(kind, schema, place)

    def _typed(self, kind: str, schema: Json, place: _Place) -> Piece | None:
        match kind:
            case "object" if schema.get("properties"):
                return self._object(schema, place)
            case "object":
                return self._mapping(schema, place)
            case "array":
                return self._array(schema, place)
            case "string":
                return string(schema, self.chunks)
            case "integer":
                return integer(schema)
            case "number":
                return number(schema)
            case "boolean":
                return choice([literal("true"), literal("false")])
            case "null":
                return literal("null")
            case _:
                return choice([self._typed(one, {}, place) for one in ("string", "number", "boolean", "null")])

    def _reference(self, reference: str, place: _Place) -> Piece | None:
        inside = Counter(place.inside)
        if inside[reference] >= _NESTED:
            return None
        key = (reference, place.lists, place.wanted, frozenset(inside.items()))
        if key not in self._known:
            target: Any = self._schema
            for step in reference.removeprefix("#").split("/")[1:]:
                target = target[step.replace("~1", "/").replace("~0", "~")]
            self._known[key] = self._value(target, place._replace(inside=(*place.inside, reference)))
        return self._known[key]

    def _object(self, schema: Json, place: _Place) -> Piece | None:
        fields: list[Piece] = []
        for name, field in schema["properties"].items():
            required = name in schema.get("required", ())
            value = self._value(field, place._replace(wanted=required))
            if value is not None:
                fields += [literal(f"{',' if fields else '{'}{compact(name)}:"), value]
            elif required:
                return None
        return self._rule(join(*fields, literal("}" if fields else "{}")))

    def _mapping(self, schema: Json, place: _Place) -> Piece | None:
        names, values = schema.get("propertyNames"), schema.get("additionalProperties", True)
        for pattern, value in schema.get("patternProperties", {}).items():
            names, values = {"pattern": pattern}, value
        key = KEY if names is None else self._value({"type": "string", **names}, place)
        value = self._value(values, _Place(place.lists + 1, place.inside))
        pair = None if key is None or value is None else join(key, literal(":"), value)
        return self._several(pair, schema.get("minProperties", 0), schema.get("maxProperties"), place, "{}")

    def _array(self, schema: Json, place: _Place) -> Piece | None:
        if "prefixItems" in schema:
            return self._tuple(schema["prefixItems"], place)
        item = self._value(schema.get("items", True), _Place(place.lists + 1, place.inside))
        return self._several(item, schema.get("minItems", 0), schema.get("maxItems"), place, "[]")

    def _tuple(self, schemas: list[Json], place: _Place) -> Piece | None:
        fields: list[Piece] = []
        for schema in schemas:
            if (value := self._value(schema, place)) is None:
                return None
            fields += [literal("," if fields else "["), value]
        return self._rule(join(*fields, literal("]" if fields else "[]")))

    def _several(self, item: Piece | None, low: int, high: int | None, place: _Place, ends: str) -> Piece | None:
        bound = max(1, self._items >> place.lists, low)
        high = bound if high is None else min(bound, high)
        if item is None or not high:
            return None if low else literal(ends)
        low = max(low, int(place.wanted))
        item = self._rule(item)
        rest = f' ("," {item.text}){{{max(low, 1) - 1},{high - 1}}}' if high > 1 else ""
        text = f'"{ends[0]}" {item.text}{rest} "{ends[1]}"'
        if not low:
            text = f'("{ends}" | {text})'
        return self._rule(Piece(text, high * (item.tokens + 1) + 2, high * item.strings))

    def _rule(self, piece: Piece) -> Piece:
        if piece.text.isidentifier():
            return piece
        return piece._replace(text=self.rules.setdefault(piece.text, f"r{len(self.rules)}"))
