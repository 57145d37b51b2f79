"""What a judge is shown of a run: bounded, and marked so that what others wrote cannot pass for the question."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from stagegraph.data.call import key_order

from ._feedback import answer_of, cut, shown

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.data.examples import Example
    from stagegraph.record.run import Run

__all__ = ["evidence"]

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
