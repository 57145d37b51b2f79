"""Grammars from JSON schemas: every sentence is valid JSON and fits a number of tokens.

A small model repeats itself until it is stopped, and truncated JSON is useless. So lists and strings get upper bounds,
which fit the budget in the worst case. Object fields keep their declared order and are always written, optional ones
too. The bounds steer generation only: the answer is validated against the real type.

The language is llguidance's variant of Lark, which llama.cpp reads when a grammar starts with `%llguidance`. llama.cpp
silently ignores a grammar that it cannot read, so a grammar contains only what llguidance supports.
"""

import json
import math
from collections import Counter
from decimal import ROUND_CEILING, Decimal
from typing import Any, NamedTuple

from pydantic_ai.exceptions import UserError

Json = dict[str, Any]

_ITEMS = (8, 6, 5, 4, 3, 2, 1)
"""Maximum numbers of items in a list, tried in turn; lists inside lists get half as many."""
_WANTED = 6
"""Chunks that a string should have before lists may have more items: about 200 letters."""
_MOST = 28
"""Maximum chunks of a string, unless the budget is large: about 1000 letters, some seconds of work."""
_NESTED = 3
"""Maximum depth of a type inside itself, itself included."""
_ANY = ("string", "number", "boolean", "null")
_LIST = "[]"
"""Marks a list among the enclosing types of a value."""
_RUN = 8
_RUN_CHARACTERS = 40
_CHUNK = _RUN + 1
"""Maximum tokens of a chunk of text: its first token may begin before it."""

# A chunk is a run of plain text, or one character that needs several tokens or must not be cut in two. `max_tokens`
# cuts at any place, so it is used only where every place is safe: not inside an escape or a character.
_TEXT = f"""\
chunk: run | OTHER | ESCAPE
run[max_tokens={_RUN}]: /[ !#-\\[\\]-~]{{1,{_RUN_CHARACTERS}}}/
OTHER: /[^\\x00-\\x7f\\u0080-\\u009f\\ufffd]/
ESCAPE: /\\\\["\\\\nt]/
"""
"""The rules for strings."""

_CHARACTER = r'([ !#-\[\]-~]|[^\x00-\x7f\u0080-\u009f\ufffd]|\\["\\nt])'
_WHOLE = "(0|[1-9][0-9]{0,11})"
_DECIMALS = r"(\.[0-9]{1,2})?"
_LEAP_FREE = "(0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31"
_DATE = f"(19|20)[0-9]{{2}}-({_LEAP_FREE})"
_TIME = "([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9]"
_BYTE = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_WORD = "[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?"
_HOST = rf"{_WORD}(\.{_WORD})?\.[a-z]{{2,6}}"
_UUID = "[0-9a-f]{{8}}-[0-9a-f]{{4}}-{}[0-9a-f]{{3}}-[89ab][0-9a-f]{{3}}-[0-9a-f]{{12}}"
_FORMATS: dict[str, tuple[str, int]] = {
    "date": (_DATE, 10),
    "time": (_TIME, 8),
    "date-time": (f"{_DATE}T{_TIME}Z", 20),
    "duration": ("P([1-9][0-9]{0,2}D|T[1-9][0-9]{0,2}[HMS])", 6),
    "uuid": (_UUID.format(4), 36),
    **{f"uuid{version}": (_UUID.format(version), 36) for version in range(1, 9)},
    "email": (rf"[a-z0-9]([a-z0-9]|[._+-][a-z0-9]){{0,30}}@{_HOST}", 110),
    "uri": (rf"https?:\/\/{_HOST}(\/[A-Za-z0-9_.-]{{1,20}}){{0,3}}", 120),
    "ipv4": (rf"{_BYTE}\.{_BYTE}\.{_BYTE}\.{_BYTE}", 15),
    "ipv6": ("[1-9a-f][0-9a-f]{0,3}(:[0-9a-f]{1,4}){7}", 39),
}
"""Format -> regular expression and its maximum tokens, for the formats that Pydantic checks; others are plain text."""


class Piece(NamedTuple):
    """Part of a rule, with its worst case: the tokens, and the number of strings whose length is not decided yet."""

    text: str
    tokens: int = 0
    strings: int = 0


_KEY = Piece(r'"\"" /[A-Za-z_][A-Za-z0-9_ .\-]{0,23}/ "\""', 26)
"""A free key of an object."""


def _compact(value: object) -> str:
    """JSON without blanks, as the model must write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _literal(text: str) -> Piece:
    # A token of a word has a few letters; digits and non-ASCII characters need up to one token per byte.
    dense = sum(len(letter.encode()) for letter in text if letter.isdigit() or not letter.isascii())
    return Piece(_compact(text), 1 + len(text) // 2 + dense)


def _join(*pieces: Piece) -> Piece:
    text = " ".join(piece.text for piece in pieces)
    return Piece(text, sum(piece.tokens for piece in pieces), sum(piece.strings for piece in pieces))


def _choice(options: list[Piece | None]) -> Piece | None:
    """One of the options that are possible; `None` if there are none."""
    possible = [option for option in options if option is not None]
    if not possible:
        return None
    text = " | ".join(dict.fromkeys(option.text for option in possible))
    return Piece(f"({text})", max(option.tokens for option in possible), max(option.strings for option in possible))


def _string(schema: Json, chunks: int) -> Piece:
    """A string of at most *chunks* chunks, within its own length limits."""
    if known := _FORMATS.get(schema.get("format", "")):
        regex, tokens = known
        return Piece(f'"\\"" /{regex}/ "\\""', tokens + 2)
    low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    pattern = schema.get("pattern")
    if pattern is not None and "(?" not in pattern:  # llguidance has no lookaround
        longest = int(min(high, max(64, low)))
        leaf = {"type": "string", "pattern": pattern, "minLength": low, "maxLength": longest}
        return Piece(f"%json {_compact(leaf)}", longest + 2)
    required = f"/{_CHARACTER}{{{low}}}/ " if low else ""
    fitting = int(min(chunks, (high - low) // _RUN_CHARACTERS))
    if fitting >= min(3, chunks):
        optional = f"chunk{{0,{fitting}}}"
    else:
        optional = f"/{_CHARACTER}{{0,{int(min(high - low, chunks * _CHUNK))}}}/"
    return Piece(f'"\\"" {required}{optional} "\\""', low + 2, 1)


def _integer(schema: Json) -> Piece:
    """A whole number in its range, with at most twelve digits."""
    low, high = _range(schema)
    step = schema.get("multipleOf")
    if low is None and high is None and step is None:
        return Piece(f"/-?{_WHOLE}/", 13)
    lowest = math.ceil(min(high or 0, 0) - 999_999_999 if low is None else low)
    highest = math.floor(max(lowest, 0) + 999_999_999 if high is None else high)
    lowest += lowest == schema.get("exclusiveMinimum")
    highest -= highest == schema.get("exclusiveMaximum")
    leaf: Json = {"type": "integer", "minimum": lowest, "maximum": highest}
    if step is not None:
        leaf["multipleOf"] = step
    return Piece(f"%json {_compact(leaf)}", len(str(max(abs(lowest), abs(highest)))) + 2)


def _number(schema: Json) -> Piece | None:
    """A number in its range; a range with two ends is enumerated in round steps."""
    low, high = _range(schema)
    step = schema.get("multipleOf")
    if step is not None:
        low = (0 if high is None else high - 200 * step) if low is None else low
        high = low + 200 * step if high is None else high
    if low is not None and high is not None:
        banned = (schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"))
        return _choice([_literal(text) for text in _between(low, high, step) if float(text) not in banned])
    if low is None and high is None:
        return Piece(f"/-?{_WHOLE}{_DECIMALS}/", 16)
    if low == 0:
        positive = rf"[1-9][0-9]{{0,11}}{_DECIMALS}|0\.[0-9]?[1-9]"
        return Piece(f"/{positive if 'exclusiveMinimum' in schema else _WHOLE + _DECIMALS}/", 15)
    return _integer(schema)


def _range(schema: Json) -> tuple[float | None, float | None]:
    return schema.get("minimum", schema.get("exclusiveMinimum")), schema.get("maximum", schema.get("exclusiveMaximum"))


def _between(low: float, high: float, step: float | None) -> list[str]:
    # A range of real numbers has no compact regular expression, and a model of this size needs no fine scale.
    first, last = Decimal(str(low)), Decimal(str(high))
    width = Decimal(10) ** max((last - first) / 20, Decimal("1e-9")).adjusted()
    if step is not None:
        unit = Decimal(str(step))
        width = max((width / unit).to_integral_value(ROUND_CEILING), Decimal(1)) * unit
    value = (first / width).to_integral_value(ROUND_CEILING) * width
    values: list[str] = []
    while value <= last:
        values.append(format(value.normalize(), "f"))
        value += width
    return values or [format(first, "f")]


def write_grammar(schema: Json, budget: int) -> Piece:
    """The grammar for a schema, with the most generous bounds that keep it within a budget of tokens.

    The bounds have a minimum, so the result may exceed a very small budget.

    Raises:
        UserError: the schema has parts that a grammar cannot express, or allows no finite JSON.
    """
    most = max(_MOST, budget // (2 * _CHUNK))
    items, chunks = 1, 1
    for items in _ITEMS:
        _, tokens, strings = _Writer(schema, items, 1).start()
        chunks = min((budget - tokens) // (_CHUNK * strings), most) if strings else most * (tokens <= budget)
        if chunks >= _WANTED:
            break
    writer = _Writer(schema, items, max(chunks, 1))
    start = writer.start()
    rules = "".join(f"{name}: {text}\n" for text, name in writer.rules.items())
    text = f"%llguidance {{}}\nstart: {start.text}\n{rules}{_TEXT}"
    return Piece(text, start.tokens + _CHUNK * start.strings * writer.chunks)


class _Writer:
    """The writer of one schema with one set of bounds; a piece is `None` where no finite value is possible."""

    def __init__(self, schema: Json, items: int, chunks: int) -> None:
        self.chunks = chunks
        self.rules: dict[str, str] = {}
        self._schema, self._items = schema, items
        self._known: dict[tuple[str, bool, frozenset[tuple[str, int]]], Piece | None] = {}

    def start(self) -> Piece:
        if (piece := self._value(self._schema, ())) is None:
            msg = "no finite JSON has the output type: it refers to itself without a way to end, or its limits conflict"
            raise UserError(msg)
        return piece

    def _value(self, schema: Json | bool, inside: tuple[str, ...], wanted: bool = True) -> Piece | None:
        # `inside` names the references and lists around the value. `wanted` is whether a list needs an item: a small
        # model writes `[]` wherever it can, which is useless, so only a list with a default may be empty.
        match schema:
            case False:
                return None
            case {"$ref": reference}:
                return self._reference(reference, inside, wanted)
            case {"const": value}:
                return _literal(_compact(value))
            case {"enum": values}:
                return _choice([_literal(_compact(value)) for value in values])
            case {"anyOf": options} | {"oneOf": options}:
                # Pydantic's schema of a `Decimal` is a number or any string, but not every string is a decimal.
                decimal = any(o.get("type") == "number" for o in options if o not in (True, False))
                kept = [option for option in options if not (decimal and option == {"type": "string"})]
                return _choice([self._value(option, inside, wanted) for option in kept])
            case {"allOf": [part]}:
                return self._value(part, inside, wanted)
            case {"allOf": _}:
                msg = "local models cannot write a type that must fit several schemas (`allOf`): declare one schema"
                raise UserError(msg)
            case True:
                return _choice([self._typed(kind, {}, inside, wanted) for kind in _ANY])
            case _:
                kind = schema.get("type", "object" if "properties" in schema else _ANY)
                if isinstance(kind, str):
                    return self._typed(kind, schema, inside, wanted)
                return _choice([self._typed(one, schema, inside, wanted) for one in kind])

    def _typed(self, kind: str, schema: Json, inside: tuple[str, ...], wanted: bool) -> Piece | None:
        match kind:
            case "object" if properties := schema.get("properties"):
                required = schema.get("required", ())
                fields = [(f"{_compact(name)}:", field, name in required) for name, field in properties.items()]
                return self._fields(fields, "{}", inside)
            case "object":
                return self._several(self._pair(schema, inside), schema, "Properties", inside, wanted)
            case "array" if "prefixItems" in schema:
                return self._fields([("", item, True) for item in schema["prefixItems"]], "[]", inside)
            case "array":
                item = self._value(schema.get("items", True), (*inside, _LIST))
                return self._several(item, schema, "Items", inside, wanted)
            case "string":
                return _string(schema, self.chunks)
            case "integer":
                return _integer(schema)
            case "number":
                return _number(schema)
            case "boolean":
                return _choice([_literal("true"), _literal("false")])
            case _:
                return _literal("null")

    def _reference(self, reference: str, inside: tuple[str, ...], wanted: bool) -> Piece | None:
        if inside.count(reference) >= _NESTED:
            return None
        key = (reference, wanted, frozenset(Counter(inside).items()))
        if key not in self._known:
            target: Any = self._schema
            for step in reference.split("/")[1:]:
                target = target[step.replace("~1", "/").replace("~0", "~")]
            self._known[key] = self._value(target, (*inside, reference), wanted)
        return self._known[key]

    def _fields(self, fields: list[tuple[str, Json | bool, bool]], ends: str, inside: tuple[str, ...]) -> Piece | None:
        """An object or a tuple: values of different types, each after its key, required or optional."""
        pieces: list[Piece] = []
        for key, schema, required in fields:
            value = self._value(schema, inside, required)
            if value is not None:
                pieces += [_literal(f"{',' if pieces else ends[0]}{key}"), value]
            elif required:
                return None
        return self._rule(_join(*pieces, _literal(ends[1] if pieces else ends)))

    def _pair(self, schema: Json, inside: tuple[str, ...]) -> Piece | None:
        names, values = schema.get("propertyNames"), schema.get("additionalProperties", True)
        for pattern, value in schema.get("patternProperties", {}).items():
            names, values = {"pattern": pattern}, value
        key = _KEY if names is None else self._value({"type": "string", **names}, inside)
        value = self._value(values, (*inside, _LIST))
        return None if key is None or value is None else _join(key, _literal(":"), value)

    def _several(
        self, item: Piece | None, schema: Json, unit: str, inside: tuple[str, ...], wanted: bool
    ) -> Piece | None:
        """A list or a mapping: values of one type, within the limits of `minItems`, `minProperties` and so on."""
        ends = "[]" if unit == "Items" else "{}"
        low = schema.get(f"min{unit}", 0)
        bound = max(1, self._items >> inside.count(_LIST), low)
        high = min(bound, schema.get(f"max{unit}", bound))
        if item is None or not high:
            return None if low else _literal(ends)
        low = max(low, int(wanted))
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
