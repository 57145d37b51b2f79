"""The open questions of suspended agents, and which answer belongs to which."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from pydantic_ai import DeferredToolRequests, ToolDenied
from pydantic_ai.tools import ToolApproved

from stagegraph.data.call import Pending
from stagegraph.schema.types import is_mapping

from .run import ReplayError

if TYPE_CHECKING:
    from pydantic_ai.messages import ToolCallPart


def pending_of(key: str, path: str, requests: DeferredToolRequests) -> tuple[Pending, ...]:
    """The questions that an agent's deferred requests ask."""
    kinds: tuple[tuple[Literal["approval", "external"], list[ToolCallPart]], ...] = (
        ("approval", requests.approvals),
        ("external", requests.calls),
    )
    return tuple(
        Pending(key=key, path=path, kind=kind, tool=c.tool_name, args=c.args_as_dict(), tool_call_id=c.tool_call_id)
        for kind, calls in kinds
        for c in calls
    )


def by_call(pending: tuple[Pending, ...], answers: Mapping[str, object]) -> dict[str, dict[str, object]]:
    """Call key -> tool call id -> answer.

    An answer is named by `Pending.id`, or by a tool call id that is unique; or all answers to one call by its key.

    Raises:
        ReplayError: a name belongs to no open question, or to several.
    """
    found: dict[str, dict[str, object]] = {}
    for name, answer in answers.items():
        named = [one for one in pending if name in {one.id, one.tool_call_id}]
        given: dict[str, object] = {}
        if not named and is_mapping(answer):
            ids = [one.tool_call_id for one in pending if one.key == name]
            given = {tool_call_id: answer[tool_call_id] for tool_call_id in ids if tool_call_id in answer}
        if not given and len(named) != 1:
            open_ones = ", ".join(one.id for one in pending) or "nothing"
            problem = "several calls ask" if named else "no call asks"
            msg = f"{problem} `{name}`; open are: {open_ones}"
            raise ReplayError(msg)
        key = name if given else named[0].key
        found.setdefault(key, {}).update(given or {named[0].tool_call_id: answer})
    return found


def check(pending: tuple[Pending, ...], answers: Mapping[str, Mapping[str, object]]) -> None:
    """Refuse an answer that does not fit its question, before any answer is used.

    Raises:
        ReplayError: an answer to an approval neither approves nor denies, or approves arguments that were masked.
    """
    for one in pending:
        if one.kind != "approval" or one.tool_call_id not in answers.get(one.key, {}):
            continue
        answer = answers[one.key][one.tool_call_id]
        if not isinstance(answer, (bool, ToolApproved, ToolDenied)):
            msg = (
                f"`{one.id}` asks whether `{one.tool}` may be called, and {answer!r} is no answer to that: "
                "give it True, False, ToolApproved(...) or ToolDenied(...)"
            )
            raise ReplayError(msg)
        if one.masked and (answer is True or (isinstance(answer, ToolApproved) and answer.override_args is None)):
            msg = (
                f"`{one.id}` asks for `{one.tool}` with arguments that `redact=` has masked in the record, so it would "
                "be called with the masks: give it ToolApproved(override_args={...}), False or ToolDenied(...)"
            )
            raise ReplayError(msg)
