"""Parts of a grammar's rules, each with its length at worst."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

__all__ = ["Json", "Piece", "choice", "compact", "join", "literal"]

Json = dict[str, Any]


class Piece(NamedTuple):
    """Part of a rule, with its worst case: some tokens, and some strings whose length is not decided yet."""

    text: str
    tokens: int = 0
    strings: int = 0


def compact(value: object) -> str:
    """JSON without blanks, as the model has to write it."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def literal(text: str) -> Piece:
    """Exactly this text."""
    # Words are a few letters per token; digits and what lies outside ASCII are up to a token per byte.
    dense = sum(len(letter.encode()) for letter in text if letter.isdigit() or not letter.isascii())
    return Piece(compact(text), 1 + len(text) // 2 + dense)


def join(*pieces: Piece) -> Piece:
    """One after the other."""
    text = " ".join(piece.text for piece in pieces)
    return Piece(text, sum(piece.tokens for piece in pieces), sum(piece.strings for piece in pieces))


def choice(options: list[Piece | None]) -> Piece | None:
    """One of those that are possible at all."""
    possible = [option for option in options if option is not None]
    if not possible:
        return None
    text = " | ".join(dict.fromkeys(option.text for option in possible))
    return Piece(f"({text})", max(option.tokens for option in possible), max(option.strings for option in possible))
