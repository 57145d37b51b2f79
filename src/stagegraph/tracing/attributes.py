"""Identity and description of an observation: ids, names of attributes, metadata.

A program that only sends does not import `langfuse`, which takes a third of a second and sets up the httpx logger.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from hashlib import sha256
from typing import TYPE_CHECKING, Any

from opentelemetry.trace import SpanContext, TraceFlags

from stagegraph.record.rows import EXPERIMENT
from stagegraph.schema.types import is_mapping

if TYPE_CHECKING:
    from stagegraph.runner.observer import TraceStart

Attributes = dict[str, Any]


class Names:
    """Names of attributes, equal to those of `langfuse.LangfuseOtelSpanAttributes`."""

    INPUT, OUTPUT = "langfuse.observation.input", "langfuse.observation.output"
    TYPE, LEVEL = "langfuse.observation.type", "langfuse.observation.level"
    STATUS = "langfuse.observation.status_message"
    METADATA, TRACE_METADATA = "langfuse.observation.metadata", "langfuse.trace.metadata"
    PROMPT_NAME, PROMPT_VERSION = "langfuse.observation.prompt.name", "langfuse.observation.prompt.version"
    FIRST_TEXT = "langfuse.observation.completion_start_time"
    USAGE, COST = "langfuse.observation.usage_details", "langfuse.observation.cost_details"
    ENVIRONMENT, RELEASE, VERSION = "langfuse.environment", "langfuse.release", "langfuse.version"
    TRACE_NAME, TAGS, SESSION, USER = "langfuse.trace.name", "langfuse.trace.tags", "session.id", "user.id"
    IS_ROOT = "langfuse.internal.is_app_root"
    EXPERIMENT = "langfuse.experiment"
    EXPERIMENT_ROOT = "langfuse.experiment.item.root_observation_id"


USAGE_PARTS = {
    "cache_read_tokens": "input_cached_tokens",
    "cache_write_tokens": "input_cache_creation",
    "input_audio_tokens": "input_audio_tokens",
    "output_audio_tokens": "output_audio_tokens",
    "reasoning_tokens": "output_reasoning_tokens",
}
"""Name of a part of the usage in Pydantic AI -> in Langfuse."""
EXPERIMENTS = "sdk-experiment"
"""The environment in which Langfuse keeps the runs of experiments."""
OWN = {
    "run_id", "key", "path", "kind", "status", "segment", "resumed", "replayed", "attempts", "prompt_source",
    "transient", "fan_out_index", "fan_out_size", "host_trace", "host_observation", "origin", "input_whole",
    "output_whole", "resourceAttributes", "scopeAttributes", "scope", "attributes",
}  # fmt: skip
"""Reserved names in the metadata of an observation; the same names in a run's own metadata get the prefix `user_`."""
_TO_JSON = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"), default=str).encode
_TEXT_LIMIT = 200
"""Characters; Langfuse drops a longer user, session or tag."""


def trace_id(run_id: str) -> str:
    """32 hexadecimal digits, as from `Langfuse.create_trace_id(seed=run_id)`."""
    return sha256(run_id.encode("utf-8", "replace")).digest()[:16].hex()


def observation_id(run_id: str, key: str, segment: int = 0) -> str:
    """16 hexadecimal digits for the call at *key* in the run's *segment*: a resumed call is a new observation."""
    return f"{span_number(run_id, key, segment):016x}"


def span_number(run_id: str, key: str, segment: int) -> int:
    """`observation_id` as a number."""
    digest = sha256(f"{run_id}\0{segment}\0{key}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") or 1


def score_id(run_id: str, key: str | None, name: str) -> str:
    """The id of a score, so that the same score of the same call replaces the earlier one."""
    return sha256(f"{run_id}\0{key or ''}\0{name}".encode("utf-8", "replace")).hexdigest()[:32]


def sampled(trace: int, span: int) -> SpanContext:
    """The span context of an observation."""
    return SpanContext(trace, span, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))


def metadata(values: Mapping[str, object], prefix: str = Names.METADATA) -> Attributes:
    """Each value as separate JSON, which is how the server reads it; `None` is omitted."""
    return {f"{prefix}.{name}": _json(value) for name, value in values.items() if value is not None}


def _json(value: object) -> str:
    try:
        return _TO_JSON(value)
    except Exception:  # noqa: BLE001 - keys of any type, circles, a user's `__str__`
        return json.dumps(f"<{type(value).__name__}>")


def is_reserved(name: str) -> bool:
    """Whether a name in an observation's metadata is ours or the server's, which adds names such as `scope.version`."""
    return name.partition(".")[0] in OWN


def _with_prefix(name: str) -> str:
    """The name in an observation for a name in a run's own metadata."""
    return f"user_{name}" if is_reserved(re.sub(r"^(?:user_)+", "", name)) else name


def without_prefix(name: str) -> str:
    """The inverse of `_with_prefix`."""
    short = name.removeprefix("user_")
    return short if short != name and _with_prefix(short) == name else name


def common(start: TraceStart, environment: str, release: str | None, *, joined: bool) -> Attributes:
    """The attributes of every observation of a run, so that each observation can be found by them.

    The trace of a run that *joined* that of the host has the host's name.
    """
    own = {_with_prefix(name): value for name, value in start.metadata.items()}
    experiment = own.get(EXPERIMENT)
    item: Mapping[str, Any] = experiment if is_mapping(experiment) else {}
    if item:
        del own[EXPERIMENT]
    found = {
        Names.TRACE_NAME: None if joined else start.graph[:_TEXT_LIMIT],
        Names.ENVIRONMENT: EXPERIMENTS if experiment else environment,
        Names.RELEASE: release,
        Names.VERSION: start.prompts.digest,
        Names.SESSION: str(start.session_id or "")[:_TEXT_LIMIT] or None,
        Names.USER: str(start.user_id or "")[:_TEXT_LIMIT] or None,
        Names.TAGS: tuple(str(tag)[:_TEXT_LIMIT] for tag in start.tags) or None,
        **metadata({**own, "run_id": start.run_id}, Names.TRACE_METADATA),
        **{f"{Names.EXPERIMENT}.{name}": None if value is None else str(value) for name, value in item.items()},
        Names.EXPERIMENT_ROOT: observation_id(start.run_id, start.root_key, start.segment) if item else None,
    }
    return {name: value for name, value in found.items() if value is not None}
