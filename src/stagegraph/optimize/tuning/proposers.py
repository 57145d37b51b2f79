"""Where new texts come from: a model that reads what went wrong, the notes themselves, or a pool of texts."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from pydantic_ai import Agent

from stagegraph.agent.models import Models
from stagegraph.optimize.evaluation.retries import NO_ANSWER, ask_patiently
from stagegraph.optimize.evaluation.shown import SCHEMA, abridged, cut, restored
from stagegraph.optimize.lms.loop import call_user
from stagegraph.schema.errors import TuningError, closest

from .components import Kind, named_part

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.schema.schema import Schema


_SHOWN = 200
"""Characters of a text that are printed of a proposal."""


@dataclass(frozen=True, slots=True, repr=False)
class Proposal:
    """A text that is to be rewritten, with what a proposer needs for it."""

    path: str
    """The stage."""
    text: str
    """The current text: the instructions, or the description of a tool or a field."""
    records: Sequence[Mapping[str, Any]]
    """The stage's calls, the worst first: `call`, `score`, `input`, `output`, `feedback`; `tool` for a tool's text."""
    input_schema: str
    """The JSON schema of the stage's input."""
    output_schema: str
    """The JSON schema of the stage's output."""
    tried: frozenset[str] = frozenset()
    """Texts that were already tried in this place."""
    kind: Kind = "instructions"
    """What the text is."""
    part: str = ""
    """The name of the tool, or the path of the field in the output."""
    schema: str = ""
    """The JSON schema of the tool's parameters, or of the field."""
    instructions: str = ""
    """The stage's instructions, when the text is something else."""
    left_out: int = 0
    """Calls of the stage for which `records` has no room."""

    def __repr__(self) -> str:
        return f"<Proposal for `{self.component}`, with {len(self.records)} calls: {cut(self.text, _SHOWN)!r}>"

    @property
    def component(self) -> str:
        """The text's name in candidates: `plan`, `plan:tool:search`, `plan:field:title`."""
        return named_part(self.path, self.kind, self.part)


@dataclass(frozen=True, slots=True)
class Written:
    """What came of a proposal, and what it cost."""

    text: str | None
    asked: bool = False
    """Whether a model was asked."""
    tokens: int = 0
    usd: float | None = 0.0
    """`None` when the price is unknown."""


Proposer = Callable[[Proposal], "str | Awaitable[str | None] | None"]
"""Returns a new text, or `None` when it has none."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """A pool of texts to choose from, by component: no model writes anything. For experiments and tests.

    Components are stages (`plan`) and, where they are tuned, tools and fields (`plan:tool:search`, `plan:field:title`).
    """

    texts: Mapping[str, Sequence[str]] = field(default_factory=dict[str, Sequence[str]])

    def __call__(self, proposal: Proposal) -> str | None:
        """The next text of the pool that was not tried in this place."""
        tried = {proposal.text, *proposal.tried}
        return next((text for text in self.texts.get(proposal.component, ()) if text not in tried), None)

    def check(self, components: Collection[str]) -> None:
        """Make sure that each component is tuned and has a list of texts."""
        for name, texts in self.texts.items():
            if name not in components:
                msg = f"Candidates has texts for `{name}`, which is not tuned{closest(name, list(components))}"
                raise TuningError(msg)
            if isinstance(texts, str):
                msg = f"Candidates has one text for `{name}`; write a list: {{{name!r}: [...]}}"
                raise TuningError(msg)


def proposer_of(
    proposer: Proposer | Candidates | str | None,
    model: Model[Any] | str | None,
    components: Collection[str],
    retry_delays: Sequence[float],
) -> Callable[[Proposal], object]:
    """The given proposer, or a reflective one that asks *model*; an error where there is neither."""
    if proposer == "notes":
        return notes_proposer
    if isinstance(proposer, str) or (proposer is not None and not callable(proposer)):
        msg = f"proposer={proposer!r}: it is a function, Candidates(...) or 'notes'"
        raise TuningError(msg)
    if isinstance(proposer, Candidates):
        proposer.check(components)
    if proposer is not None:
        return proposer
    if model is None:
        msg = "say who writes new texts: reflection_model='openai:gpt-5', or without a model proposer='notes'"
        raise TuningError(msg)
    return reflective_proposer(model, retry_delays)


def notes_proposer(proposal: Proposal) -> str | None:
    """The current text with the distinct notes appended; no model is asked."""
    lines = [line.strip() for record in proposal.records for line in str(record["feedback"]).splitlines()]
    notes = [
        line.removeprefix("- ")
        for line in dict.fromkeys(lines)
        if line.startswith("- ") and not line.startswith("- later")
    ]
    fresh = [line for line in notes if line not in proposal.text]
    if not fresh:
        return None
    return "\n\n".join(filter(None, [proposal.text.rstrip(), "\n".join(f"- {line}" for line in fresh)]))


_TASK = """\
An assistant follows the instructions below; they are one part of a larger program. Write better ones.

Keep what works. From the feedback, work out which general rules the assistant has to follow, and write them down, so
that it needs no feedback next time; facts about the domain that the feedback tells belong into the instructions, too.
Do not mention the examples themselves. Answer with the new instructions alone, between two lines of three backticks.
"""
_DESCRIPTION_TASK = """\
An assistant is a part of a larger program. It reads, besides its instructions, the description of {what}. Write a
better description; everything else stays as it is.

Keep what works. From the feedback, work out what the assistant has to know about {it}, and write that down in general
terms, no longer than it has to be. Do not repeat the instructions or the schema, and do not mention the examples
themselves. Answer with the new description alone, between two lines of three backticks.
"""
_TASKS: dict[Kind, str] = {
    "instructions": _TASK,
    "tool": _DESCRIPTION_TASK.format(
        what="a tool that it may call", it="when to call the tool, with what, and what comes back"
    ),
    "field": _DESCRIPTION_TASK.format(what="one field of its answer", it="what belongs into the field, in which form"),
}
_FENCE = re.compile(r"```[^\n]*\n(.*?)\n?```", re.DOTALL)


def reflective_proposer(
    model: Model[Any] | str, retry_delays: Sequence[float]
) -> Callable[[Proposal], Awaitable[Written]]:
    """A model that rewrites a text after reading what went wrong (GEPA's reflective mutation, arXiv:2507.19457).

    When the provider fails, it is asked again. A model without an answer has no proposal.
    """
    known = Models().get(model)
    agents = {kind: Agent(known, instructions=task) for kind, task in _TASKS.items()}

    async def reflect(proposal: Proposal) -> Written:
        who = f"the reflection model (for `{proposal.component}`)"
        try:
            result = await ask_patiently(agents[proposal.kind], _question(proposal), retry_delays, who)
        except NO_ANSWER:
            return Written(None)
        usage, text = result.usage, _text_in(result.output)
        text = None if text is None else restored(text, proposal.text)
        return Written(text, True, usage.total_tokens, None if usage.cost is None else float(usage.cost))

    return reflect


def _text_in(answer: str) -> str | None:
    """The longest fenced block of an answer, or all of it; `None` when it is empty."""
    found = _FENCE.findall(answer)
    text = (max(found, key=len) if found else answer).strip()
    return text or None


def _question(proposal: Proposal) -> str:
    shown = [_shown(number, record) for number, record in enumerate(proposal.records, 1)]
    if proposal.left_out:
        shown.append(f"({proposal.left_out} more calls are not shown.)")
    now = abridged(proposal.text)
    head = {
        "instructions": "# The instructions now",
        "tool": f"# The description of the tool `{proposal.part}` now",
        "field": f"# The description of the output field `{proposal.part}` now",
    }[proposal.kind]
    parts = [f"{head}\n```\n{now}\n```"]
    if now != proposal.text:
        parts.append("One line stands in brackets for text that is not shown: repeat it where that text is to stay.")
    if proposal.kind != "instructions":
        what = "The parameters of the tool" if proposal.kind == "tool" else "The field"
        parts.append(f"# {what} (JSON schema)\n{cut(proposal.schema, SCHEMA) or '(unknown)'}")
        parts.append(f"# The instructions, which stay\n{abridged(proposal.instructions) or '(none)'}")
    parts.append(f"# What goes in (JSON schema)\n{cut(proposal.input_schema, SCHEMA)}")
    parts.append(f"# What has to come out (JSON schema)\n{cut(proposal.output_schema, SCHEMA)}")
    return "\n\n".join([*parts, "# What happened", *shown])


def _shown(number: int, record: Mapping[str, Any]) -> str:
    names = [name for name in ("input", "tool", "output", "feedback") if name in record]
    return f"## Call {number}\n" + "\n\n".join(f"{name.capitalize()}:\n{record[name]}" for name in names)


async def propose(proposer: Callable[[Proposal], object], proposal: Proposal) -> Written:
    """A proposer's text, if it is new, and its cost."""
    try:
        found = await call_user(proposer, proposal)
    except TuningError:
        raise
    except Exception as error:
        msg = f"the proposer raised {type(error).__name__} for `{proposal.component}`: {error}"
        raise TuningError(msg) from error
    if found is None or isinstance(found, str):
        found = Written(found)
    if not isinstance(found, Written):
        msg = f"a proposer gives a text or None, not {found!r} (for `{proposal.component}`)"
        raise TuningError(msg)
    text = found.text or ""
    return found if text.strip() and text not in {proposal.text, *proposal.tried} else replace(found, text=None)


def schema_text(declared: Schema) -> str:
    """The JSON schema of a stage's input or output, or the type's name if it has none."""
    try:
        schema = declared.adapter.json_schema()
    except Exception:  # noqa: BLE001 - a user's type may fail in any way here
        return declared.name
    return cut(json.dumps(schema, ensure_ascii=False), SCHEMA)
