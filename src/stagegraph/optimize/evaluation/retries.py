"""Models and runs, asked again while a provider fails for the moment."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import uuid4

import anyio
from pydantic_ai.exceptions import AgentRunError

from stagegraph.agent.failures import has_transient_failures, is_lasting, provider_error_in, retry_after
from stagegraph.record.run import InputError, ReplayError, RunError
from stagegraph.runner.options import RunOptions
from stagegraph.schema.errors import TuningError

if TYPE_CHECKING:
    from typing import Unpack

    from pydantic_ai import Agent
    from pydantic_ai.models import Model
    from pydantic_ai.run import AgentRunResult

    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run
    from stagegraph.runner.runner import Runner

T = TypeVar("T")

RETRY_DELAYS = (1.0, 4.0, 15.0, 60.0)
"""Seconds between the attempts when a provider fails."""
NO_ANSWER = (AgentRunError, OSError)
"""What an agent raises when its model gave no usable answer."""


class ModelOptions(RunOptions, total=False):
    """The options of a run with its model and prompts."""

    model: Model[Any] | str | None
    prompts: Prompts | None


async def _repeated(attempt: Callable[[], Awaitable[T]], delays: Sequence[float], again: Callable[[T], bool]) -> T:
    """The result of the first attempt that no provider failed; of the last one, also if *again* would repeat it."""
    for delay in (*delays, None):
        try:
            found = await attempt()
            if delay is None or not again(found):
                return found
            pause = delay
        except Exception as error:
            fault = provider_error_in(error)
            if fault is None or delay is None or is_lasting(fault):
                raise
            pause = max(delay, retry_after(fault))
        await anyio.sleep(pause)
    raise AssertionError


async def ask_patiently(agent: Agent[object, T], question: str, delays: Sequence[float], who: str) -> AgentRunResult[T]:
    """An agent's answer; the request is repeated while its provider fails.

    Raises:
        TuningError: the provider did not recover; *who* names the agent in the message.
        NO_ANSWER: the model answered, but with nothing usable.
    """
    try:
        return await _repeated(lambda: agent.run(question, infer_name=False), delays, lambda _: False)
    except NO_ANSWER as error:
        if provider_error_in(error) is None:
            raise
        msg = f"{who} could not be asked: {error}"
        raise TuningError(msg) from error


async def run_patiently(
    runner: Runner,
    graph: Node[Any, Any],
    value: object,
    delays: Sequence[float],
    *,
    begin: Callable[[str], None] | None = None,
    **options: Unpack[ModelOptions],
) -> Run[Any, Any]:
    """One run, also when it failed by itself: then its partial record.

    A run that a provider failed is repeated. So is one that succeeded without the calls that failed (`settle`); after
    the last attempt it is returned as it is, since it shows how the graph copes. With a journal, each attempt reuses
    what the one before had paid for. *begin* is called with the id of each attempt.

    Raises:
        InputError: the input does not fit the graph.
        RunError: a provider failed for good.
    """

    async def attempt() -> Run[Any, Any]:
        run_id = uuid4().hex
        if begin is not None:
            begin(run_id)
        given: ModelOptions = {**options, "run_id": run_id}
        if runner.journal is not None:
            options["replay"] = run_id  # for the next attempt
        try:
            return await runner.run(graph, value, **given)
        except RunError as error:
            own = not isinstance(error, (InputError, ReplayError)) and provider_error_in(error) is None
            if own and error.attached:
                return error.run
            raise

    return await _repeated(attempt, delays, lambda run: run.error is None and has_transient_failures(run))
