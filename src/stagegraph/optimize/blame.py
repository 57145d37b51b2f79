"""Who earned a score: a metric's notes by stage, and where there are none, the verdict carried back along the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stagegraph.call import key_order
from stagegraph.render import render_output
from stagegraph.score import Note

from .evaluation import row_of
from .grading import stage_of

if TYPE_CHECKING:
    from stagegraph.call import Call
    from stagegraph.example import Example
    from stagegraph.run import Run
    from stagegraph.score import Score

    from .report import ReportRow

__all__ = ["Judged", "blame", "records"]

_TEXT = 2_000
"""Characters of one input or output in a record."""
_RECORDS = 24_000
"""Characters of all records of a stage together."""


@dataclass(frozen=True, slots=True)
class Judged:
    """One example, its run and the verdict."""

    example: Example[Any]
    run: Run[Any, Any]
    score: Score

    @property
    def row(self) -> ReportRow:
        """It as a report keeps it."""
        return row_of(self.example, 0, self.run, self.score)


def blame(judged: Judged, *, perfect: float = 1.0) -> dict[str, float]:
    """Stage path -> how much of what went wrong is its own, by the notes; where there are none, by the data's way.

    A note about a step, or about the run, goes to the stages whose outputs came to it.
    """
    run, score = judged.run, judged.score
    found: dict[str, float] = {}
    for note in score.notes:
        path = stage_of(run, note.target)
        if path in run.structure.stages:
            found[path] = found.get(path, 0.0) + note.weight
            continue
        for upstream in _upstream_stages(run, note.target if path else ""):
            found[upstream] = found.get(upstream, 0.0) + note.weight / 2
    if not score.notes and score.value < perfect:
        for upstream in _upstream_stages(run, ""):
            found[upstream] = perfect - score.value
    return found


def records(
    judged: list[Judged], path: str, *, limit: int = _RECORDS, more: Callable[[Call], Mapping[str, Any]] | None = None
) -> list[dict[str, Any]]:
    """What the proposer of a stage is shown: all its calls in all runs, the worst first, within *limit* characters."""
    rows: list[tuple[float, int, dict[str, Any]]] = []
    for place, one in enumerate(judged):
        for call in sorted(one.run.root.walk(), key=lambda call: key_order(call.key)):
            if call.path == path:
                notes = _notes_for(one, call)
                weight = sum(note.weight for note in notes) + (1.0 if call.status == "failed" else 0.0)
                rows.append((-weight, place, _record(one, call, notes) | dict(more(call) if more else {})))
    rows.sort(key=lambda row: (row[0], row[2]["score"], row[1]))
    kept: list[dict[str, Any]] = []
    used = 0
    for _, _, record in rows:
        size = sum(len(str(value)) for value in record.values())
        if kept and used + size > limit:
            break
        kept.append(record)
        used += size
    return kept


def _notes_for(judged: Judged, call: Call) -> list[Note]:
    """The notes on this call, on its stage, and on what was made of its output."""
    run, notes = judged.run, judged.score.notes
    own = [note for note in notes if note.target in {call.key, call.path} and note.target]
    if own:
        return own
    reached = _reached(run.edges(), [call.key])
    further = [note for note in notes if not note.target or reached & set(_keys(run, note.target))]
    return [Note(note.target, note.text, note.weight / 2) for note in further]


def _record(judged: Judged, call: Call, notes: list[Note]) -> dict[str, Any]:
    run, node = judged.run, judged.run.structure.nodes[call.path]
    output = _cut(render_output(call.output, node.gives.dump)) if call.ok else f"(none: {call.error or call.status})"
    lines = [
        f"- {note.text}"
        if note.target in {call.key, call.path}
        else f"- later, at {note.target or 'the end'}: {note.text}"
        for note in notes
    ]
    record: dict[str, Any] = {
        "call": call.key,
        "score": judged.score.value,
        "input": _cut(render_output(call.input, node.takes.dump)),
        "output": output,
        "feedback": _cut("\n".join(dict.fromkeys(lines)), 2 * _TEXT) or "(nothing was said about this call)",
    }
    if not judged.score.notes:  # only a verdict: show what became of the answer
        record["feedback"] = f"The final result scored {judged.score.value:g}."
        after = [run.call(key) for key in _next(run, call.key)][:2]
        for one in after:
            record["feedback"] += f"\nIts output went into {one.key or 'the result'}, which gave: " + _cut(
                str(one.output), 500
            )
        if judged.example.expected is not None:
            record["feedback"] += "\nExpected in the end: " + _cut(str(judged.example.expected), 800)
    return record


def _upstream_stages(run: Run[Any, Any], key: str) -> list[str]:
    """Paths of the stages whose outputs came, by whatever way, to a call (or to the result of the run)."""
    back = [(target, source) for source, target in run.edges()]
    starts = _keys(run, key)
    if not key:
        starts = sorted({source for target, source in back if target == ""}) or [call.key for call in run.calls()]
    seen = _reached(back, starts)
    return sorted({call.path for call in run.calls() if call.kind == "stage" and call.key in seen})


def _keys(run: Run[Any, Any], target: str) -> list[str]:
    """The calls that a note is about: of a graph inside, those that it is made of."""
    about = [call.key for call in run.root.walk() if target in {call.key, call.path} and target]
    inner = [key for key in about for call in run.call(key).walk() if call.key == key or not call.children]
    return list(dict.fromkeys(inner))


def _reached(edges: Iterable[tuple[str, str]], starts: Iterable[str]) -> set[str]:
    """Where one comes to along the edges, beginning (and included) at *starts*."""
    following: dict[str, list[str]] = {}
    for source, target in edges:
        following.setdefault(source, []).append(target)
    seen = set(starts)
    waiting = list(seen)
    while waiting:
        fresh = [target for target in following.get(waiting.pop(), ()) if target not in seen]
        seen.update(fresh)
        waiting += fresh
    return seen


def _next(run: Run[Any, Any], key: str) -> list[str]:
    return sorted({target for source, target in run.edges() if source == key})


def _cut(text: str, limit: int = _TEXT) -> str:
    return text if len(text) <= limit else f"{text[:limit]} ... ({len(text)} characters)"
