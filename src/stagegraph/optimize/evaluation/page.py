"""One self-contained page about evaluated examples: what was asked, what came out, what was said about it."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import os

    from .report import ReportRow

__all__ = ["SAME", "section", "write_page"]

SAME = 1e-9
"""A difference of scores that is none."""
_SHOWN = 20_000
"""Characters of one value on the page."""


def write_page(
    path: str | os.PathLike[str], *, title: str, graph: str, sentence: str, table: str, sections: Sequence[str]
) -> None:
    """Write the page: a sentence, a table that is given as Markdown, and the examples."""
    plain = {"title": title, "graph": graph, "sentence": sentence}
    texts = {name: html.escape(text) for name, text in plain.items()}
    page = _PAGE.format(**texts, table=_table(table), examples="".join(sections))
    Path(path).write_text(page, encoding="utf-8", errors="replace")


def section(example: str, rows: Sequence[ReportRow], change: float | None = None) -> str:
    """One example: its runs side by side, and by how much the score changed if there is a before and an after."""
    cells = "".join(
        f"<td><p>{row.score:.3f}</p><pre>{_shown(row.error or row.output)}</pre>"
        + "".join(
            f"<p class=note>{html.escape(target or 'run')}: {html.escape(text)}</p>" for target, text, _ in row.notes
        )
        + "</td>"
        for row in rows
    )
    title = html.escape(example)
    if change is not None:
        kind = "won" if change > SAME else "lost" if change < -SAME else "same"
        title += f" <b class={kind}>{change:+.3f}</b>"
    asked = f"<pre>{_shown(rows[-1].input)}</pre><p>expected</p><pre>{_shown(rows[-1].expected)}</pre>"
    detail = f"<details><summary>input</summary>{asked}</details>"
    return f"<section><h2>{title}</h2>{detail}<table><tr>{cells}</tr></table></section>"


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    more = f"\n... ({len(text)} characters)" if len(text) > _SHOWN else ""
    return html.escape(text[:_SHOWN]) + more


def _table(markdown: str) -> str:
    rows = [
        line.strip("| ").split(" | ") for line in markdown.splitlines() if line.startswith("|") and "---" not in line
    ]
    return "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)


_PAGE = """<!doctype html>
<html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; font: 15px/1.5 system-ui, sans-serif }}
body {{ max-width: 72rem; margin: 2rem auto; padding: 0 1rem }}
table {{ border-collapse: collapse; width: 100%; table-layout: fixed }}
td {{ border: 1px solid #8886; padding: .4rem .6rem; vertical-align: top; overflow-wrap: anywhere }}
pre {{ white-space: pre-wrap; font-size: 13px; margin: 0 }}
section {{ margin: 2rem 0 }} h2 {{ font-size: 1rem }}
.won {{ color: #18794e }} .lost {{ color: #cd2b31 }} .same {{ color: #888 }} .note {{ color: #ad5700; margin: .3rem 0 }}
</style>
<h1>{graph}</h1><p>{sentence}</p><table>{table}</table>{examples}
</html>
"""
