"""Removal of secrets: values of the environment, and text that looks like a key, a password or a header with one.

JSON is searched as data and stays JSON; everything else is searched as text.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from functools import lru_cache
from typing import TypeGuard, TypeVar

from pydantic import JsonValue

from stagegraph.schema.serialize import encodable

T = TypeVar("T")

HIDDEN = "[secret]"
_SHORT = 100
"""Characters of a text whose result is remembered: names and constants come again and again."""
_LONG_ENOUGH = 8
_COUNTED = re.compile(
    r"(?i)(?:count|length|len|size|age|limit|total|used|attempts|ttl|seconds|expir\w*|version|index)$"
)
"""Names of numbers that describe a secret and are not secret."""
_LARGEST_COUNT = 1000
_NAMES, _VALUES = ("name", "key", "header", "field", "variable"), ("value", "values")
"""The keys of a pair that is written as an object: `{"name": "password", "value": ...}`."""
_STRING = re.compile(r'"(?:[^"\\]|\\.)*+"')
_SECRET_NAME = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIALS?)$", re.IGNORECASE)
_WORDS = (
    r"(?:pass(?:word|wd|phrase)|api[_-]?key|secret[_-]?key|secrets?(?-i:(?![a-z]))|authorization"
    r"|(?:access|auth|refresh|bearer)[_-]?token|private[_-]?key|client[_-]?secret|cookies?(?-i:(?![a-z]))"
    r"|(?-i:(?<=_)PASS\b))[\w-]{0,40}+"
)
_NAME = re.compile(rf"(?i){_WORDS}$")
_SHORT_NAME = re.compile(
    r"(?i)(?<![^\W_])(?<!first[_-])(?<!second[_-])(?<!third[_-])(?<!final[_-])(?<!last[_-])(?:pass|pwd)$"
)
"""Short names of passwords, but not ordinals such as `first_pass`."""
_STEMS = ("pass", "key", "secret", "authorization", "token", "cookie")
_PATTERNS = (
    re.compile(r"(?<=[Aa]uthorization: )[A-Za-z]{5,6}\s{1,5}[^\s\"'\\,;]+"),
    re.compile(r"\b[Bb](?i:earer)\s{1,5}[A-Za-z0-9+/=_.~-]{20,}"),
    re.compile(r"\b[Bb](?i:earer|asic)\s{1,5}(?=[A-Za-z+/_.~-]{0,200}[0-9=])[A-Za-z0-9+/=_.~-]{8,}"),
    re.compile(r"\b(?:sk|pk|rk|hf|gh[pousr]|github_pat)[-_][-_A-Za-z0-9]{16,}"),
    re.compile(r"(?<=://)[^/\s:@\"']{0,200}:[^/\s@\"']{1,500}(?=@)"),
    re.compile(r"(?<![\w-])eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"),
    re.compile(r"(?<=PRIVATE KEY-----)[\w+/=\s\\:,.]{1,10000}"),
)
"""Forms of secrets. A text may be long, and a search blocks every thread of the process, so none of these patterns
(nor the next one) looks far ahead from many places."""
_NAMED = re.compile(
    rf"""(?ixs){_WORDS}(?:
        (?P<plain> ["']?\s{{0,9}}[:=]\s{{0,9}}(?P<quote>["']) )
            (?: (?:[^\\\n"']|\\.|(?!(?P=quote))["']){{1,5000}}+(?P=quote)(?!\w)
              | (?:[^\\\n"']|\\+.|(?!(?P=quote))["']){{1,5000}}+(?P=quote)(?!\w) )
      | (?P<deep> \\{{0,15}}["']?\s{{0,9}}[:=]\s{{0,9}}(?P<mark>\\{{1,15}}["']) )
            (?:(?!(?<!\\)(?P=mark))[^\n]){{1,5000}}+(?P=mark)(?!\w)
      | (?P<open> ["']?\s{{0,9}}(?:=\s{{0,9}}["']|:\s{{0,9}}["'](?=\S{{0,200}}[\d_-])) ) (?!\[secret\])[^\s"']{{3,}}
      | (?P<text> \s{{0,9}}(?:=\s{{0,9}}|:\s{{0,9}}(?=\S{{0,200}}[\d_-])) ) (?!\[secret\])[^\s"'\\,;&{{}}\[\])]{{3,}}
    )"""
)
"""A secret-sounding name and its value: in quotes (where a text was quoted again, any number of backslashes belongs to
the character after them); in the quotes of a text inside a text; after a quote that is never closed (only the next word
is hidden then, since the quote may be an apostrophe); in plain text."""
_KEYS = {
    r"[A-Za-z0-9]{20,}+": (
        "gsk_ xai- r8_ pplx- csk- fw_ jina_ npm_ rubygems_ dop_v1_ doo_v1_ dor_v1_ sbp_ lin_api_ ntn_ shpat_ shpca_ "
        "shppa_ shpss_ AGE-SECRET-KEY-1 glc_ sntryu_ NRAK- dp.pt. secret_ phx_ vercel_blob_rw_"
    ),
    r"[-_A-Za-z0-9]{16,}+": (
        "nvapi- tgp_v1_ tvly- pcsk_ lsv2_ pylf_v ya29. GOCSPX- hvs. hvb. pypi-AgE dckr_pat_ glpat- gldt- glrt- glptt- "
        "glsoat- glcbt- ATATT3 figd_ PMAK- xkeysib- xoxa- xoxb- xoxe- xoxe. xoxo- xoxp- xoxr- xoxs- xapp- sq0atp- "
        "sq0csp- glsa_ sntrys_"
    ),
    r"[0-9a-f]{32}": "AC SK key- dapi",
    r"[0-9a-f-]{36}": "pat-na1- pat-eu1-",
    r"[A-Za-z0-9]{14}\.[0-9a-f]{64}": "pat",
    r"[A-Z0-9]{16,}+": "AKIA ASIA",
    r"[-_A-Za-z0-9]{43}": "pa-",
    r"[-_.~%A-Za-z0-9]{16,}+": "?token= &token=",
    r"[0-9]+:[-_A-Za-z0-9]{30,}+": "api.telegram.org/bot",
    r"[-_A-Za-z0-9]{30,}+": "AIza",
    r"[-_A-Za-z0-9]{16,}\.[-_A-Za-z0-9]{16,}+": "SG.",
    r"[A-Za-z0-9+/=]{20,}+": "whsec_ AccountKey= SharedAccessKey=",
    r"[A-Za-z0-9%+/]{40,}+=*": "sig=",
    r"[A-Z0-9]+/[A-Z0-9]+/[A-Za-z0-9]{16,}+": "hooks.slack.com/services/",
    r"[0-9]+/[-_A-Za-z0-9]{30,}+": "discord.com/api/webhooks/",
}
"""How the keys of known services go on, and how they begin; a text is first searched for the beginnings, quickly."""
_SEARCHES = [
    (start, re.compile(rf"(?<![A-Za-z0-9]){re.escape(start)}{rest}(?![A-Za-z0-9])"))
    for rest, starts in _KEYS.items()
    for start in starts.split()
]


def _remembered(function: Callable[[str], T]) -> Callable[[str], T]:
    known = lru_cache(maxsize=4096)(function)
    return lambda text: known(text) if len(text) <= _SHORT else function(text)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _unquoted(string: str) -> str:
    try:
        return str(json.loads(string, strict=False))
    except ValueError:
        return string


class Scrubber:
    """Hides known *secrets*, the longest first, and what looks like one."""

    def __init__(self, secrets: tuple[str, ...] = ()) -> None:
        self._secrets = [re.compile("".join(map(_spelled, secret))) for secret in secrets]
        self.scrubbed = _remembered(self._scrubbed)
        """A text, or a value as JSON, without secrets."""

    def _scrubbed(self, text: str) -> str:
        if text.lstrip()[:1] not in {"{", "[", '"'}:
            return encodable(self._text(text))
        try:
            value: JsonValue = json.loads(text)
            clean = self._value(value)
            return encodable(text if clean == value else _json(clean))
        except RecursionError:  # nested too deeply for the parser
            return encodable(_STRING.sub(lambda found: _json(self._text(_unquoted(found[0]))), text))
        except ValueError:
            return encodable(self._text(text))

    def _text(self, text: str) -> str:
        """A text that is not JSON."""
        for pattern in (*self._secrets, *_PATTERNS):
            text = pattern.sub(HIDDEN, text)
        for start, pattern in _SEARCHES:
            if start in text:
                text = pattern.sub(HIDDEN, text)
        small = text.lower()
        return _NAMED.sub(_without_value, text) if any(stem in small for stem in _STEMS) else text

    def _value(self, value: JsonValue) -> JsonValue:
        if isinstance(value, str):
            return self.scrubbed(value)
        if isinstance(value, list):
            if _are_pairs(value):
                return [[self._value(name), self._named(name, held)] for name, held in value]
            return [self._value(item) for item in value]
        if isinstance(value, dict):
            return self._fields(value)
        if isinstance(value, (int, float)) and any(secret.fullmatch(str(value)) for secret in self._secrets):
            return HIDDEN
        return value

    def _fields(self, fields: dict[str, JsonValue]) -> dict[str, JsonValue]:
        called = next((name for key in _NAMES if isinstance(name := fields.get(key), str)), "")
        found: dict[str, JsonValue] = {}
        for name, held in fields.items():
            if name == "properties" and isinstance(held, dict):
                # The schema of a field is not a secret, whatever the field's name.
                new: JsonValue = {
                    self.scrubbed(field): self._value(schema)
                    if isinstance(schema, dict)
                    else self._named(field, schema)
                    for field, schema in held.items()
                }
            else:
                new = self._named(called if name in _VALUES and _is_secret(called, held) else name, held)
            found[self.scrubbed(name)] = new
        return found

    def _named(self, name: str, value: JsonValue) -> JsonValue:
        return _hidden(name, value) if _is_secret(name, value) else self._value(value)


def _are_pairs(items: list[JsonValue]) -> TypeGuard[list[tuple[str, JsonValue]]]:
    """Whether a list holds pairs of name and value, as headers often do."""
    return bool(items) and all(
        isinstance(item, list) and len(item) == 2 and isinstance(item[0], str)  # noqa: PLR2004
        for item in items
    )


def _hidden(name: str, value: JsonValue) -> JsonValue:
    """The value of a secret field without its texts and large numbers; other values reveal nothing."""
    if isinstance(value, dict):
        return {key: _hidden(name, held) for key, held in value.items()}
    if isinstance(value, list):
        return [_hidden(name, item) for item in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)) and (abs(value) < _LARGEST_COUNT or _COUNTED.search(name)):
        return value
    return HIDDEN


def _without_value(found: re.Match[str]) -> str:
    lead = next(name for name in ("plain", "deep", "open", "text") if found[name] is not None)
    end = found["quote"] or found["mark"] or ""
    return found.string[found.start() : found.end(lead)] + HIDDEN + end


@_remembered
def sounds_secret(name: str) -> bool:
    """Whether a field with this name holds a secret."""
    return _NAME.search(name) is not None


@_remembered
def _may_be_secret(name: str) -> bool:
    # `PWD` is the working directory of a shell.
    return _SHORT_NAME.search(name) is not None and name not in {"PWD", "OLDPWD"}


def _is_secret(name: str, value: object) -> bool:
    # In prose, "pass" has many meanings.
    return sounds_secret(name) or (_may_be_secret(name) and not (isinstance(value, str) and " " in value))


def scrubber(*more: str) -> Scrubber:
    """A scrubber for *more* and for the values of environment variables with secret-sounding names."""
    variables = os.environ.items()
    found = {value for name, value in variables if _SECRET_NAME.search(name) and len(value) >= _LONG_ENOUGH}
    return _scrubber(tuple(sorted({*found, *more}, key=lambda secret: (-len(secret), secret))))


_scrubber = lru_cache(maxsize=8)(Scrubber)


def _spelled(char: str) -> str:
    """A pattern for a character of a secret: as it is, and as it is escaped in JSON, in code, or in JSON in JSON."""
    if char == "\\":
        return r"\\+"
    if char in "\"'":
        return rf"\\*{char}"
    if char.isascii() and char.isprintable():
        return re.escape(char)
    return rf"(?:{re.escape(char)}|(?:\\+(?:[abfnrtv]|[ux][0-9a-fA-F]{{2,8}})){{1,2}})"
