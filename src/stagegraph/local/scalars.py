"""Grammar for single values: strings, those with a format, and numbers."""

from __future__ import annotations

import math
from decimal import ROUND_CEILING, Decimal

from .pieces import Json, Piece, choice, compact, literal

__all__ = ["CHUNK", "KEY", "TEXT", "integer", "number", "string"]

_RUN = 8
_RUN_CHARACTERS = 40
CHUNK = _RUN + 1
"""Tokens of a chunk of text at most: the token that begins it may have begun before it."""

# A run of plain text, and each character that needs more than one token or must not be cut in two, is a chunk.
# `max_tokens` cuts wherever it strikes, so it may only stand where any place is a good one: not inside an escape or
# a character.
TEXT = f"""\
chunk: run | OTHER | ESCAPE
run[max_tokens={_RUN}]: /[ !#-\\[\\]-~]{{1,{_RUN_CHARACTERS}}}/
OTHER: /[^\\x00-\\x7f\\u0080-\\u009f\\ufffd]/
ESCAPE: /\\\\["\\\\nt]/
"""
"""The rules that strings are made of."""
KEY = Piece(r'"\"" /[A-Za-z_][A-Za-z0-9_ .\-]{0,23}/ "\""', 26)
"""A free key of an object."""

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
"""A regular expression and its most tokens for each format that Pydantic checks; other formats are plain text."""


def string(schema: Json, chunks: int) -> Piece:
    """A string of some chunks at most, and of its own length limits."""
    if known := _FORMATS.get(schema.get("format", "")):
        regex, tokens = known
        return Piece(f'"\\"" /{regex}/ "\\""', tokens + 2)
    low, high = schema.get("minLength", 0), schema.get("maxLength", math.inf)
    pattern = schema.get("pattern")
    if pattern is not None and "(?" not in pattern:  # llguidance has no lookaround
        longest = int(min(high, max(64, low)))
        leaf = {"type": "string", "pattern": pattern, "minLength": low, "maxLength": longest}
        return Piece(f"%json {compact(leaf)}", longest + 2)
    required = f"/{_CHARACTER}{{{low}}}/ " if low else ""
    fitting = int(min(chunks, (high - low) // _RUN_CHARACTERS))
    if fitting >= min(3, chunks):
        optional = f"chunk{{0,{fitting}}}"
    else:
        optional = f"/{_CHARACTER}{{0,{int(min(high - low, chunks * CHUNK))}}}/"
    return Piece(f'"\\"" {required}{optional} "\\""', low + 2, 1)


def integer(schema: Json) -> Piece:
    """A whole number in its range, of twelve digits at most."""
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
    return Piece(f"%json {compact(leaf)}", len(str(max(abs(lowest), abs(highest)))) + 2)


def number(schema: Json) -> Piece | None:
    """A number in its range; one with two ends is spelled out in round steps."""
    low, high = _range(schema)
    step = schema.get("multipleOf")
    if step is not None:
        low = (0 if high is None else high - 200 * step) if low is None else low
        high = low + 200 * step if high is None else high
    if low is not None and high is not None:
        banned = (schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum"))
        return choice([literal(text) for text in _between(low, high, step) if float(text) not in banned])
    if low is None and high is None:
        return Piece(f"/-?{_WHOLE}{_DECIMALS}/", 16)
    if low == 0 and "exclusiveMinimum" in schema:
        return Piece(rf"/[1-9][0-9]{{0,11}}{_DECIMALS}|0\.[0-9]?[1-9]/", 15)
    if low == 0:
        return Piece(f"/{_WHOLE}{_DECIMALS}/", 15)
    return integer(schema)


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
