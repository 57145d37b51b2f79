"""What a reflection model is told about a stage: its calls, what was said about them, and what became of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from ._credit import calls_of

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.data.score import Note, Score
    from stagegraph.record.run import Run

__all__ = ["answer_of", "cut", "lines_about", "shown", "stage_feedback", "verdict_lines"]

_LIMIT = 8_000
_CALL_LIMIT = 2_000
_USES = 3
"""Calls that an answer went into, of which is told what they made of it."""
_MADE = 500
_EXPECTED = 800


def stage_feedback(run: Run[Any, Any], score: Score, path: str, *, expected: object = None, limit: int = _LIMIT) -> str:
    """What a reflection model is told about one stage of a run: all its calls, worst first, in so many characters.

    With a verdict alone, it is told what each call was given and answered, what was made of that further on, what came
    out in the end, and what was *expected* instead.
    """
    lines = verdict_lines(run, score, expected)
    lines += [f"{name}: {value:g}" for name, value in score.objectives.items()]
    calls = calls_of(run, path, [note for note in score.notes if note.target])
    keys = {call.key for call, _ in calls}
    general = [note.text for note in score.notes if not note.target]
    own = [note.text for note in score.notes if note.target == path and path and path not in keys]
    lines += [f"About this stage: {text}" for text in own] + [f"About the whole run: {text}" for text in general]
    if not any(notes for _, notes in calls) and not own and not general:
        lines.append("Nothing was noted about this stage.")
    opening = "\n".join(lines)
    written = [_block(run, call, [note for note in notes if note.text not in own]) for call, notes in calls]
    blocks = _fitting(written, max(limit - len(opening) - 120, 0))
    left = [notes for _, notes in calls[len(blocks) :]]
    closing = [f"{len(left)} more calls of this stage, {sum(map(bool, left))} of them with notes."] if left else []
    return "\n\n".join([opening, *blocks, *closing])[:limit]


def verdict_lines(run: Run[Any, Any], score: Score, expected: object) -> list[str]:
    """The verdict; where it is all there is, with what came out and what should have."""
    lines = [f"The final result scored {score.value:g}."]
    if not score.notes:
        if run.root.ok and run.root.children:
            lines.append(f"It was: {shown(run.output, _EXPECTED)}")
        if expected is not None:
            lines.append(f"Expected in the end: {shown(expected, _EXPECTED)}")
    return lines


def lines_about(run: Run[Any, Any], call: Call, notes: Iterable[Note]) -> list[str]:
    """What was said about a call, and what was made of its answer by the calls that it went into."""
    lines: list[str] = []
    for note in notes:
        own = note.target in {call.key, call.path} and note.target
        seen = f"seen at `{note.target}`" if note.target else "at the end"
        lines.append(f"- {note.text}" if own else f"- later, {seen}: {note.text}")
    uses = [run.call(taker) for maker, taker in run.edges() if maker == call.key]
    lines += [f"its answer went into `{use.key}`, which gave: {cut(answer_of(use), _MADE)}" for use in uses[:_USES]]
    if len(uses) > _USES:
        lines.append(f"and into {len(uses) - _USES} more calls")
    return list(dict.fromkeys(lines))


def answer_of(call: Call) -> str:
    """What a call gave, as text, or why it gave nothing."""
    return shown(call.output) if call.ok else f"(none: {call.error or call.status})"


def shown(value: object, limit: int | None = None) -> str:
    """A value as text: a text as it is, everything else as JSON."""
    if not isinstance(value, str):
        plain = to_jsonable_python(value, fallback=repr, serialize_unknown=True, bytes_mode="base64")
        value = json.dumps(plain, ensure_ascii=False)
    return value if limit is None else cut(value, limit)


def cut(text: str, limit: int) -> str:
    """The beginning of a text that is longer than *limit*, with its length."""
    if len(text) <= limit:
        return text
    more = f" ... ({len(text)} characters)"
    return f"{text[: max(limit - len(more), 0)]}{more}"


def _block(run: Run[Any, Any], call: Call, notes: Sequence[Note]) -> str:
    third = _CALL_LIMIT // 3
    lines = [f"Call `{call.key}`", f"given: {shown(call.input, third)}", f"answered: {cut(answer_of(call), third)}"]
    return cut("\n".join([*lines, *lines_about(run, call, notes)]), _CALL_LIMIT)


def _fitting(blocks: Iterable[str], room: int) -> list[str]:
    """As many blocks as there is room for, but at least the worst one, cut if need be."""
    kept: list[str] = []
    for block in blocks:
        if kept and len(block) > room:
            break
        kept.append(block if len(block) <= room else cut(block, max(room, 200)))
        room -= len(kept[-1]) + 2
    return kept
