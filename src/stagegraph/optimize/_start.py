"""What a search needs to begin and what a resumed one has to find unchanged: data, texts, and who writes new ones."""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from stagegraph.errors import TuningError
from stagegraph.example import digest_of
from stagegraph.structure import Structure, closest

from .proposers import Candidates, Proposer, notes_proposer, reflective_proposer

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.example import Example
    from stagegraph.node import Node

    from .budget import Spent
    from .grading import Grader
    from .search import Options

__all__ = ["check_overlap", "manifest", "name_of", "proposer_of"]


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


def manifest(  # noqa: PLR0917
    graph: Node[Any, Any],
    seed: Mapping[str, str],
    grader: Grader,
    train: Sequence[Example[Any]],
    val: Sequence[Example[Any]],
    options: Options,
) -> dict[str, Any]:
    """What a resumed search has to find unchanged."""
    stages = Structure.of(graph).stages
    return {
        "the graph": graph.label,
        "the stages": {path: [stages[path].takes.fingerprint, stages[path].gives.fingerprint] for path in stages},
        "what is tuned": list(options.components),
        "the texts to start from": _hash(dict(seed)),
        "the training examples": _hash([one.data() for one in train]),
        "the validation examples": _hash([one.data() for one in val]),
        "the metric": [grader.name, getattr(grader.metric, "identity", None) or _source(grader.metric)],
        "the seed": options.seed,
        "the minibatch": options.minibatch,
        "the model": name_of(options.model),
        "the proposer": _who_writes(options),
    }


def name_of(model: Model[Any] | str | None) -> str | None:
    """A model in a line that another process writes the same way."""
    return model if model is None or isinstance(model, str) else f"{model.system}:{model.model_name}"


def _who_writes(options: Options) -> Any:
    proposer = options.proposer
    if isinstance(proposer, Candidates):
        return {path: list(texts) for path, texts in proposer.texts.items()}
    if proposer is None or isinstance(proposer, str):
        return [proposer, name_of(options.reflection_model)]
    return [getattr(proposer, "__qualname__", type(proposer).__name__), _source(proposer)]


def _hash(value: object) -> str:
    return blake2b(
        json.dumps(value, sort_keys=True, default=repr).encode("utf-8", "replace"), digest_size=8
    ).hexdigest()


def _source(metric: object) -> str:
    try:
        return _hash(inspect.getsource(metric))  # pyright: ignore[reportArgumentType]
    except (OSError, TypeError):
        return ""
