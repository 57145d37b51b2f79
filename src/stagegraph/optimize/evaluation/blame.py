"""Which stages caused what went wrong: notes and scores, followed back along the data flow of a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any

from stagegraph.data.call import key_order
from stagegraph.data.score import Note
from stagegraph.nodes.stage import stages_of
from stagegraph.record.edges import makers_of_output
from stagegraph.record.run import causes_of
from stagegraph.schema.errors import TuningError, closest

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.data.score import Score
    from stagegraph.record.run import Run

_OWN, _NEAR, _FAR = 1.0, 0.5, 0.25
"""Shares of a note: of the call that it is about, of the nearest calls upstream, and of those further away."""
_FINISHED = {"succeeded", "failed"}


def check_notes(run: Run[Any, Any], notes: Iterable[object]) -> None:
    """Check that each is a note about a call of the run, a declared path, or the run.

    Raises:
        TuningError: one is not; the message suggests what to write.
    """
    known = {call.key for call in run.root.walk()} | set(run.tree.nodes)
    for note in notes:
        if not isinstance(note, Note):
            msg = f"it gave {note!r} among its notes: write call.note(text) or note(path, text)"
            raise TuningError(msg)
        if note.target and note.target not in known:
            hint = closest(note.target, sorted(known))
            msg = f"a note is about `{note.target}`, which is no call of the run and no stage of {run.graph}{hint}"
            raise TuningError(msg)


def stage_of(run: Run[Any, Any], target: str) -> str:
    """The path that a note's target belongs to; empty for the run itself."""
    if target in run.tree.nodes:
        return target
    try:
        return run.call(target).path
    except KeyError:
        return ""


def credited(run: Run[Any, Any], notes: Iterable[Note]) -> dict[str, list[Note]]:
    """Key of a stage call -> the notes that it earned, each with its share of the weight.

    - A note on a stage call, or on a stage, is its own: all of the weight.
    - On a graph inside: half for the stage calls in it.
    - On a step: back along the recorded edges, half for the stage calls that made the step's input, a quarter for those
      before them.
    - On the run: back from its output, half for the stage calls on the way. A quarter for all others, since an answer
      that only decided an `if` leaves no edge.
    """
    flow, found = _Upstream(run), dict[str, list[Note]]()
    for note in notes:
        for key, share in flow.shares(note.target).items():
            found.setdefault(key, []).append(Note(note.target, note.text, note.weight * share))
    return found


def blame(run: Run[Any, Any], score: Score, *, perfect: float = 1.0) -> dict[str, float]:
    """Stage path -> how much of what went wrong it caused; a note counts once for a stage with many calls.

    Without notes, the difference to *perfect* counts like a note on the run: in full for the stages upstream of the
    output, half for the others.
    """
    flow, found = _Upstream(run), dict[str, float]()
    weights = [(note.target, note.weight) for note in score.notes]
    if not weights and score.value < perfect:
        weights = [("", (perfect - score.value) / _NEAR)]
    for target, weight in weights:
        shares = _largest((flow.calls[key].path, share) for key, share in flow.shares(target).items())
        if not shares and target in stages_of(run.tree.root):
            shares[target] = _OWN  # it was not called, which may be the mistake
        for path, share in shares.items():
            found[path] = found.get(path, 0.0) + weight * share
    return found


def calls_of(run: Run[Any, Any], path: str, notes: Iterable[Note]) -> list[tuple[Call, list[Note]]]:
    """All finished calls of a stage with the notes that they earned, the most blamed first."""
    earned = credited(run, notes)
    calls = [call for call in run.root.walk() if call.path == path and call.status in _FINISHED]
    calls.sort(key=lambda call: (-blame_of(call, earned.get(call.key, [])), key_order(call.key)))
    return [(call, earned.get(call.key, [])) for call in calls]


def blame_of(call: Call, notes: Iterable[Note]) -> float:
    """How much is wrong with one call: the weight of its notes, and 1 when it failed."""
    return sum(note.weight for note in notes) + (0.0 if call.ok else 1.0)


def _largest(shares: Iterable[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, share in shares:
        found[name] = max(share, found.get(name, 0.0))
    return found


def _stages_in(call: Call) -> list[str]:
    return [one.key for one in call.walk() if one.kind == "stage"]


class _Upstream:
    """The calls of a run, and which calls made the input of which."""

    def __init__(self, run: Run[Any, Any]) -> None:
        self._run = run
        self.calls = {call.key: call for call in run.root.walk()}

    def shares(self, target: str) -> dict[str, float]:
        """Key of a stage call -> its share of a note about a call, a path or the run."""
        if not target:
            return self._of_the_run
        # A call has precedence over the stage with the same name: `call.note` always means the call.
        calls = [self.calls[target]] if target in self.calls else self.calls.values()
        found = [call for call in calls if target in {call.key, call.path}]
        return _largest(item for call in found for item in self._of(call).items())

    def _of(self, call: Call) -> dict[str, float]:
        if call.kind == "stage":
            return {call.key: _OWN}
        if inside := _stages_in(call):
            return dict.fromkeys(inside, _NEAR)
        return self._before([one.key for one in call.walk()])

    @cached_property
    def _of_the_run(self) -> dict[str, float]:
        root = self._run.root
        starts = makers_of_output(root) if root.ok else [call.key for call in causes_of(self._run)]
        stages = [key for key in _stages_in(root) if self.calls[key].status in _FINISHED]
        near = {*self._before(starts), *starts} & {*stages} or stages
        return {key: _NEAR if key in near else _FAR for key in stages}

    @cached_property
    def _makers(self) -> dict[str, list[str]]:
        makers: dict[str, list[str]] = {}
        for maker, taker in self._run.edges():
            makers.setdefault(taker, []).append(maker)
        return makers

    def _before(self, starts: Sequence[str]) -> dict[str, float]:
        """Key of each stage call upstream of some calls -> its share: no stage is between the nearest ones and them."""
        found, seen = dict[str, float](), set(starts)
        near, far = list(starts), list[str]()
        for pending, share in ((near, _NEAR), (far, _FAR)):
            while pending:
                for key in self._makers.get(pending.pop(), ()):
                    stages = _stages_in(self.calls[key])
                    for stage in stages:
                        found.setdefault(stage, share)
                    following = {key, *stages} - seen
                    (far if stages else pending).extend(following)
                    seen |= following
        return found
