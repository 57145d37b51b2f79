"""What identifies and describes an observation: ids, names of attributes, metadata.

The names are those of `langfuse.LangfuseOtelSpanAttributes`; a program that only sends does not load that package.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, TypeGuard

from opentelemetry.trace import SpanContext, TraceFlags

from .source import EXPERIMENT

__all__ = [
    "EXPERIMENTS",
    "INPUT",
    "IS_ROOT",
    "LEVEL",
    "METADATA",
    "OUTPUT",
    "OWN",
    "STATUS",
    "TYPE",
    "Attributes",
    "common",
    "is_mapping",
    "metadata",
    "observation_id",
    "sampled",
    "score_id",
    "span_number",
    "trace_id",
    "without_prefix",
]

Attributes = dict[str, Any]

INPUT, OUTPUT = "langfuse.observation.input", "langfuse.observation.output"
TYPE, LEVEL, STATUS = "langfuse.observation.type", "langfuse.observation.level", "langfuse.observation.status_message"
METADATA, TRACE_METADATA = "langfuse.observation.metadata", "langfuse.trace.metadata"
PROMPT_NAME, PROMPT_VERSION = "langfuse.observation.prompt.name", "langfuse.observation.prompt.version"
ENVIRONMENT, RELEASE, VERSION = "langfuse.environment", "langfuse.release", "langfuse.version"
TRACE_NAME, TAGS, SESSION, USER = "langfuse.trace.name", "langfuse.trace.tags", "session.id", "user.id"
IS_ROOT = "langfuse.internal.is_app_root"
USAGE, COST = "langfuse.observation.usage_details", "langfuse.observation.cost_details"
EXPERIMENTS = "sdk-experiment"
"""The environment in which Langfuse keeps runs of experiments apart."""
OWN = frozenset(
    "run_id key path kind status segment resumed replayed attempts prompt_source fan_out_index fan_out_size".split()  # noqa: SIM905
)
"""Names in the metadata of an observation that are ours; a run's own of that name gets `user_` before it."""
_TEXT_LIMIT = 200
"""Langfuse drops a user, session or tag that is longer."""


def trace_id(run_id: str) -> str:
    """32 hexadecimal digits: what `Langfuse.create_trace_id(seed=run_id)` gives."""
    return sha256(run_id.encode("utf-8", "replace")).digest()[:16].hex()


def observation_id(run_id: str, key: str, segment: int = 0) -> str:
    """16 hexadecimal digits for the call at *key*, in the run's *segment*: a resumed call is another observation."""
    return f"{span_number(run_id, key, segment):016x}"


def span_number(run_id: str, key: str, segment: int) -> int:
    """The same as a number."""
    digest = sha256(f"{run_id}\0{segment}\0{key}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") or 1


def score_id(run_id: str, key: str | None, name: str) -> str:
    """The same score of the same call replaces the one before."""
    return sha256(f"{run_id}\0{key or ''}\0{name}".encode("utf-8", "replace")).hexdigest()[:32]


def sampled(trace: int, span: int) -> SpanContext:
    """The context of an observation."""
    return SpanContext(trace, span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def is_mapping(value: object) -> TypeGuard[Mapping[str, Any]]:
    """Whether a value is a JSON object, or something like it."""
    return isinstance(value, Mapping)


def metadata(values: Mapping[str, object], prefix: str = METADATA) -> Attributes:
    """Each value as JSON of its own, which is how the server reads it; `None` is left out."""
    return {f"{prefix}.{name}": _json(value) for name, value in values.items() if value is not None}


def _json(value: object) -> str:
    try:
        return json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str)
    except Exception:  # noqa: BLE001 - keys of any type, circles, a user's `__str__`
        return json.dumps(f"<{type(value).__name__}>")


def _with_prefix(name: str) -> str:
    """The name that a run's own metadata gets in an observation."""
    return f"user_{name}" if re.sub(r"^(?:user_)+", "", name) in OWN else name


def without_prefix(name: str) -> str:
    """The same the other way round."""
    short = name.removeprefix("user_")
    return short if short != name and _with_prefix(short) == name else name


def common(
    name: str,
    session: str | None,
    user: str | None,
    tags: Sequence[str],
    about: Mapping[str, object],
    root: str,
    extra: Attributes,
) -> Attributes:
    """What every observation of a run carries, so that each can be found by it.

    Args:
        name: Of what was run.
        session: Its session.
        user: Its user.
        tags: Its tags.
        about: The run's own metadata; it may say which item of an experiment the run is.
        root: The id of the run's root observation.
        extra: More attributes.
    """
    own = {_with_prefix(key): value for key, value in about.items()}
    experiment = own.get(EXPERIMENT)
    if is_mapping(experiment):
        del own[EXPERIMENT]
    found: Attributes = {TRACE_NAME: name[:_TEXT_LIMIT], **metadata(own, TRACE_METADATA), **extra}
    if experiment:
        found[ENVIRONMENT] = EXPERIMENTS
    if is_mapping(experiment):
        found |= {f"langfuse.experiment.{key}": str(value) for key, value in experiment.items() if value is not None}
        found["langfuse.experiment.item.root_observation_id"] = root
    if session:
        found[SESSION] = str(session)[:_TEXT_LIMIT]
    if user:
        found[USER] = str(user)[:_TEXT_LIMIT]
    if tags:
        found[TAGS] = tuple(str(tag)[:_TEXT_LIMIT] for tag in tags)
    return found
