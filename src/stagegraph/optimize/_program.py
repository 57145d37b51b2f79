"""How a module's graph is run: patiently where a provider is at fault, and once where DSPy asks twice."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import Future
from threading import Lock
from typing import TYPE_CHECKING, Any, Self

from stagegraph.agent.failures import provider_error_in, is_lasting, has_transient_failures, retry_after
from stagegraph.agent.models import Models
from stagegraph.nodes.stage import stages_of
from stagegraph.record.run import InputError, ReplayError, RunError
from stagegraph.runner.runner import Runner

from ._chosen import model_named
from ._fields import Fields
from ._loop import start_here

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run

__all__ = ["WAITS", "Flights", "Program", "run_patiently"]

WAITS = (1.0, 4.0, 15.0, 60.0)
"""Seconds between the attempts at a run that a provider let down."""
_STRAGGLER = 115.0
"""DSPy's evaluations submit what takes 120 seconds once more, and more often than once."""


class Flights:
    """Calls that are under way, so that one that is only slow is not made, and paid for, again."""

    def __init__(self, after: float = _STRAGGLER) -> None:
        self._after = after
        self._lock = Lock()
        self.joined = 0
        """How often somebody waited for a call that was under way."""
        self._flying: dict[Hashable, tuple[float, Future[Any]]] = {}

    def run(self, call: Hashable, work: Callable[[], Coroutine[Any, Any, Any]], instead: str) -> Any:
        """Do the work and wait for it, or wait for the very same call that has been under way for long.

        Raises:
            NotRunningError: this is the event loop that the work would need; *instead* is what to write.
        """
        with self._lock:
            began, future = self._flying.get(call, (time.monotonic(), None))
            joins = future is not None and time.monotonic() - began >= self._after
            if future is None or not joins:
                future = start_here(work(), instead)
                self._flying[call] = (time.monotonic(), future)
            self.joined += joins
        try:
            return future.result()
        except BaseException:
            if not joins:
                future.cancel()
            raise
        finally:
            with self._lock:
                if not joins and self._flying.get(call, (0, None))[1] is future:
                    del self._flying[call]


class Program:
    """What a module shares with its copies, by reference: the graph, and how it is run."""

    def __init__(
        self,
        graph: Node[Any, Any],
        model: Model[Any] | str | None,
        runner: Runner | None,
        waits: Sequence[float],
        demo_limit: int,
    ) -> None:
        self.graph = graph
        self.model = model
        self.runner = runner if runner is not None else Runner()
        self.waits = tuple(waits)
        self.demo_limit = demo_limit
        self.tree = graph.__node__.tree
        self.takes = Fields(graph.__node__.input_type, "input")
        self.gives = Fields(graph.__node__.output_type, "output")
        self.models = Models()
        self.flights = Flights()
        self.attributes: dict[str, str] = {}
        """Stage path -> the attribute of its predictor."""

    def has_model(self, path: str) -> bool:
        """Whether somebody names a model for a stage: the stage, its agent, the runner or the module."""
        stage = stages_of(self.tree.root)[path]
        return self.model is not None or model_named(path, stage, self.runner) is not None

    def __deepcopy__(self, _memo: object) -> Self:
        return self


async def run_patiently(
    program: Program, node: Node[Any, Any], value: Any, prompts: Prompts, models: Mapping[str, Model[Any] | str]
) -> tuple[Run[Any, Any], str | None]:
    """A run and why it failed, if it did; one that a provider let down is repeated, also when it went on without.

    Raises:
        RunError: the provider did not recover, or the input does not fit.
    """
    waits = list(program.waits)
    while True:
        try:
            run = await program.runner.run(node, value, model=program.model, prompts=prompts, models=models)
        except (InputError, ReplayError):
            raise
        except RunError as error:
            fault = provider_error_in(error)
            if fault is None:
                if not error.attached:
                    raise
                return error.run, str(error)
            if is_lasting(fault) or not waits:
                raise
            await asyncio.sleep(max(waits.pop(0), retry_after(fault)))
        else:
            if waits and has_transient_failures(run):
                await asyncio.sleep(waits.pop(0))
                continue
            return run, None if run.status == "succeeded" else "the run waits for an answer (see `run.pending`)"
