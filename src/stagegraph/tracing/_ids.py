"""The ids of a run's trace, its observations and its scores: worked out, so that nobody has to remember them."""

from __future__ import annotations

from hashlib import sha256

__all__ = ["observation_id", "score_id", "span_number", "trace_id", "trace_number"]


def trace_id(run_id: str) -> str:
    """32 hexadecimal digits: what `Langfuse.create_trace_id(seed=run_id)` gives."""
    return sha256(run_id.encode("utf-8", "replace")).digest()[:16].hex()


def trace_number(run_id: str) -> int:
    return int(trace_id(run_id), 16)


def observation_id(run_id: str, key: str, segment: int = 0) -> str:
    """16 hexadecimal digits for the call at *key*, in the run's *segment*: a resumed call is another observation."""
    return f"{span_number(run_id, key, segment):016x}"


def span_number(run_id: str, key: str, segment: int) -> int:
    digest = sha256(f"{run_id}\0{segment}\0{key}".encode("utf-8", "replace")).digest()
    return int.from_bytes(digest[:8], "big") or 1


def score_id(run_id: str, key: str | None, name: str) -> str:
    """The same score of the same call replaces the one before."""
    return sha256(f"{run_id}\0{key or ''}\0{name}".encode("utf-8", "replace")).hexdigest()[:32]
