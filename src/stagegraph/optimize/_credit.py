"""Who earned a note, or a verdict without one: a call of a stage, found by going back along the recorded edges."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stagegraph.data.call import key_order
from stagegraph.data.score import Note
from stagegraph.nodes.stage import stages_of
from stagegraph.record.edges import makers_of_output
from stagegraph.schema.errors import TuningError, closest

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.data.score import Score
    from stagegraph.record.run import Run

__all__ = ["blame_of", "blamed", "calls_of", "check_targets", "credited"]

_OWN, _NEAR, _FAR = 1.0, 0.5, 0.25
"""Shares: of a call that a note is about, of one that the way back comes to first, and of one behind or beside it."""
_FINISHED = {"succeeded", "failed"}


def check_targets(run: Run[Any, Any], notes: Iterable[Note]) -> None:
    """Make sure that each note hangs on a call of the run, a declared path, or the run.

    Raises:
        TuningError: it hangs on nothing; the message says what there is.
    """
    known = {call.key for call in run.root.walk()} | set(run.tree.nodes)
    for note in notes:
        if note.target and note.target not in known:
            hint = closest(note.target, sorted(known))
            msg = f"a note hangs on `{note.target}`, which is no call of the run and no stage of {run.graph}{hint}"
            raise TuningError(msg)


def credited(run: Run[Any, Any], notes: Iterable[Note]) -> dict[str, list[Note]]:
    """Key of a stage call -> the notes that it earned, each with the part of its weight that is this call's.

    - A note on a stage call, or on a stage, is its own: all of the weight.
    - On a graph inside: half for the stage calls in it.
    - On a step: back along the recorded edges, half for the stage calls that made what the step was given, a quarter
      for those before them.
    - On the run: back from its output, half for the stage calls on the way. A quarter for all others, since an answer
      that only decided an `if` leaves no edge.
    """
    way, found = _Way(run), dict[str, list[Note]]()
    for note in notes:
        for key, share in way.earners(note.target).items():
            found.setdefault(key, []).append(Note(note.target, note.text, note.weight * share))
    return found


def blamed(run: Run[Any, Any], score: Score, *, perfect: float = 1.0) -> dict[str, float]:
    """Stage path -> how much of what went wrong is its own; each note counts once for a stage, however wide it is.

    Without notes, what the score lacks goes the way of a note on the run: all of it for the stages on the way back
    from the output, half for the others.
    """
    way, found = _Way(run), dict[str, float]()
    said = [(note.target, note.weight) for note in score.notes]
    if not said and score.value < perfect:
        said = [("", (perfect - score.value) / _NEAR)]
    for target, weight in said:
        shares: dict[str, float] = {}
        for key, share in way.earners(target).items():
            path = way.calls[key].path
            shares[path] = max(share, shares.get(path, 0.0))
        if not shares and target in stages_of(run.tree.root):
            shares[target] = _OWN  # it never ran, which may be what is wrong
        for path, share in shares.items():
            found[path] = found.get(path, 0.0) + weight * share
    return found


def calls_of(run: Run[Any, Any], path: str, notes: Iterable[Note]) -> list[tuple[Call, list[Note]]]:
    """All finished calls of a stage with what they earned, the most blamed first; a failure counts like a note."""
    earned = credited(run, notes)
    calls = [call for call in run.root.walk() if call.path == path and call.status in _FINISHED]
    calls.sort(key=lambda call: (-blame_of(call, earned.get(call.key, [])), key_order(call.key)))
    return [(call, earned.get(call.key, [])) for call in calls]


def blame_of(call: Call, notes: Iterable[Note]) -> float:
    """How much is wrong with one call: the weight of what it earned, and 1 when it failed."""
    return sum(note.weight for note in notes) + (0.0 if call.ok else 1.0)


class _Way:
    """A run's calls and data flow, to go back in."""

    def __init__(self, run: Run[Any, Any]) -> None:
        self._run = run
        self.calls: Mapping[str, Call] = {call.key: call for call in run.root.walk()}

    def earners(self, target: str) -> dict[str, float]:
        """Key of a stage call -> its share of what was said about a call, a path or the run."""
        if not target:
            return self._of_the_run
        # A call goes before the stage that has the same name: `call.note` always means the call.
        found = [self.calls[target]] if target in self.calls else self._at(target)
        shares: dict[str, float] = {}
        for call in found:
            for key, share in self._of(call).items():
                shares[key] = max(share, shares.get(key, 0.0))
        return shares

    def _at(self, path: str) -> list[Call]:
        return [call for call in self.calls.values() if call.path == path]

    def _of(self, call: Call) -> dict[str, float]:
        if call.kind == "stage":
            return {call.key: _OWN}
        inside = [one.key for one in call.walk() if one.kind == "stage"]
        if inside:
            return dict.fromkeys(inside, _NEAR)
        starts = [one.key for one in call.walk()]
        nearest = self._stages_behind(starts, further=False)
        return {key: _NEAR if key in nearest else _FAR for key in self._stages_behind(starts, further=True)}

    @cached_property
    def _of_the_run(self) -> dict[str, float]:
        root = self._run.root
        starts = makers_of_output(root) if root.ok else [call.key for call in self._run.failures()]
        stages = [call.key for call in self.calls.values() if call.kind == "stage" and call.status in _FINISHED]
        on_the_way = self._stages_behind(starts, further=True) | set(starts)
        known = any(key in on_the_way for key in stages)
        return {key: _NEAR if key in on_the_way or not known else _FAR for key in stages}

    @cached_property
    def _makers(self) -> dict[str, list[str]]:
        makers: dict[str, list[str]] = {}
        for maker, taker in self._run.edges():
            makers.setdefault(taker, []).append(maker)
        return makers

    def _stages_behind(self, starts: Iterable[str], *, further: bool) -> set[str]:
        """The stage calls that one comes to going back; *further*: also those behind the first ones."""
        pending = list(starts)
        found, seen = set[str](), set(pending)
        while pending:
            for key in self._makers.get(pending.pop(), ()):
                maker = self.calls[key]
                stages = {one.key for one in maker.walk() if one.kind == "stage"}
                found |= stages
                following = {key, *stages} if further or not stages else set[str]()
                pending += following - seen
                seen |= following
        return found
