"""What a run gives to DSPy: a prediction, entries of the trace, and token counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self, cast

import dspy
from dspy.dsp.utils.settings import main_thread_config
from pydantic_ai.messages import ModelResponse

from stagegraph.schema.errors import TuningError

from .fields import untyped

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.record.run import Run

    from .program import Outage

Entry = tuple[Any, dict[str, Any], dspy.Prediction]
"""A predictor, its inputs, and its prediction."""


class RunPrediction(dspy.Prediction):
    """A graph's output as DSPy has it: the fields of the output, and the whole run behind them."""

    _store: dict[str, Any]
    output: Any = None
    """The graph's typed output; `None` when the run failed."""
    error: str | None = None
    """Why the run has no output."""
    outage: Outage | None = None
    """What ends an evaluation of the program that made it."""

    def __init__(
        self,
        fields: Mapping[str, Any],
        run: Run[Any, Any] | None,
        output: object,
        error: str | None,
        outage: Outage | None = None,
    ) -> None:
        untyped.Prediction.__init__(self, **fields)
        self._run = run
        self.output, self.error, self.outage = output, error, outage

    @property
    def run(self) -> Run[Any, Any]:
        """The run; of a failed one its partial record.

        Raises:
            TuningError: the prediction was read from a file, and the record is not in it.
        """
        if self._run is None:
            msg = "this prediction was read back from a file, and the record of its run is not in it"
            raise TuningError(msg)
        return self._run

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self._store, None, self.output, self.error)

    def __copy__(self) -> Self:
        new = type(self)(self._store, self._run, self.output, self.error, self.outage)
        untyped.Prediction.set_lm_usage(new, self.get_lm_usage())
        return new

    def __deepcopy__(self, _memo: object) -> Self:
        return self.__copy__()  # records are frozen, and agents cannot be copied


class StagePrediction(dspy.Prediction):
    """What one call of a stage gave; a failed call has `stage_error` as its only field."""

    stage_call: Call | None = None
    """The call; `None` for a prediction that was read from a file."""

    @classmethod
    def of(cls, call: Call, fields: Mapping[str, Any]) -> Self:
        """The prediction of a call that gave these fields."""
        made: Self = cast("Any", cls).from_completions([dict(fields)]) if call.ok else cls(stage_error=str(call.error))
        made.stage_call = call
        return made


def record_trace(entries: Iterable[Entry]) -> None:
    """Add to the trace of the current `dspy.context`; DSPy's global trace would only grow."""
    trace, limit = untyped.settings.trace, untyped.settings.max_trace_size
    if trace is None or trace is main_thread_config["trace"] or limit <= 0:
        return
    for entry in entries:
        if len(trace) >= limit:
            trace.pop(0)
        trace.append(entry)


def record_usage(run: Run[Any, Any]) -> None:
    """Add each model's tokens to DSPy's usage tracker, if there is one; replayed calls cost nothing."""
    tracker = untyped.settings.usage_tracker
    if not tracker:
        return
    for call in run.calls():
        for message in () if call.replayed else call.messages:
            if isinstance(message, ModelResponse):
                usage = {
                    "prompt_tokens": message.usage.input_tokens,
                    "completion_tokens": message.usage.output_tokens,
                    "total_tokens": message.usage.total_tokens,
                }
                tracker.add_usage(message.model_name or "unknown", usage)
