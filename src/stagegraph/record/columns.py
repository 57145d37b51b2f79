"""What may stand in the columns of rows: disks fail, and other programs write into files."""

from __future__ import annotations

import json
from collections.abc import Callable
from decimal import Decimal
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, PlainSerializer, ValidationInfo
from pydantic_core import from_json, to_json

from stagegraph.data.call import is_usage, load_pending
from stagegraph.schema.types import is_dict

from .labels import Labels


def _read(text: str) -> object:
    try:
        return from_json(text, cache_strings="keys")
    except ValueError:  # it takes no half surrogate pairs, and less depth
        return json.loads(text)


def _is_json(text: str) -> bool:
    try:
        _read(text)
    except ValueError as error:
        return not isinstance(error, json.JSONDecodeError)  # else a number of more digits than Python reads
    return True


def _is_source(text: str) -> bool:
    run_id, key = json.loads(text)
    return isinstance(run_id, str) and isinstance(key, str)


def _column(check: Callable[[str], object], default: str | None = None) -> BeforeValidator:
    """A column with JSON text that passes a *check*, which returns `False` or fails for any other.

    In the JSON form of a run, the column is the data itself.
    """

    def read(value: Any, info: ValidationInfo) -> str:
        text = value if info.context is TABLE else _written(value)
        try:
            sound = text == default or check(text)
        except (TypeError, LookupError, ArithmeticError, RecursionError) as error:
            raise ValueError(str(error)) from error
        if sound is False:
            msg = "it is not what a journal writes"
            raise ValueError(msg)
        return text

    return BeforeValidator(read)


def _written(data: object) -> str:
    try:
        return to_json(data, inf_nan_mode="constants").decode()
    except ValueError:  # half a surrogate pair, or deeper than it goes
        return json.dumps(data, ensure_ascii=False)


def _amount(text: str) -> str:
    try:
        Decimal(text)
    except ArithmeticError as error:
        msg = "it is no number"
        raise ValueError(msg) from error
    return text


Dollars = Annotated[str, AfterValidator(_amount)]
TABLE = object()
"""The context in which rows of a table are read."""
_AS_DATA = PlainSerializer(_read)
Json = Annotated[str, _column(_is_json), _AS_DATA]
LabelsJson = Annotated[str, _column(Labels.from_json), _AS_DATA]
UsageJson = Annotated[str, _column(is_usage, "{}"), _AS_DATA]
PartsJson = Annotated[str, _column(lambda text: is_dict(from_json(text)), "{}"), _AS_DATA]
MessagesJson = Annotated[str, _column(lambda text: text[0] == "[" and _is_json(text), "[]"), _AS_DATA]
PendingJson = Annotated[str, _column(load_pending), _AS_DATA]
SourceJson = Annotated[str, _column(_is_source), _AS_DATA]
ScoreJson = Annotated[str, _column(lambda text: isinstance(json.loads(text), (bool, int, float, str))), _AS_DATA]
