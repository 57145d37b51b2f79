"""HTML pages in one file each: every text is escaped, and a content security policy allows nothing from elsewhere."""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Iterable, Sequence
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import os

_CUT = 20_000
"""Characters of one value that a page shows."""


class Html(str):
    """Text that is markup already. Every other `str` is escaped where it is put into a page."""

    __slots__ = ()


def element(name: str, *content: str, **attributes: str) -> Html:
    """An element with its content; `class_="note"` is the attribute `class`."""
    given = "".join(f' {key.rstrip("_")}="{html.escape(value)}"' for key, value in attributes.items())
    return Html(f"<{name}{given}>{''.join(map(_markup, content))}</{name}>")


def table(rows: Iterable[Sequence[str]]) -> Html:
    """A table of rows of cells."""
    return element("table", *(element("tr", *(element("td", cell) for cell in row)) for row in rows))


def pretty(value: object) -> Html:
    """A preformatted block with a text, or with JSON data indented; a very long one is cut, with its length named."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    return element("pre", text[:_CUT], f"\n... ({len(text)} characters)" if len(text) > _CUT else "")


def document(
    title: str, *body: str, style: str = "", script: str = "", data: object = None, connects: bool = False
) -> Html:
    """A whole page that needs no network.

    Args:
        title: The text of the window's title.
        body: The content: elements (`Html`), or plain text.
        style: CSS, added to the style that all pages share.
        script: JavaScript; it reads *data* from the element with the id `data`.
        data: JSON data for the script.
        connects: Whether the script may call the server that the page comes from.
    """
    css = asset("stagegraph.draw", "style.css") + style
    policy = ["default-src 'none'", f"style-src '{_digest(css)}'", "base-uri 'none'", "form-action 'none'"]
    scripts: list[Html] = []
    if script:
        policy.append(f"script-src '{_digest(script)}'")
        # Only `<` can end a script element, and JSON may write it as an escape anywhere.
        text = json.dumps(data, ensure_ascii=False).replace("<", "\\u003c")
        scripts = [element("script", Html(text), id="data", type="application/json"), element("script", Html(script))]
    if connects:
        policy.append("connect-src 'self'")
    head = (
        Html(f'<meta charset="utf-8">\n<meta http-equiv="Content-Security-Policy" content="{"; ".join(policy)}">\n'),
        Html('<meta name="viewport" content="width=device-width, initial-scale=1">\n'),
        element("title", title),
        element("style", Html(css)),
    )
    content = element("body", *body, *scripts)
    return Html(f'<!doctype html>\n<html lang="en">\n{element("head", *head)}\n{content}\n</html>\n')


def asset(package: str, name: str) -> Html:
    """A file of a package that a page is made of. It is part of the program and trusted as markup."""
    return Html(files(package).joinpath(name).read_text("utf-8"))


def write_page(path: str | os.PathLike[str], page: Html) -> None:
    """Write a page to a file that its owner alone may read: it holds inputs and outputs.

    A file that exists keeps its mode.
    """
    file = Path(path)
    file.touch(mode=0o600)
    file.write_text(page, encoding="utf-8", errors="replace")


def _markup(text: str) -> str:
    return text if isinstance(text, Html) else html.escape(text)


def _digest(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
