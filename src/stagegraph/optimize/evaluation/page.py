"""Tables and the HTML page of reports and comparisons."""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import os

__all__ = ["SAME", "Cell", "markdown", "section", "write_page"]

Table = Sequence[Sequence[str]]
"""Rows of cells; the first row is the head."""

SAME = 1e-9
"""Differences of scores up to this one count as none."""
_LONGEST = 20_000
"""Characters of one value on the page."""


class Cell(NamedTuple):
    """One run on the page."""

    score: float
    answer: Any
    notes: Iterable[tuple[str, str, float]]
    """Call key or stage path, text, weight."""


def markdown(table: Table) -> str:
    """A table as Markdown, which also reads well on a terminal."""
    rows = [table[0], ["---"] * len(table[0]), *table[1:]]
    return "\n".join("|" + "".join(f" {cell} |" if cell else " |" for cell in row) for row in rows)


def write_page(
    path: str | os.PathLike[str], *, title: str, heading: str, sentence: str, table: Table, sections: Iterable[str]
) -> None:
    """Write a self-contained page: a sentence, a table, and the examples."""
    rows = "".join("<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in table)
    texts = {name: html.escape(text) for name, text in (("title", title), ("heading", heading), ("sentence", sentence))}
    page = _PAGE.format(**texts, table=rows, examples="".join(sections))
    Path(path).write_text(page, encoding="utf-8", errors="replace")


def section(example: str, asked: Mapping[str, Any], cells: Iterable[Cell], change: float | None = None) -> str:
    """One example as HTML: its runs side by side, and the change of its score, if it was evaluated twice."""
    title = html.escape(example)
    if change is not None:
        kind = "won" if change > SAME else "lost" if change < -SAME else "same"
        title += f" <b class={kind}>{change:+.3f}</b>"
    given = "".join(f"<p>{name}</p><pre>{_escaped(value)}</pre>" for name, value in asked.items())
    details = f"<details><summary>input</summary>{given}</details>"
    return f"<section><h2>{title}</h2>{details}<table><tr>{''.join(map(_cell, cells))}</tr></table></section>"


def _cell(cell: Cell) -> str:
    notes = (html.escape(f"{target or 'run'}: {text}") for target, text, _ in cell.notes)
    lines = "".join(f"<p class=note>{note}</p>" for note in notes)
    return f"<td><p>{cell.score:.3f}</p><pre>{_escaped(cell.answer)}</pre>{lines}</td>"


def _escaped(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, indent=2)
    more = f"\n... ({len(text)} characters)" if len(text) > _LONGEST else ""
    return html.escape(text[:_LONGEST]) + more


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
<h1>{heading}</h1><p>{sentence}</p><table>{table}</table>{examples}
</html>
"""
