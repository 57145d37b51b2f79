"""A model that helps with the work, asked as patiently as the models whose work it is about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, TypeVar

import anyio
from pydantic_ai.exceptions import AgentRunError

from stagegraph.agent.failures import provider_error_in, is_lasting, retry_after
from stagegraph.schema.errors import TuningError

if TYPE_CHECKING:
    from pydantic_ai import Agent
    from pydantic_ai.run import AgentRunResult

__all__ = ["NO_ANSWER", "ask_patiently"]

Answer = TypeVar("Answer")

NO_ANSWER = (AgentRunError, OSError)
"""What a model raises that was asked and gave nothing of use."""


async def ask_patiently(
    agent: Agent[object, Answer], question: str, waits: Sequence[float], who: str
) -> AgentRunResult[Answer]:
    """An agent's answer; a provider in trouble is waited for.

    Raises:
        TuningError: the provider did not recover: *who* could not be asked.
        NO_ANSWER: it could, and gave no answer.
    """
    for wait in (*waits, None):
        try:
            return await agent.run(question, infer_name=False)
        except NO_ANSWER as error:
            fault = provider_error_in(error)
            if fault is None:
                raise
            if wait is None or is_lasting(fault):
                msg = f"{who} could not be asked: {error}"
                raise TuningError(msg) from error
            await anyio.sleep(max(wait, retry_after(fault)))
    raise AssertionError
