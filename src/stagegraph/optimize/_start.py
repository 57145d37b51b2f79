"""What a search needs to begin: data whose parts have nothing in common, and somebody who writes new texts."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic_ai.models import Model

from stagegraph.agent.models import Models
from stagegraph.data.examples import digest_of
from stagegraph.schema.errors import TuningError, closest

from .proposers import Candidates, Proposer, notes_proposer, reflective_proposer

if TYPE_CHECKING:
    from stagegraph.data.examples import Example
    from stagegraph.data.prompts import Prompts
    from stagegraph.runner.runner import Runner

    from .budget import Spent
    from .search import Options

__all__ = ["check_overlap", "model_of", "proposer_of", "starting"]


def proposer_of(options: Options, components: Collection[str], spent: Spent) -> Proposer:
    """Who writes new texts.

    Raises:
        TuningError: nobody does, or a pool has texts for a component that is not tuned.
    """
    proposer = options.proposer
    if proposer == "notes":
        return notes_proposer
    if isinstance(proposer, str):
        msg = f"proposer={proposer!r}: it is a function, Candidates(...) or 'notes'"
        raise TuningError(msg)
    if proposer is not None and not callable(proposer):
        msg = f"proposer={proposer!r}: it is a function, Candidates(...) or 'notes'"
        raise TuningError(msg)
    if isinstance(proposer, Candidates):
        for name, texts in proposer.texts.items():
            if name not in components:
                msg = f"Candidates has texts for `{name}`, which is not tuned{closest(name, list(components))}"
                raise TuningError(msg)
            if isinstance(texts, str):
                msg = f"Candidates has one text for `{name}`; write a list: {{{name!r}: [...]}}"
                raise TuningError(msg)
    if proposer is not None:
        return proposer
    if options.reflection_model is None:
        msg = "say who writes new texts: reflection_model='openai:gpt-5', or without a model proposer='notes'"
        raise TuningError(msg)
    return reflective_proposer(options.reflection_model, spent, options.waits)


def model_of(given: Any) -> Model[Any] | str | None:
    """A model, its name, or the one behind a `dspy.LM`.

    Raises:
        TuningError: it is something else.
    """
    if given is None or isinstance(given, (str, Model)):
        return cast("Model[Any] | str | None", given)
    from ._lm import model_behind  # noqa: PLC0415 - only who has an LM has loaded DSPy

    return model_behind(given, Models())


def check_overlap(**parts: Sequence[Example[Any]]) -> None:
    """Make sure that the parts of the data have no input in common.

    Raises:
        TuningError: an example of a later part is in an earlier one, too.
    """
    known: dict[str, str] = {}
    for part, rows in parts.items():
        both = [(one.id, known[digest]) for one in rows if (digest := digest_of(one.input)) in known]
        if both:
            some = ", ".join(f"{name!r} (in `{where}`)" for name, where in both[:5])
            msg = f"{len(both)} examples of `{part}` are there already: {some}; what was learnt by heart would win"
            raise TuningError(msg)
        known |= dict.fromkeys((digest_of(one.input) for one in rows), part)


async def starting(prompts: Prompts | None, runner: Runner | None) -> Prompts | None:
    """The texts to start from: what was given, else what the runner deploys, as it is in force now."""
    start = prompts if prompts is not None or runner is None else runner.prompts
    return None if start is None else await start.resolved()
