"""What a run used, for the agent run that has to pay for it."""

from __future__ import annotations

import dataclasses

from pydantic_ai.usage import RunUsage

__all__ = ["since"]


def since(now: RunUsage, before: RunUsage | None) -> RunUsage:
    """The part of a run's usage that came after *before*: what was recorded is not paid for again."""
    if before is None:
        return now
    spent = RunUsage()
    for field in dataclasses.fields(RunUsage):
        new, old = getattr(now, field.name), getattr(before, field.name)
        if field.name == "details":
            spent.details = {key: value - before.details.get(key, 0) for key, value in now.details.items()}
        else:
            setattr(spent, field.name, None if new is None else new - (old or 0))
    return spent
