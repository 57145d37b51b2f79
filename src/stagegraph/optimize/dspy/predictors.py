"""A stage as a DSPy predictor, and a run as DSPy's predictions.

Optimizers read and write the predictor's text and demos, and the stage itself answers.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast

import dspy
from dspy.dsp.utils.settings import main_thread_config
from pydantic_ai.messages import ModelResponse
from pydantic_core import to_jsonable_python

from stagegraph.data.prompt import Demo, Prompt, parsed
from stagegraph.data.prompts import Prompts
from stagegraph.optimize.lms.lm import PydanticEngine
from stagegraph.optimize.lms.loop import await_here, run_here
from stagegraph.record.run import RunError
from stagegraph.schema.errors import TuningError

from .fields import Fields, signature_of, untyped

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.record.run import Run

    from .program import Program

_DESCRIPTIONS = "described"
"""The key of a saved predictor for the descriptions of tools and fields, which DSPy does not have."""


Entry = tuple[Any, dict[str, Any], dspy.Prediction]
"""A predictor, its inputs, and its prediction."""


class RunPrediction(dspy.Prediction):
    """A graph's output as DSPy has it: the fields of the output, and the whole run behind them."""

    _store: dict[str, Any]
    output: Any = None
    """The graph's typed output; `None` when the run failed."""
    error: str | None = None
    """Why the run has no output."""

    def __init__(self, fields: Mapping[str, Any], run: Run[Any, Any] | None, output: object, error: str | None) -> None:
        untyped.Prediction.__init__(self, **fields)
        self._run, self.output, self.error = run, output, error

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

    def __deepcopy__(self, _memo: object = None) -> Self:
        """A copy that shares the record, since records are frozen, and agents cannot be copied."""
        new = type(self)(self._store, self._run, self.output, self.error)
        untyped.Prediction.set_lm_usage(new, self.get_lm_usage())
        return new

    __copy__ = __deepcopy__


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


class StagePredict(dspy.Predict):
    """The predictor of one stage: `signature.instructions` and `demos` are its prompt.

    Called by itself it runs its stage alone. A `GraphModule` runs the whole graph and reads its predictors.
    """

    signature: Any
    demos: list[Any]
    lm: Any

    def __init__(self, path: str, program: Program, prompt: Prompt) -> None:
        self.path = path
        """Where the stage is declared: `build.code`."""
        self.program = program
        self.node = program.stages[path]  # DSPy has another use for `stage`
        self.inputs, self.outputs = program.sides[path]
        text = prompt.instructions if prompt.instructions is not None else self.node.instructions
        self._seed = replace(prompt, instructions=text)
        untyped.Predict.__init__(self, signature_of(path, self.inputs, self.outputs, text))
        self.demos = [self._example(demo) for demo in prompt.demos]
        self._written = [self._demo(demo) for demo in self.demos]
        """The demos of the seed, which are always kept."""

    @property
    def text(self) -> str:
        """The instructions as they were set; where there are none, DSPy puts a sentence about the fields."""
        text: str = self.signature.__doc__ or ""
        return "" if text == self.signature.with_instructions("").__doc__ else text

    def prompt(self) -> Prompt:
        """The current prompt of the stage.

        Demos of an optimizer are left out where they do not fit the stage's types, where their JSON would be read as
        another value, or where they are too long.
        """
        text, seed = self.text, self._seed.instructions or ""
        if inspect.cleandoc(text) == inspect.cleandoc(seed):
            text = seed  # as it was written: DSPy trims it
        return Prompt(text, tuple(self._fitting()), self._seed.tools, self._seed.fields)

    def _fitting(self) -> Iterator[Demo]:
        """The demos of the seed, and as many of the others as there is room for."""
        room = self.program.demo_limit
        for demo in map(self._demo, self.demos):
            if demo is None:
                continue
            size = len(json.dumps([demo.input, demo.output], ensure_ascii=False))
            if demo in self._written:
                yield demo
            elif size <= room:
                room -= size
                yield demo

    def _example(self, demo: Demo) -> dspy.Example:
        given, answer = self.inputs.schema.load(demo.input), self.outputs.schema.load(demo.output)
        fields = {**self.inputs.split(given), **self.outputs.split(answer)}
        return untyped.Example(**fields).with_inputs(*self.inputs.names)

    def _demo(self, example: Any) -> Demo | None:
        """An example as a demo, if its JSON says all of it: that of a union does not say which member it is."""
        values = self._values(example)
        try:
            data = [side.schema.answer(value) for side, value in values]
            again = [side.schema.load(one) for (side, _), one in zip(values, data, strict=True)]
        except (ValueError, TypeError):
            return None
        whole = all(type(one) is type(value) and one == value for one, (_, value) in zip(again, values, strict=True))
        return Demo(*data) if values and whole else None

    def _values(self, example: Any) -> list[tuple[Fields, Any]]:
        """The typed input and output of an example; empty if it does not have both."""
        fields: dict[str, Any] = dict(example.items())
        try:
            sides = (self.inputs, self.outputs)
            found = [(side, side.join(fields)) for side in sides if fields.keys() & side.names.keys()]
        except (KeyError, ValueError, TypeError):
            return []
        return found if len(found) == len(sides) else []

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Run the stage alone.

        Raises:
            RunError: it failed.
        """
        return run_here(self.aforward(**inputs), "await predictor.acall(...)")

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """The same for async code."""
        name, model = self.node.__node__.name, self.program.model_for(self.path, self.lm)
        models, prompts = {} if model is None else {name: model}, Prompts({name: self.prompt()})
        run, error = await await_here(self.program.run(self.node, self.inputs.join(inputs), prompts, models))
        if error is not None:
            raise RunError(error, run=run)
        prediction = untyped.Prediction.from_completions([self.outputs.split(run.output)])
        record_trace(lambda: [(self, inputs, prediction)])
        return prediction

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The prompt as plain data. The graph decides which model runs, so that is not part of it."""
        saved = copy.copy(self)
        saved.lm = None if isinstance(getattr(self.lm, "_engine_spec", None), PydanticEngine) else self.lm
        saved.demos = [one for one in self.demos if self._demo(one) is not None or not self._values(one)]
        state = untyped.Predict.dump_state(saved, json_mode=json_mode)
        state["signature"]["instructions"] = self.text
        if descriptions := Prompt(tools=self._seed.tools, fields=self._seed.fields).data():
            state[_DESCRIPTIONS] = descriptions
        return to_jsonable_python(state, fallback=str) if json_mode else state

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> Self:
        """Take over a prompt.

        Raises:
            PromptError: a description of a tool or a field is no text.
        """
        given = parsed(self.path, state.get(_DESCRIPTIONS), "the saved program")
        self._seed = replace(self._seed, tools=given.tools, fields=given.fields)
        known = {name: value for name, value in state.items() if name != _DESCRIPTIONS}
        own = self.signature.dump_state()["fields"]
        known["signature"] = {"instructions": state["signature"]["instructions"], "fields": own}
        untyped.Predict.load_state(self, known, allow_unsafe_lm_state=allow_unsafe_lm_state)
        self.demos = [dspy.Example(demo) if isinstance(demo, dict) else demo for demo in self.demos]
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A predictor of its own that shares the stage, its agent and the model."""
        new = memo[id(self)] = self.__class__.__new__(self.__class__)
        shared = {"node", "inputs", "outputs", "_seed", "lm"}
        for name, value in vars(self).items():
            own = value if name in shared else list(value) if name == "callbacks" else copy.deepcopy(value, memo)
            vars(new)[name] = own
        new.signature = self.signature.with_instructions(self.text)  # some optimizers write into the class itself
        return new


def entries_of(run: Run[Any, Any], predictors: Mapping[str, StagePredict]) -> list[Entry]:
    """Each finished stage call of a run as DSPy traces it: in the order of stages, and of the keys within a stage.

    A cancelled call is left out, since it did nothing wrong.
    """
    calls = [call for call in run.calls() if call.path in predictors and call.status in {"succeeded", "failed"}]
    place = {path: number for number, path in enumerate(predictors)}
    found: list[Entry] = []
    for call in sorted(calls, key=lambda call: place[call.path]):
        one = predictors[call.path]
        found.append((one, one.inputs.split(call.input), StagePrediction.of(call, one.outputs.split(call.output))))
    return found


def record_trace(entries: Callable[[], Iterable[Entry]]) -> None:
    """Add to the trace of the current `dspy.context`; DSPy's global trace would only grow."""
    trace, limit = untyped.settings.trace, untyped.settings.max_trace_size
    if trace is not None and trace is not main_thread_config["trace"] and limit > 0:
        trace.extend(entries())
        del trace[:-limit]


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
