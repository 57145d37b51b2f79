"""How a module's graph is run: patiently, with the models that DSPy chose, and inside DSPy's parallel executor."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import Future
from contextvars import copy_context
from typing import TYPE_CHECKING, Any, NoReturn, Self

from dspy.utils.callback_context import ACTIVE_CALL_ID

from stagegraph.agent.models import Models, chosen_model
from stagegraph.nodes.stage import stages_of
from stagegraph.optimize.evaluation.retries import run_patiently
from stagegraph.optimize.lms.lm import general_lm, model_behind
from stagegraph.optimize.lms.loop import start_here
from stagegraph.runner.runner import Runner

from .fields import Fields, sides_of, untyped

if TYPE_CHECKING:
    from pydantic_ai.models import Model

    from stagegraph.data.prompts import Prompts
    from stagegraph.nodes.node import Node
    from stagegraph.record.run import Run

_STRAGGLER = 115.0
"""Seconds. DSPy's executor submits an item again that takes 120 seconds, and possibly several times."""
_QUEUE = 1.0
"""Seconds. A thread of the executor takes the next item from its queue far sooner."""
_ENDED = "stagegraph_ended"
"""The attribute of a thread whose evaluation has ended: when, of which graph, and why."""


class TuningStopped(BaseException):
    """A provider failed for good, or the metric did, in the middle of an optimization; the cause says which.

    DSPy's executor turns every `Exception` into a score of 0, which would blame a candidate for a rate limit. It does
    not catch this one. It is raised inside DSPy's executor only.
    """


def in_executor() -> bool:
    """Whether DSPy's parallel executor makes this call, directly or through a program around this one.

    For each item, the executor binds the id of the calling callback, and `None` where there is none. Callbacks bind
    the id of each call as well, and leave `None` behind: where the callbacks are gone, a call alone cannot be told from
    an evaluation and counts as one, since a score that says nothing does more harm.
    """
    context = copy_context()
    if ACTIVE_CALL_ID not in context:
        return False
    if context[ACTIVE_CALL_ID] is None:
        return not untyped.settings.callbacks
    return not untyped.settings.caller_modules  # the id of an evaluation, unless a program around this one is called


def end_evaluation(error: Exception, graph: object) -> NoReturn:
    """End the evaluation that makes this call, and keep its queued items from running.

    An executor has no public way to empty its queue. So a thread that has ended its item refuses the next ones. The
    main thread has no queue: there, the evaluation has ended with its exception.
    """
    thread = threading.current_thread()
    if thread is not threading.main_thread():
        setattr(thread, _ENDED, (time.monotonic(), graph, error))
    msg = f"{error} (the optimization stops here, since this says nothing about the candidate)"
    raise TuningStopped(msg) from error


def check_evaluation(graph: object) -> None:
    """Refuse an item that was queued in an evaluation of *graph* that has ended."""
    ended, of, error = vars(threading.current_thread()).pop(_ENDED, (0.0, None, None))
    if of is graph and time.monotonic() - ended < _QUEUE:
        end_evaluation(error, graph)


class Flights:
    """Calls in progress. A call that DSPy submits again because it is slow joins the first one instead."""

    def __init__(self, after: float = _STRAGGLER) -> None:
        self._after = after
        self._lock = threading.Lock()
        self.joined = 0
        """Calls that have joined another one."""
        self._flying: dict[Hashable, tuple[float, Future[Any]]] = {}

    def run(self, call: Hashable, work: Callable[[], Coroutine[Any, Any, Any]], instead: str) -> Any:
        """Do the work and wait for it, or wait for an equal call that has been in progress for long.

        Where this is the event loop that the work needs, the error says *instead*.
        """
        now = time.monotonic()
        with self._lock:
            began, future = self._flying.get(call, (now, None))
            joins = future is not None and now - began >= self._after
            if future is None or not joins:
                future = start_here(work(), instead)
                self._flying[call] = now, future
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
    """What a module and its copies share: the graph, and how it is run."""

    def __init__(
        self,
        graph: Node[Any, Any],
        model: Model[Any] | str | None,
        runner: Runner | None,
        retry_delays: Sequence[float],
        demo_limit: int,
    ) -> None:
        self.graph = graph
        self.model = model
        self.runner = runner if runner is not None else Runner()
        self.retry_delays = tuple(retry_delays)
        self.demo_limit = demo_limit
        self.stages = stages_of(graph)
        self.sides = {path: sides_of(path, stage) for path, stage in self.stages.items()}
        self.inputs = Fields(graph.__node__.input_type, "input")
        self.outputs = Fields(graph.__node__.output_type, "output")
        self.flights = Flights()
        self._models = Models()

    def __deepcopy__(self, _memo: object) -> Self:
        return self

    def model_for(self, path: str, lm: object) -> Model[Any] | None:
        """The model of a stage as far as DSPy chooses it; *lm* is the one that was set on its predictor.

        It goes before that of `dspy.context(lm=)`. The LM that is configured for all of DSPy counts where neither the
        stage, nor the runner, nor the module names a model.
        """
        general, configured = general_lm()
        chosen, runner = lm or general, self.runner
        known = self.model if self.model is not None else runner.model
        stage = self.stages[path]
        if chosen is None and chosen_model(path, stage, of_run={}, of_runner=runner.models, default=known) is None:
            chosen = configured
        return None if chosen is None else model_behind(chosen, self._models)

    async def run(
        self, node: Node[Any, Any], value: Any, prompts: Prompts, models: Mapping[str, Model[Any]]
    ) -> tuple[Run[Any, Any], str | None]:
        """A run, and why it has no output if it has none; an error where a provider failed for good."""
        run = await run_patiently(
            self.runner, node, value, self.retry_delays, model=self.model, prompts=prompts, models=models
        )
        if run.status == "succeeded":
            return run, None
        return run, str(run.error) if run.error is not None else "the run waits for an answer (see `run.pending`)"
