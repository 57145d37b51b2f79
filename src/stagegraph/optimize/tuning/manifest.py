"""What a tuning was begun with: its run directory continues only while all of this is unchanged."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic_ai.toolsets import AbstractToolset, FunctionToolset

from stagegraph.agent.models import name_of
from stagegraph.data.examples import digest_of
from stagegraph.nodes.graph import BaseGraph
from stagegraph.nodes.stage import Stage
from stagegraph.nodes.step import Step
from stagegraph.optimize.evaluation.fingerprint import Fingerprint
from stagegraph.runner.identity import stage_parts, step_parts
from stagegraph.schema.errors import TuningError

from .proposers import Candidates

if TYPE_CHECKING:
    from stagegraph.data.examples import Example
    from stagegraph.optimize.evaluation.metric import Grader

    from .components import Target
    from .options import Options

_log = logging.getLogger("stagegraph.optimize")
_NAMED = 8
"""Changed facts that an error names."""


def check_manifest(paid: Path, facts: dict[str, Any]) -> None:
    """Write the manifest beside the file *paid*, or make sure that it equals the one under which that was begun."""
    paid.parent.mkdir(parents=True, exist_ok=True)
    file, begun = paid.with_name("manifest.json"), paid.exists()
    try:
        before: Any = json.loads(file.read_text("utf-8")) if file.exists() else None if begun else facts
    except ValueError:
        before = None
    if not isinstance(before, dict) or not facts.keys() & before.keys():
        msg = f"{file}: this is no manifest of a tuning; choose another folder"
        raise TuningError(msg)
    known: dict[str, Any] = {**before}
    changed = [name for name in known | facts if known.get(name) != facts.get(name)]
    if changed and begun:
        more = f" and {len(changed) - _NAMED} more" if len(changed) > _NAMED else ""
        msg = (
            f"{file.parent} holds a tuning that cannot go on: since then, {', '.join(changed[:_NAMED])}{more} changed; "
            "choose another `run_dir`, or remove this one to begin anew"
        )
        raise TuningError(msg)
    if not begun:
        file.write_text(json.dumps(facts, indent=1), encoding="utf-8")


def manifest(
    target: Target, grader: Grader, data: Mapping[str, Sequence[Example[Any]]], options: Options
) -> dict[str, Any]:
    """A description in the user's words -> a fact that is equal in every process; *data* are the parts by name."""
    return {
        "the graph": target.graph.__node__.name,
        **dict(_program(target, options)),
        "what is tuned": list(options.components),
        "the texts to start from": digest_of(target.seed),
        **{f"the {name} examples": [example_digest(one) for one in rows] for name, rows in data.items()},
        "the metric": [grader.name, _metric(grader)],
        "the seed": options.seed,
        "the minibatch": options.minibatch,
        "the proposer": _proposer(options),
    }


def example_digest(example: Example[Any]) -> str:
    """A hash of an example's whole content: a corrected example is another one, also with the same id."""
    return digest_of([example.id, example.input, example.expected, dict(example.metadata)])


def _program(target: Target, options: Options) -> Iterator[tuple[str, Any]]:
    """The facts about each node."""
    for path, node in target.graph.__node__.tree.nodes.items():
        types = [node.__node__.input_type.fingerprint, node.__node__.output_type.fingerprint]
        if isinstance(node, BaseGraph):
            name = f"`{path}`" if path else node.__node__.name
            yield f"the flow of {name}", [*types, Fingerprint(type(node)).text]
        elif isinstance(node, Step):
            yield f"the step `{path}`", [*types, Fingerprint(node.fn).text, step_parts(node)["the version"]]
        elif isinstance(node, Stage):
            parts = stage_parts(node, target.base.get(path), None)
            named = {"the model": "the model settings"}
            for name, part in parts.items():
                yield f"{named.get(name, name)} of `{path}`", [part, types[0]] if name == "the output type" else part
            yield f"the agent of `{path}`", [Fingerprint(list(_functions(node))).text, node.demos, node.retries]
            # By name: a search whose answers are all recorded resumes also where the model cannot be created.
            yield f"the model of `{path}`", name_of(options.model_of(path, node))


def _functions(stage: Stage[Any, Any]) -> Iterator[object]:
    """The functions of a stage's agent, as far as they are known before a run."""
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


def _metric(grader: Grader) -> str:
    found = Fingerprint(grader.metric)
    if found.unknown:
        _log.warning(
            "the metric %s holds %s, which cannot be looked into: when that changes, a tuning that goes on from its "
            "`run_dir` does not notice",
            grader.name,
            ", ".join(f"a {kind}" for kind in dict.fromkeys(found.unknown)),
        )
    return found.text


def _proposer(options: Options) -> Any:
    proposer = options.proposer
    if isinstance(proposer, Candidates):
        return {path: list(texts) for path, texts in proposer.texts.items()}
    if proposer is None or isinstance(proposer, str):
        return [proposer, name_of(options.reflection_model)]
    return [getattr(proposer, "__qualname__", type(proposer).__name__), Fingerprint(proposer).text]
