"""Who earned a note: each note of a metric at the stage calls that it is about, and as a text for reflection."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pydantic_core import to_jsonable_python

from stagegraph.call import key_order
from stagegraph.errors import TuningError

if TYPE_CHECKING:
    from stagegraph.call import Call
    from stagegraph.run import Run
    from stagegraph.score import Note, Score

__all__ = ["calls_of", "check_targets", "credited", "stage_feedback"]

_LIMIT = 8_000
_CALL_LIMIT = 2_000


def check_targets(run: Run[Any, Any], notes: Iterable[Note]) -> None:
    """Make sure that each note hangs on a call of the run, a declared path, or the run.

    Raises:
        TuningError: it hangs on nothing; the message says what there is.
    """
    known = {call.key for call in run.root.walk()} | set(run.structure.nodes)
    for note in notes:
        if note.target and note.target not in known:
            near = difflib.get_close_matches(note.target, known, n=1)
            hint = f"; did you mean `{near[0]}`?" if near else ""
            msg = f"a note hangs on `{note.target}`, which is no call of the run and no stage of {run.graph}{hint}"
            raise TuningError(msg)


def credited(run: Run[Any, Any], notes: Iterable[Note]) -> dict[str, list[tuple[Note, str]]]:
    """Key of a stage call -> its notes, each with the key of the call where it was seen.

    A note on a stage call is its own. What was noted at a step goes back, along the recorded edges, to the stage calls
    that made what the step was given; a note on a graph's call goes to the stage calls inside.
    """
    by_key = {call.key: call for call in run.root.walk()}
    found: dict[str, list[tuple[Note, str]]] = {}
    for note in notes:
        call = by_key.get(note.target)
        if call is None or not note.target:
            continue
        for key in _earners(run, call, by_key):
            found.setdefault(key, []).append((note, note.target))
    return found


def _earners(run: Run[Any, Any], call: Call, by_key: Mapping[str, Call]) -> list[str]:
    if call.kind == "stage":
        return [call.key]
    if call.kind == "graph":
        return [inner.key for inner in call.walk() if inner.kind == "stage"]
    makers: dict[str, list[str]] = {}
    for maker, taker in run.edges():
        makers.setdefault(taker, []).append(maker)
    earners: list[str] = []
    pending, seen = [call.key], {call.key}
    while pending:
        for key in makers.get(pending.pop(), []):
            if key in seen:
                continue
            seen.add(key)
            maker = by_key[key]
            if maker.kind == "stage":
                earners.append(key)
            else:
                pending.append(key)
                earners += [inner.key for inner in maker.walk() if maker.kind == "graph" and inner.kind == "stage"]
    return earners


def calls_of(run: Run[Any, Any], path: str, notes: Iterable[Note]) -> list[tuple[Call, list[tuple[Note, str]]]]:
    """All finished calls of a stage with their notes, the most blamed first; failed ones before those that answered."""
    mine = credited(run, notes)
    calls = [call for call in run.root.walk() if call.path == path and call.status in {"succeeded", "failed"}]

    def order(call: Call) -> tuple[float, bool, list[tuple[int, int, str]]]:
        return (-sum(note.weight for note, _ in mine.get(call.key, [])), call.ok, key_order(call.key))

    return [(call, mine.get(call.key, [])) for call in sorted(calls, key=order)]


def stage_feedback(run: Run[Any, Any], score: Score, path: str, *, limit: int = _LIMIT) -> str:
    """What a reflection model is told about one stage of a run: all its calls, worst first, in so many characters."""
    calls = calls_of(run, path, score.notes)
    lines = [f"The run got a score of {score.value:g}."]
    lines += [f"{name}: {value:g}" for name, value in score.objectives.items()]
    general = [note.text for note in score.notes if not note.target]
    own = [note.text for note in score.notes if note.target and note.target == path and not _is_call(note, calls)]
    lines += [f"About this stage: {text}" for text in own] + [f"About the whole run: {text}" for text in general]
    if not any(notes for _, notes in calls) and not own and not general:
        lines.append("Nothing was noted about this stage.")
    opening = "\n".join(lines)
    used = _uses(run)
    written = [_block(call, notes, used.get(call.key, [])) for call, notes in calls]
    blocks = _fitting(written, max(limit - len(opening) - 120, 0))
    left = [notes for _, notes in calls[len(blocks) :]]
    closing = [f"{len(left)} more calls of this stage, {sum(map(bool, left))} of them with notes."] if left else []
    return "\n\n".join([opening, *blocks, *closing])[:limit]


def _uses(run: Run[Any, Any]) -> dict[str, list[Call]]:
    """Key of a call -> the calls that its output went into."""
    by_key = {call.key: call for call in run.root.walk()}
    found: dict[str, list[Call]] = {}
    for maker, taker in run.edges():
        found.setdefault(maker, []).append(by_key[taker])
    return found


def _is_call(note: Note, calls: Sequence[tuple[Call, Any]]) -> bool:
    return any(call.key == note.target for call, _ in calls)


def _fitting(blocks: Iterable[str], room: int) -> list[str]:
    """As many blocks as there is room for, but at least the worst one, cut if need be."""
    kept: list[str] = []
    for block in blocks:
        if kept and len(block) > room:
            break
        kept.append(block if len(block) <= room else _cut(block, max(room, 200)))
        room -= len(kept[-1]) + 2
    return kept


def _block(call: Call, notes: Sequence[tuple[Note, str]], uses: Sequence[Call]) -> str:
    answer = _shown(call.output, _CALL_LIMIT // 3) if call.ok else f"none, it failed: {call.error}"
    lines = [f"Call `{call.key}`", f"given: {_shown(call.input, _CALL_LIMIT // 3)}", f"answered: {answer}"]
    lines += [f"- {note.text}" if seen == call.key else f"- seen at `{seen}`: {note.text}" for note, seen in notes]
    for use in uses[:3]:
        made = _shown(use.output, _CALL_LIMIT // 8) if use.ok else f"failed: {use.error}"
        lines.append(f"its answer went into `{use.key}`, which gave: {made}")
    return _cut("\n".join(lines), _CALL_LIMIT)


def _shown(value: object, limit: int) -> str:
    text = value if isinstance(value, str) else _json(value)
    return _cut(" ".join(text.split()), limit)


def _json(value: object) -> str:
    return json.dumps(to_jsonable_python(value, fallback=repr, serialize_unknown=True), ensure_ascii=False)


def _cut(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 4]} ..."
