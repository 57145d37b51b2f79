"""A tuning as plain data: every candidate, its parents, what changed, what it scored, and what all of it cost."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stagegraph.optimize.adapter import Finding
    from stagegraph.optimize.options import Found

__all__ = ["found_data"]


def found_data(found: Found) -> dict[str, Any]:
    """What a search found, for a file of JSON."""
    spent = found.spent
    return {
        "stopped": found.stopped,
        "warnings": found.warnings,
        "best": found.best,
        "changed": found.changed,
        "spent": {
            "runs": spent.runs,
            "requests": spent.requests,
            "proposals": spent.proposals,
            "tokens": spent.tokens,
            "usd": spent.usd,
            "unpriced": spent.unpriced,
        },
        "candidates": [_candidate(one, found.changes(place)) for place, one in enumerate(found.candidates)],
    }


def _candidate(finding: Finding, changes: dict[str, str]) -> dict[str, Any]:
    examples = [row.example for row in finding.rows]
    return {
        "parents": finding.parents,
        "changes": changes,
        "texts": finding.texts,
        "mean": finding.mean,
        "scores": dict(zip(examples, finding.scores, strict=True)),
        "objectives": dict(zip(examples, finding.objectives, strict=True)),
        "blame": finding.blame,
    }
