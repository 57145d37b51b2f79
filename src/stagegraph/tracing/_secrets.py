"""Secrets in texts: values of the environment, and what looks like a key, a password or a header that carries one."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from functools import lru_cache

__all__ = ["HIDDEN", "is_secret", "known_secrets", "scrubbed_text", "sounds_secret"]

HIDDEN = "[secret]"
_LONG_ENOUGH = 8
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
"""What a password is called where there is little room, and not the `first_pass` of several."""
_STEMS = ("pass", "key", "secret", "authorization", "token", "cookie")
_PATTERNS = (
    re.compile(r"(?<=[Aa]uthorization: )[A-Za-z]{5,6}\s{1,5}[^\s\"'\\,;]+"),
    re.compile(r"\b[Bb](?i:earer)\s{1,5}[A-Za-z0-9+/=_.~-]{20,}"),
    re.compile(r"\b[Bb](?i:earer|asic)\s{1,5}(?=[A-Za-z+/_.~-]{0,200}[0-9=])[A-Za-z0-9+/=_.~-]{8,}"),
    re.compile(r"\b(?:(?:sk|pk|rk|hf|gh[pousr]|github_pat)[-_]|xox[abp]-|glpat-|AKIA)[-_A-Za-z0-9]{16,}"),
    re.compile(r"\bAIza[-_A-Za-z0-9]{30,}"),
    re.compile(r"(?<=://)[^/\s:@\"']{0,200}:[^/\s@\"']{1,500}(?=@)"),
    re.compile(r"(?<![\w-])eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*"),
    re.compile(r"(?<=PRIVATE KEY-----)[\w+/=\s\\:,.]{1,10000}"),
)
"""What a secret looks like. A text may be long, and a search holds up every thread of the process: so none of these
(nor of the next) looks far ahead from many places."""
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
"""A name that sounds like a secret, and its value: in quotes (where a text was quoted again, any number of backslashes
belongs to what comes after them); in quotes of a text in a text; where a quote is never
closed (only the next word is hidden then: it may be an apostrophe); in a text."""


def scrubbed_text(text: str, secrets: Sequence[re.Pattern[str]] = ()) -> str:
    """A text without *secrets* and without what looks like one."""
    for secret in secrets:
        text = secret.sub(HIDDEN, text)
    for pattern in _PATTERNS:
        text = pattern.sub(HIDDEN, text)
    small = text.lower()
    return _NAMED.sub(_without_value, text) if any(stem in small for stem in _STEMS) else text


def _without_value(found: re.Match[str]) -> str:
    lead = next(name for name in ("plain", "deep", "open", "text") if found[name] is not None)
    end = found["quote"] or found["mark"] or ""
    return found.string[found.start() : found.end(lead)] + HIDDEN + end


def sounds_secret(name: str) -> bool:
    """Whether a field of that name holds what nobody should see."""
    return _NAME.search(name) is not None


def is_secret(name: str, value: object) -> bool:
    """Whether a field of that name with that value holds what nobody should see."""
    if sounds_secret(name):
        return True
    # Of a shell, `PWD` is where it works; in words of a person, a pass is many things.
    return (
        _SHORT_NAME.search(name) is not None
        and name not in {"PWD", "OLDPWD"}
        and not (isinstance(value, str) and " " in value)
    )


def known_secrets(*more: str) -> tuple[re.Pattern[str], ...]:
    """*more* and the values of environment variables that are named like secrets, the longest first."""
    variables = os.environ.items()
    found = {value for name, value in variables if _SECRET_NAME.search(name) and len(value) >= _LONG_ENOUGH}
    return tuple(_spelled(secret) for secret in sorted({*found, *more}, key=len, reverse=True))


@lru_cache(maxsize=256)
def _spelled(secret: str) -> re.Pattern[str]:
    """A secret as it is, and as it stands in JSON, in code, or in JSON that is a text in JSON."""
    return re.compile("".join(map(_spelled_character, secret)))


def _spelled_character(char: str) -> str:
    if char == "\\":
        return r"\\+"
    if char in "\"'":
        return rf"\\*{char}"
    if char.isascii() and char.isprintable():
        return re.escape(char)
    return rf"(?:{re.escape(char)}|(?:\\+(?:[abfnrtv]|[ux][0-9a-fA-F]{{2,8}})){{1,2}})"
