"""Where new texts come from: a model that reads what went wrong, the notes themselves, or a pool of texts."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread
from pydantic_ai import Agent
from pydantic_ai.exceptions import AgentRunError

from stagegraph.errors import TuningError
from stagegraph.faults import fault_in, is_lasting, wait_asked_for
from stagegraph.models import Models

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.stage import Stage

    from .budget import Spent

__all__ = ["Candidates", "Proposal", "Proposer", "notes_proposer", "reflective_proposer"]


@dataclass(frozen=True, slots=True)
class Proposal:
    """What is to be written anew."""

    path: str
    """The stage."""
    text: str
    """Its instructions now."""
    records: Sequence[Mapping[str, Any]]
    """Its calls, the worst first: `call`, `score`, `input`, `output`, `feedback`."""
    takes: str
    """The JSON schema of its input."""
    gives: str
    """The JSON schema of its output."""
    tried: frozenset[str] = frozenset()
    """Texts that were tried in this place before."""


Proposer = Callable[[Proposal], "str | Awaitable[str | None] | None"]
"""Gives a new text, or `None` when it has none."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """A pool of texts to choose from, by stage: no model writes anything. For trying things out, and for tests."""

    texts: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    def __call__(self, proposal: Proposal) -> str | None:
        """The next text of the pool that was not tried here."""
        return next(
            (text for text in self.texts.get(proposal.path, ()) if text not in {proposal.text, *proposal.tried}), None
        )


def notes_proposer(proposal: Proposal) -> str | None:
    """Write the distinct notes into the instruction: no model is asked. Crude, and often surprisingly useful."""
    lines = [line.strip() for record in proposal.records for line in str(record["feedback"]).splitlines()]
    said = [
        line.removeprefix("- ")
        for line in dict.fromkeys(lines)
        if line.startswith("- ") and not line.startswith("- later")
    ]
    fresh = [line for line in said if line not in proposal.text]
    if not fresh:
        return None
    return proposal.text.rstrip() + "\n\n" + "\n".join(f"- {line}" for line in fresh)


_TASK = """\
An assistant follows the instructions below; they are one part of a larger program. Write better ones.

Keep what works. From the feedback, work out which general rules the assistant has to follow, and write them down, so
that it needs no feedback next time; facts about the domain that the feedback tells belong into the instructions, too.
Do not mention the examples themselves. Answer with the new instructions alone, between two lines of three backticks.
"""
_FENCE = re.compile(r"```[^\n]*\n(.*?)\n?```", re.DOTALL)


def reflective_proposer(model: Model[Any] | str, spent: Spent, waits: Sequence[float]) -> Proposer:
    """Ask a model to write better instructions from what went wrong (GEPA's reflective mutation, arXiv:2507.19457).

    A provider in trouble is waited for; a model that gives no answer has no proposal.
    """
    agent = Agent(Models().get(model), instructions=_TASK)

    async def propose(proposal: Proposal) -> str | None:
        for wait in (*waits, None):
            try:
                result = await agent.run(_question(proposal), infer_name=False)
            except (AgentRunError, OSError) as error:
                fault = fault_in(error)
                if fault is None:
                    return None
                if wait is None or is_lasting(fault):
                    msg = f"the reflection model could not be asked for stage `{proposal.path}`: {error}"
                    raise TuningError(msg) from error
                await anyio.sleep(max(wait, wait_asked_for(fault)))
                continue
            usage = result.usage
            spent.add_proposal(usage.total_tokens, None if usage.cost is None else float(usage.cost))
            return written(result.output)
        raise AssertionError

    return propose


def written(answer: str) -> str | None:
    """The instructions in a model's answer; `None` when there are none."""
    found = _FENCE.findall(answer)
    text = (max(found, key=len) if found else answer).strip()
    return text or None


def _question(proposal: Proposal) -> str:
    shown = [
        f"## Call {number}\nInput:\n{record['input']}\n\nOutput:\n{record['output']}\n\nFeedback:\n{record['feedback']}"
        for number, record in enumerate(proposal.records, 1)
    ]
    return (
        f"# The instructions now\n```\n{proposal.text}\n```\n\n# What goes in (JSON schema)\n{proposal.takes}\n\n"
        f"# What has to come out (JSON schema)\n{proposal.gives}\n\n# What happened\n" + "\n\n".join(shown)
    )


async def ask(proposer: Proposer, proposal: Proposal) -> str | None:
    """A proposer's answer, if it is a text that is new.

    Raises:
        TuningError: it raised, or gave something else.
    """
    try:
        if inspect.iscoroutinefunction(proposer) or inspect.iscoroutinefunction(type(proposer).__call__):
            found = proposer(proposal)
        else:  # it may wait for something, and must not keep this loop from its work meanwhile
            found = await anyio.to_thread.run_sync(proposer, proposal)
        if inspect.isawaitable(found):
            found = await found
    except TuningError:
        raise
    except Exception as error:
        msg = f"the proposer raised {type(error).__name__} for stage `{proposal.path}`: {error}"
        raise TuningError(msg) from error
    if found is not None and not isinstance(found, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        msg = f"a proposer gives a text or None, not {found!r} (for stage `{proposal.path}`)"
        raise TuningError(msg)
    return found if found and found.strip() and found != proposal.text and found not in proposal.tried else None


def schema_text(stage: Stage[Any, Any], side: str) -> str:
    """The JSON schema of a stage's input or output as text, for a proposer to read."""
    try:
        schema = (stage.takes if side == "takes" else stage.gives).adapter.json_schema()
    except Exception:  # noqa: BLE001 - a user's type may fail in any way here
        return (stage.takes if side == "takes" else stage.gives).name
    return json.dumps(schema, ensure_ascii=False)[:6_000]
