"""When an agent has to ask somebody: what it asks, and which answer is for whom."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from pydantic_ai import DeferredToolRequests, ToolDenied
from pydantic_ai.tools import ToolApproved
from pydantic_core import to_json

from stagegraph.data.call import Pending

from .run import ReplayError

if TYPE_CHECKING:
    from pydantic_ai.messages import ToolCallPart

__all__ = ["by_call", "check", "dump", "load", "pending_of"]


def pending_of(key: str, path: str, requests: DeferredToolRequests) -> tuple[Pending, ...]:
    kinds: tuple[tuple[Literal["approval", "external"], list[ToolCallPart]], ...] = (
        ("approval", requests.approvals),
        ("external", requests.calls),
    )
    return tuple(
        Pending(key=key, path=path, kind=kind, tool=c.tool_name, args=c.args_as_dict(), tool_call_id=c.tool_call_id)
        for kind, calls in kinds
        for c in calls
    )


def dump(pending: tuple[Pending, ...]) -> str:
    return to_json([{name: getattr(one, name) for name in Pending.__slots__} for one in pending]).decode()


def load(text: str) -> tuple[Pending, ...]:
    return tuple(Pending(**one) for one in json.loads(text))


def by_call(pending: tuple[Pending, ...], answers: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Answers sorted by the call they belong to.

    They are given by `Pending.id`, by tool call id where that is unique, or all for one call by its key.

    Raises:
        ReplayError: nobody asked this, or it is not clear who.
    """
    found: dict[str, dict[str, object]] = {}
    for name, answer in answers.items():
        asking = [one for one in pending if name in (one.id, one.tool_call_id)]
        if not asking and isinstance(answer, Mapping):
            given = cast("Mapping[str, Any]", answer)
            asking = [one for one in pending if one.key == name and one.tool_call_id in given]
            for one in asking:
                found.setdefault(one.key, {})[one.tool_call_id] = given[one.tool_call_id]
            if asking:
                continue
        if len(asking) != 1:
            open_ones = ", ".join(one.id for one in pending) or "nothing"
            problem = "several calls ask" if asking else "nobody asks"
            msg = f"{problem} `{name}`; open are: {open_ones}"
            raise ReplayError(msg)
        found.setdefault(asking[0].key, {})[asking[0].tool_call_id] = answer
    return found


def check(pending: tuple[Pending, ...], answers: Mapping[str, Mapping[str, object]]) -> None:
    """Refuse what is no answer to its question, before anything is done with it.

    Raises:
        ReplayError: an approval is neither given nor denied.
    """
    for one in pending:
        answer = answers.get(one.key, {}).get(one.tool_call_id, True)
        if one.kind == "approval" and not isinstance(answer, (bool, ToolApproved, ToolDenied)):
            msg = (
                f"`{one.id}` asks whether `{one.tool}` may be called, and {answer!r} is no answer to that: "
                "give it True, False, ToolApproved(...) or ToolDenied(...)"
            )
            raise ReplayError(msg)
