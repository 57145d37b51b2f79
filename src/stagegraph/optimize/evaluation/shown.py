"""What a model is shown of a run: a reflection model of one stage's calls, a judge of the whole run."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from pydantic_ai.messages import ToolCallPart, ToolReturnPart
from pydantic_core import to_jsonable_python

from stagegraph.data.call import key_order
from stagegraph.data.examples import digest_of

from .blame import blame_of, calls_of

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.data.examples import Example
    from stagegraph.data.score import Note, Score
    from stagegraph.record.run import Run

    from .report import Trial

# Limits, in characters.
TEXT = 20_000  # of a text that is to be rewritten
SCHEMA = 6_000  # of one JSON schema
_FEEDBACK = 8_000  # of `stage_feedback`
_CALL = 2_000  # of one call in it; of an input or an output in a record
_RECORDS = 24_000  # of all records of a stage
_USE = 500  # of what one call did with a tool, or with another call's output
_RESULT = 800  # of a run's output, and of what was expected
_SMALLEST = 600  # of a call with its tags in the evidence for a judge: with less room, fewer calls are shown
_TAGS = 300  # of the tags around one call's input and output
_KEY = 80

_USES = 3
"""How many calls that used an output are shown with what they made of it."""


def stage_feedback(
    run: Run[Any, Any], score: Score, path: str, *, expected: object = None, limit: int = _FEEDBACK
) -> str:
    """What a reflection model is shown about one stage of a run: all its calls, worst first, in *limit* characters.

    Where the score has no notes, the output of the run and the *expected* one are shown as well.
    """
    general = {""} | ({path} - {call.key for call in run.root.walk()})
    about = sorted((note for note in score.notes if note.target in general), key=lambda note: not note.target)
    calls = calls_of(run, path, [note for note in score.notes if note.target not in general])
    lines = _result_lines(run, score, expected)
    lines += [f"{name}: {value:g}" for name, value in score.objectives.items()]
    lines += [f"About {'this stage' if note.target else 'the whole run'}: {note.text}" for note in about]
    if not about and not any(notes for _, notes in calls):
        lines.append("Nothing was noted about this stage.")
    room = max(limit - len("\n".join(lines)) - 120, 200)
    texts = [_call_text(run, call, notes) for call, notes in calls]
    shown = texts[: _fitting([len(text) + 2 for text in texts], room)]
    parts = ["\n".join(lines), *(cut(text, room) for text in shown)]
    if left := [notes for _, notes in calls[len(shown) :]]:
        parts.append(f"{len(left)} more calls of this stage, {sum(map(bool, left))} of them with notes.")
    return "\n\n".join(parts)[:limit]


def records(
    trials: Sequence[Trial], path: str, *, more: Callable[[Call], Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """What the proposer of a stage is shown: all its calls in all runs, the worst first, as far as there is room.

    *more* gives further fields of a call's record.
    """
    rows = [
        (-blame_of(call, notes), trial.score.value, _record(trial, call, notes) | dict(more(call) if more else {}))
        for trial in trials
        for call, notes in calls_of(trial.run, path, trial.score.notes)
    ]
    found = [record for *_, record in sorted(rows, key=lambda row: row[:2])]
    return found[: _fitting([sum(len(str(value)) for value in record.values()) for record in found], _RECORDS)]


def _fitting(sizes: Iterable[int], room: int) -> int:
    """How many of the first texts of these sizes fit, and at least 1."""
    return max(1, sum(end <= room for end in accumulate(sizes)))


def _record(trial: Trial, call: Call, notes: list[Note]) -> dict[str, Any]:
    lines = [] if trial.score.notes else _result_lines(trial.run, trial.score, trial.example.expected)
    lines += _lines_about(trial.run, call, notes)
    return {
        "call": call.key,
        "score": trial.score.value,
        "input": _text(call.input, _CALL),
        "output": _answer(call, _CALL),
        "feedback": cut("\n".join(lines), 2 * _CALL) or "(there is no note about this call)",
    }


def _result_lines(run: Run[Any, Any], score: Score, expected: object) -> list[str]:
    """The score; without notes, also the output and what was expected."""
    lines = [f"The final result scored {score.value:g}."]
    if not score.notes:
        if run.root.ok and run.root.children:
            lines.append(f"It was: {_text(run.output, _RESULT)}")
        if expected is not None:
            lines.append(f"Expected in the end: {_text(expected, _RESULT)}")
    return lines


def _lines_about(run: Run[Any, Any], call: Call, notes: Iterable[Note]) -> list[str]:
    """The notes on a call, and what the calls that used its output made of it."""
    lines: list[str] = []
    for note in notes:
        own = note.target in {call.key, call.path} and note.target
        seen = f"seen at `{note.target}`" if note.target else "at the end"
        lines.append(f"- {note.text}" if own else f"- later, {seen}: {note.text}")
    uses = [run.call(taker) for maker, taker in run.edges() if maker == call.key]
    lines += [f"its answer went into `{use.key}`, which gave: {_answer(use, _USE)}" for use in uses[:_USES]]
    if len(uses) > _USES:
        lines.append(f"and into {len(uses) - _USES} more calls")
    return list(dict.fromkeys(lines))


def _call_text(run: Run[Any, Any], call: Call, notes: Sequence[Note]) -> str:
    third = _CALL // 3
    lines = [f"Call `{call.key}`", f"given: {_text(call.input, third)}", f"answered: {_answer(call, third)}"]
    return cut("\n".join([*lines, *_lines_about(run, call, notes)]), _CALL)


def tool_use(call: Call, tool: str) -> str:
    """How a stage call used a tool: the arguments and the results."""
    lines: list[str] = []
    for part in (part for message in call.messages for part in message.parts):
        if isinstance(part, ToolCallPart) and part.tool_name == tool:
            lines.append(f"called with {cut(part.args_as_json_str(), _USE)}")
        elif isinstance(part, ToolReturnPart) and part.tool_name == tool:
            lines.append(f"gave {cut(part.model_response_str(), _USE)}")
    return cut("\n".join(lines), 3 * _USE) or "(it was not called)"


def evidence(example: Example[Any], run: Run[Any, Any], limit: int) -> str:
    """What a judge is shown, in about *limit* characters: the example, the output, and the calls that led there.

    Each part stands between tags with a mark that no text inside can contain, so that none can pass for the question.
    Of too many calls, the failed ones are shown first, then some from everywhere in the run.
    """
    whole = [("input", _text(example.input, limit // 6))]
    if example.expected is not None:
        whole.append(("expected", _text(example.expected, limit // 6)))
    failed = f"(the run ended as {run.status} without an output: {run.error})"
    whole.append(("output", _text(run.output if run.root.ok else failed, limit // 6)))
    left = limit - sum(len(text) + _TAGS for _, text in whole)
    calls = [call for call in run.root.walk() if call.kind != "graph" and call is not run.root]
    chosen = _some_of(sorted(calls, key=lambda call: key_order(call.key)), max(left // _SMALLEST, 0))
    room = max(left // max(len(chosen), 1) - _TAGS, 0)
    shown = [(call, _text(call.input, room // 3), _answer(call, room - room // 3)) for call in chosen]
    # A text cannot contain the hash of everything, since it is itself a part of that.
    mark = digest_of([whole, [parts[1:] for parts in shown]])

    def tagged(name: str, *content: str) -> str:
        return "\n".join([f"<{name}-{mark}>", *content, f"</{name}-{mark}>"])

    parts = [tagged(*part) for part in whole]
    for call, given, answered in shown:
        key, path = (json.dumps(text[:_KEY], ensure_ascii=False) for text in (call.key, call.path))
        head = f"key {key}, {call.kind} {path}"
        parts.append(tagged("call", head, tagged("given", given), tagged("answered", answered)))
    omitted = f"\n{len(calls) - len(chosen)} more calls are not shown." if len(chosen) < len(calls) else ""
    return f"The tags around what you judge end in {mark}.{omitted}\n\n" + "\n\n".join(parts)


def _some_of(calls: list[Call], count: int) -> list[Call]:
    """So many of the calls, in their order."""
    if len(calls) <= count:
        return calls
    failed = [call for call in calls if not call.ok][:count]
    others = [call for call in calls if call.ok]
    free = count - len(failed)
    step = len(others) / free if free else 0
    kept = {call.key for call in failed} | {others[int(place * step)].key for place in range(free)}
    return [call for call in calls if call.key in kept]


def _text(value: object, limit: int) -> str:
    """A value as a text of at most *limit* characters: a text as it is, everything else as JSON."""
    if not isinstance(value, str):
        plain = to_jsonable_python(value, fallback=repr, serialize_unknown=True, bytes_mode="base64")
        value = json.dumps(plain, ensure_ascii=False)
    return cut(value, limit)


def _answer(call: Call, limit: int) -> str:
    """The output of a call as text, or why it has none."""
    return _text(call.output if call.ok else f"(none: {call.error or call.status})", limit)


def cut(text: str, limit: int) -> str:
    """The beginning of a text that is longer than *limit*, with its length."""
    if len(text) <= limit:
        return text
    more = f" ... ({len(text)} characters)"
    return f"{text[: max(limit - len(more), 0)]}{more}"


def abridged(text: str, limit: int = TEXT) -> str:
    """A long text with a line in brackets instead of its middle."""
    begin, end = _middle(text, limit)
    return f"{text[:begin]}{_marker(end - begin)}{text[end:]}" if begin < end else text


def restored(answer: str, text: str, limit: int = TEXT) -> str:
    """A rewritten text with the middle of the old one in the place of the line in brackets."""
    begin, end = _middle(text, limit)
    marker = _marker(end - begin)
    return answer.replace(marker if marker in answer else marker.strip(), text[begin:end], 1) if begin < end else answer


def _middle(text: str, limit: int) -> tuple[int, int]:
    return (limit * 2 // 3, len(text) - limit // 3) if len(text) > limit else (0, 0)


def _marker(count: int) -> str:
    return f"\n[... {count} characters that are not shown ...]\n"
