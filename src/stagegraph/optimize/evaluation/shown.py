"""What a model is shown of a run: a reflection model of one stage's calls, a judge of the whole run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_core import to_jsonable_python

from stagegraph.call import key_order

from .blame import blame_of, calls_of

if TYPE_CHECKING:
    from stagegraph.call import Call
    from stagegraph.example import Example
    from stagegraph.run import Run
    from stagegraph.score import Note, Score

    from .report import Trial

__all__ = ["SCHEMA", "TEXT", "abridged", "cut", "evidence", "records", "restored", "stage_feedback", "tool_use"]

_RECORD_TEXT = 2_000
"""Characters of one input or output in a record."""
_RECORDS = 24_000
"""Characters of all records of a stage together."""
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


def records(
    trials: Sequence[Trial],
    path: str,
    *,
    limit: int = _RECORDS,
    more: Callable[[Call], Mapping[str, Any]] | None = None,
) -> list[dict[str, Any]]:
    """What the proposer of a stage is shown: all its calls in all runs, the worst first, within *limit* characters."""
    rows = [
        (-blame_of(call, notes), one.score.value, place, _record(one, call, notes) | dict(more(call) if more else {}))
        for place, one in enumerate(trials)
        for call, notes in calls_of(one.run, path, one.score.notes)
    ]
    rows.sort(key=lambda row: row[:3])
    kept: list[dict[str, Any]] = []
    used = 0
    for *_, record in rows:
        size = sum(len(str(value)) for value in record.values())
        if kept and used + size > limit:
            break
        kept.append(record)
        used += size
    return kept


def _record(trial: Trial, call: Call, notes: list[Note]) -> dict[str, Any]:
    lines = [] if trial.score.notes else verdict_lines(trial.run, trial.score, trial.example.expected)
    lines += lines_about(trial.run, call, notes)
    return {
        "call": call.key,
        "score": trial.score.value,
        "input": shown(call.input, _RECORD_TEXT),
        "output": cut(answer_of(call), _RECORD_TEXT),
        "feedback": cut("\n".join(lines), 2 * _RECORD_TEXT) or "(nothing was said about this call)",
    }


_LEAST = 600
"""Characters of a call with its tags, below which it is better to show fewer calls."""
_TAGS = 300
"""Characters of what stands around one call's input and output."""
_KEY = 80


def evidence(example: Example[Any], run: Run[Any, Any], limit: int) -> str:
    """The question to a judge, in about *limit* characters: the example, the output, and the calls that led there.

    Where there are too many calls, the failed ones go first, then some from everywhere in the run.
    """
    whole = [("input", shown(example.input, limit // 6))]
    if example.expected is not None:
        whole.append(("expected", shown(example.expected, limit // 6)))
    failed = f"(the run ended as {run.status} without an output: {run.error})"
    whole.append(("output", shown(run.output, limit // 6) if run.root.ok else cut(failed, limit // 6)))
    left = limit - sum(len(text) + _TAGS for _, text in whole)
    calls = [call for call in run.root.walk() if call.kind != "graph" and call is not run.root]
    chosen = _chosen(sorted(calls, key=lambda call: key_order(call.key)), max(left // _LEAST, 0))
    room = max(left // max(len(chosen), 1) - _TAGS, 0)
    told = [(call, shown(call.input, room // 3), cut(answer_of(call), room - room // 3)) for call in chosen]
    # Nobody can write a text that has the hash of everything, itself included, in it.
    mark = blake2b(repr((whole, [parts[1:] for parts in told])).encode("utf-8", "replace"), digest_size=6).hexdigest()
    parts = [_tagged(name, text, mark) for name, text in whole] + [_call(*one, mark) for one in told]
    omitted = f"\n{len(calls) - len(chosen)} more calls are not shown." if len(chosen) < len(calls) else ""
    return f"The tags around what you judge end in {mark}.{omitted}\n\n" + "\n\n".join(parts)


def _chosen(calls: list[Call], count: int) -> list[Call]:
    """So many of the calls, in their order."""
    if len(calls) <= count:
        return calls
    failed = [call for call in calls if not call.ok][:count]
    others = [call for call in calls if call.ok]
    free = count - len(failed)
    step = len(others) / free if free else 0
    kept = {call.key for call in failed} | {others[int(place * step)].key for place in range(free)}
    return [call for call in calls if call.key in kept]


def _tagged(name: str, text: str, mark: str) -> str:
    return f"<{name}-{mark}>\n{text}\n</{name}-{mark}>"


def _call(call: Call, given: str, answered: str, mark: str) -> str:
    key, path = (json.dumps(text[:_KEY], ensure_ascii=False) for text in (call.key, call.path))
    head = f"key {key}, {call.kind} {path}"
    return _tagged("call", "\n".join([head, _tagged("given", given, mark), _tagged("answered", answered, mark)]), mark)


TEXT = 20_000
"""Characters of a text that is to be written anew."""
SCHEMA = 6_000
"""Characters of one JSON schema."""
_USE = 1_500
"""Characters of what one call did with a tool."""


def abridged(text: str, limit: int = TEXT) -> str:
    """A long text without its middle, for which a line stands in brackets."""
    if len(text) <= limit:
        return text
    begin, end = _hidden(text, limit)
    return f"{text[:begin]}{_marker(end - begin)}{text[end:]}"


def restored(answer: str, text: str, limit: int = TEXT) -> str:
    """A new text with the middle of the old one where the new one has the line that stands for it."""
    if len(text) <= limit:
        return answer
    begin, end = _hidden(text, limit)
    marker = _marker(end - begin)
    return answer.replace(marker if marker in answer else marker.strip(), text[begin:end], 1)


def _hidden(text: str, limit: int) -> tuple[int, int]:
    return limit * 2 // 3, len(text) - limit // 3


def _marker(count: int) -> str:
    return f"\n[... {count} characters that are not shown ...]\n"


def tool_use(call: Call, tool: str) -> str:
    """How a stage call used a tool: what it was given and what came back."""
    lines: list[str] = []
    for message in call.messages:
        for part in message.parts:
            if isinstance(part, ToolCallPart) and part.tool_name == tool:
                lines.append(f"called with {cut(part.args_as_json_str(), _USE // 3)}")
            elif isinstance(part, ToolReturnPart) and part.tool_name == tool:
                lines.append(f"gave {cut(part.model_response_str(), _USE // 3)}")
    return cut("\n".join(lines), _USE) or "(it was not called)"
