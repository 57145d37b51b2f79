"""What a resumed search has to find unchanged: program, models, data, metric, and who writes new texts."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast

from pydantic_ai.toolsets import AbstractToolset, FunctionToolset

from stagegraph.data.examples import digest_of
from stagegraph.nodes.graph import BaseGraph
from stagegraph.nodes.stage import Stage
from stagegraph.nodes.step import Step
from stagegraph.runner.identity import stage_parts, step_parts

from ._chosen import model_named
from ._fingerprint import Fingerprint, functions_of, hash_of, name_of
from .proposers import Candidates

if TYPE_CHECKING:
    from collections.abc import Mapping

    from stagegraph.data.examples import Example
    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node

    from .grading import Grader
    from .search import Options

__all__ = ["digest_of_example", "manifest"]

_log = logging.getLogger("stagegraph.optimize")


def manifest(  # noqa: PLR0917
    graph: Node[Any, Any],
    base: Prompts,
    seed: Mapping[str, str],
    grader: Grader,
    train: Sequence[Example[Any]],
    val: Sequence[Example[Any]],
    options: Options,
) -> dict[str, Any]:
    """What it is, by what a person calls it."""
    return {
        "the graph": graph.__node__.name,
        **dict(_program(graph, base, options)),
        "what is tuned": list(options.components),
        "the texts to start from": hash_of(dict(seed)),
        "the training examples": [digest_of_example(one) for one in train],
        "the validation examples": [digest_of_example(one) for one in val],
        "the metric": [grader.name, _metric(grader, warns=options.run_dir is not None)],
        "the seed": options.seed,
        "the minibatch": options.minibatch,
        "the proposer": _who_writes(options),
    }


def digest_of_example(example: Example[Any]) -> str:
    """An example by all that it says, not by its id alone."""
    return digest_of([example.id, example.input, example.expected, dict(example.metadata)])


def _program(graph: Node[Any, Any], base: Prompts, options: Options) -> Iterator[tuple[str, Any]]:
    """What runs, node by node."""
    for path, node in graph.__node__.tree.nodes.items():
        types = [node.__node__.input_type.fingerprint, node.__node__.output_type.fingerprint]
        if isinstance(node, BaseGraph):
            name = f"`{path}`" if path else graph.__node__.name
            yield f"the flow of {name}", [*types, Fingerprint(list(_methods(type(node)))).text]
        elif isinstance(node, Step):
            yield f"the step `{path}`", [*types, Fingerprint(node.fn).text, step_parts(node)["the version"]]
        elif isinstance(node, Stage):
            parts = stage_parts(node, base.get(path), None)
            named = {"the model": "the model settings"}
            for name, part in parts.items():
                yield f"{named.get(name, name)} of `{path}`", [part, types[0]] if name == "the output type" else part
            yield f"the agent of `{path}`", [Fingerprint(list(_functions(node))).text, node.demos, node.retries]
            # By name: where a resumed search could not even make the model, it has what that answered.
            chosen = model_named(path, node, options.runner, default=options.model, own=options.models)
            yield f"the model of `{path}`", name_of(chosen)


def _methods(cls: type) -> Iterator[object]:
    """What a graph's own classes define; the nodes in them are looked at by themselves."""
    for base in cls.__mro__:
        if issubclass(base, BaseGraph) and not base.__module__.startswith("stagegraph."):
            yield from (function for _, function in functions_of(cast("type", base)))


def _functions(stage: Stage[Any, Any]) -> Iterator[object]:
    """The functions that an agent is made of, as far as they are known before a run."""
    yield stage.render
    agent: Any = stage.agent
    while hasattr(agent, "wrapped"):
        agent = agent.wrapped
    for sourced in getattr(agent, "_instructions", []):
        yield getattr(sourced, "instruction", None)
    for validator in getattr(agent, "_output_validators", []):
        yield getattr(validator, "function", None)
    found: list[object] = []

    def look(toolset: AbstractToolset[Any]) -> None:
        if isinstance(toolset, FunctionToolset):
            found.extend(tool.function for _, tool in sorted(toolset.tools.items()))

    for toolset in agent.toolsets:
        toolset.apply(look)
    yield from found


def _metric(grader: Grader, *, warns: bool) -> str:
    found = Fingerprint(grader.metric)
    if found.unknown and warns:
        _log.warning(
            "the metric %s holds %s, which cannot be looked into: when that changes, a tuning that goes on from its "
            "`run_dir` does not notice",
            grader.name,
            ", ".join(f"a {kind}" for kind in dict.fromkeys(found.unknown)),
        )
    return found.text


def _who_writes(options: Options) -> Any:
    proposer = options.proposer
    if isinstance(proposer, Candidates):
        return {path: list(texts) for path, texts in proposer.texts.items()}
    if proposer is None or isinstance(proposer, str):
        return [proposer, name_of(options.reflection_model)]
    return [getattr(proposer, "__qualname__", type(proposer).__name__), Fingerprint(proposer).text]
