"""What a run leaves with DSPy: its trace, its token counts, and a prediction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self, cast

import dspy
from dspy.dsp.utils.settings import main_thread_config
from pydantic_ai.messages import ModelResponse

from stagegraph.data.call import key_order
from stagegraph.schema.errors import TuningError

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.record.run import Run

    from ._predict import StagePredict

__all__ = ["RunPrediction", "entries_of", "record_usage", "recorded"]

Entry = tuple["StagePredict", dict[str, Any], dspy.Prediction]


class RunPrediction(dspy.Prediction):
    """What a graph gave, as DSPy sees it: the fields of its output, and the whole run behind them."""

    def __init__(self, fields: Mapping[str, Any], run: Run[Any, Any] | None, output: object, error: str | None) -> None:
        cast("Any", super()).__init__(**fields)
        self._run = run
        self._output = output
        self._error = error

    @property
    def run(self) -> Run[Any, Any]:
        """The run; of a failed one its partial record.

        Raises:
            TuningError: the prediction was stored and read back; the record stayed in the process that ran it.
        """
        if self._run is None:
            msg = "this prediction was read back from a file, and the record of its run is not in it"
            raise TuningError(msg)
        return self._run

    @property
    def output(self) -> Any:
        """The graph's output as it is typed; `None` when the run failed."""
        return self._output

    @property
    def error(self) -> str | None:
        """Why the run has no output."""
        return self._error

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (cast("dict[str, Any]", self._store), None, self._output, self._error)

    def __copy__(self) -> Self:
        return self._again()

    def __deepcopy__(self, _memo: object) -> Self:
        return self._again()  # records are frozen, and agents cannot be copied

    def _again(self) -> Self:
        new = type(self)(cast("dict[str, Any]", self._store), self._run, self._output, self._error)
        cast("Any", new).set_lm_usage(self.get_lm_usage())
        return new


def entries_of(run: Run[Any, Any], predictors: Mapping[str, StagePredict]) -> list[Entry]:
    """Each finished stage call of a run as DSPy records one: stages as declared, calls of a stage by key.

    A failed call has `stage_error` as its only output; cancelled ones are left out, since they did nothing wrong.
    """
    calls: dict[str, list[Call]] = {path: [] for path in predictors}
    for call in run.root.walk():
        if call.kind == "stage" and call.path in calls and call.status in {"succeeded", "failed"}:
            calls[call.path].append(call)
    entries: list[Entry] = []
    for path, predictor in predictors.items():
        entries += [
            (predictor, predictor.declared.takes.split(call.input), _prediction(predictor, call))
            for call in sorted(calls[path], key=lambda one: key_order(one.key))
        ]
    return entries


def _prediction(predictor: StagePredict, call: Call) -> dspy.Prediction:
    if call.ok:
        prediction = cast("Any", dspy.Prediction).from_completions([predictor.declared.gives.split(call.output)])
    else:
        prediction = dspy.Prediction(stage_error=str(call.error))
    prediction._call = call  # noqa: SLF001 # pyright: ignore[reportPrivateUsage, reportAttributeAccessIssue]
    return prediction


def recorded(entries: Iterable[Entry]) -> None:
    """Add to the trace, if somebody opened one; DSPy's global one would only grow."""
    settings = cast("Any", dspy.settings)
    trace = cast("list[Entry] | None", settings.trace)
    limit = cast("int", settings.max_trace_size)
    if trace is None or trace is cast("Any", main_thread_config)["trace"] or limit <= 0:
        return
    for entry in entries:
        if len(trace) >= limit:
            trace.pop(0)
        trace.append(entry)


def record_usage(run: Run[Any, Any]) -> None:
    """Tell a usage tracker, if there is one, what each model was sent and gave; replayed calls cost nothing."""
    tracker = cast("Any", dspy.settings).usage_tracker
    if not tracker:
        return
    for call in run.calls():
        if call.replayed:
            continue
        for message in call.messages:
            if isinstance(message, ModelResponse):
                usage = message.usage
                tracker.add_usage(
                    message.model_name or "unknown",
                    {
                        "prompt_tokens": usage.input_tokens,
                        "completion_tokens": usage.output_tokens,
                        "total_tokens": usage.total_tokens,
                    },
                )
