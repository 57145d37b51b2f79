"""One stage as a DSPy predictor: optimizers read and write its text and demos, and the stage itself answers."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import dspy
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from stagegraph.data.call import key_order
from stagegraph.data.prompt import Demo, Prompt, parsed
from stagegraph.data.prompts import Prompts
from stagegraph.optimize.lms.lm import PydanticEngine
from stagegraph.optimize.lms.loop import await_here, run_here
from stagegraph.record.run import RunError
from stagegraph.schema.errors import DeclarationError

from .fields import Fields, reject_reserved, signature_of, untyped
from .trace import Entry, StagePrediction, record_trace

if TYPE_CHECKING:
    from stagegraph.data.call import Call
    from stagegraph.record.run import Run

    from .program import Program

_DESCRIPTIONS = "described"
"""The key of a saved predictor for the descriptions of tools and fields, which DSPy does not have."""


class Declared:
    """What a predictor and its copies share: the stage, its fields, and the program that runs it."""

    def __init__(self, path: str, program: Program) -> None:
        self.path = path
        self.program = program
        self.stage = program.stages[path]
        what = f"stage `{path}`"
        self.inputs = Fields(self.stage.__node__.input_type, "input")
        self.outputs = Fields(self.stage.__node__.output_type, "output", frozenset(self.inputs.names))
        for fields in (self.inputs, self.outputs):
            reject_reserved(fields, what)
        clash = self.inputs.names.keys() & self.outputs.names.keys()
        if clash:
            msg = f"{what}: its input and its output both need the field `{min(clash)}`: rename one of them"
            raise DeclarationError(msg)

    def __deepcopy__(self, _memo: object) -> Self:
        return self


class StagePredict(dspy.Predict):
    """The predictor of one stage: `signature.instructions` and `demos` are its prompt.

    Called by itself it runs its stage alone. A `GraphModule` runs the whole graph and reads its predictors.
    """

    signature: Any
    demos: list[Any]

    def __init__(self, declared: Declared, prompt: Prompt) -> None:
        self.declared = declared
        """The stage and the fields of its types."""
        self._seed = prompt
        signature = signature_of(declared.path, declared.inputs, declared.outputs, self._seed_text)
        untyped.Predict.__init__(self, signature)
        self.demos = [self._example(demo) for demo in prompt.demos]
        self._written = [self._demo(demo) for demo in self.demos]
        """The demos of the seed, which are always kept."""

    @property
    def path(self) -> str:
        """Where the stage is declared: `build.code`."""
        return self.declared.path

    @property
    def text(self) -> str:
        """The instructions as they were set; where there are none, DSPy puts a sentence about the fields."""
        text: str = self.signature.__doc__ or ""
        return "" if text == self.signature.with_instructions("").__doc__ else text

    @property
    def _seed_text(self) -> str:
        text = self._seed.instructions
        return text if text is not None else self.declared.stage.instructions

    def prompt(self) -> Prompt:
        """The current prompt of the stage.

        Demos of an optimizer are left out where they do not fit the stage's types, or are too long.
        """
        text, seed = self.text, self._seed_text
        if inspect.cleandoc(text) == inspect.cleandoc(seed):
            text = seed  # as it was written: DSPy trims it
        return Prompt(text, tuple(self._fitting()), self._seed.tools, self._seed.fields)

    def _fitting(self) -> Iterator[Demo]:
        """The demos of the seed, and as many of the others as there is room for."""
        room = self.declared.program.demo_limit
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
        inputs, outputs = self.declared.inputs, self.declared.outputs
        given, answer = inputs.schema.load(demo.input), outputs.schema.load(demo.output)
        return untyped.Example(**inputs.split(given), **outputs.split(answer)).with_inputs(*inputs.names)

    def _demo(self, example: Any) -> Demo | None:
        fields: dict[str, Any] = dict(example.items())
        values: list[Any] = []
        for side in (self.declared.inputs, self.declared.outputs):
            if not fields.keys() & side.names.keys():
                return None
            try:
                values.append(side.schema.answer(side.join(fields)))
            except (ValidationError, KeyError, ValueError, TypeError):
                return None
        return Demo(*values)

    def forward(self, **inputs: Any) -> dspy.Prediction:
        """Run the stage alone.

        Raises:
            RunError: it failed.
        """
        return self._predicted(inputs, run_here(self._answer(inputs), "await predictor.acall(...)"))

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Run the stage alone.

        Raises:
            RunError: it failed.
        """
        return self._predicted(inputs, await await_here(self._answer(inputs)))

    async def _answer(self, inputs: Mapping[str, Any]) -> Any:
        program, stage = self.declared.program, self.declared.stage
        model = program.model_for(self.path, self.lm)
        models = {} if model is None else {stage.__node__.name: model}
        value, prompts = self.declared.inputs.join(inputs), Prompts({stage.__node__.name: self.prompt()})
        run, error = await program.run(stage, value, prompts, models)
        if error is not None:
            raise RunError(error, run=run)
        return run.output

    def _predicted(self, inputs: Mapping[str, Any], output: object) -> dspy.Prediction:
        prediction = untyped.Prediction.from_completions([self.declared.outputs.split(output)])
        record_trace([(self, dict(inputs), prediction)])
        return prediction

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The prompt as plain data. The graph decides which model runs, so that is not part of it."""
        lm, self.lm = self.lm, None if isinstance(getattr(self.lm, "_engine_spec", None), PydanticEngine) else self.lm
        try:
            state = untyped.Predict.dump_state(self, json_mode=json_mode)
        finally:
            self.lm = lm
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
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        shared = {"declared", "_seed", "lm", "callbacks"}
        state = {name: value if name in shared else copy.deepcopy(value, memo) for name, value in vars(self).items()}
        vars(new).update(state, callbacks=list(state["callbacks"]))
        # Some optimizers write into the signature class itself.
        new.signature = self.signature.with_instructions(self.text)
        return new


def entries_of(run: Run[Any, Any], predictors: Mapping[str, StagePredict]) -> list[Entry]:
    """Each finished stage call of a run as DSPy traces it: in the order of stages, and of the keys within a stage.

    A cancelled call is left out, since it did nothing wrong.
    """
    calls: dict[str, list[Call]] = {path: [] for path in predictors}
    for call in run.root.walk():
        if call.kind == "stage" and call.path in calls and call.status in {"succeeded", "failed"}:
            calls[call.path].append(call)
    return [
        (
            predictor,
            predictor.declared.inputs.split(call.input),
            StagePrediction.of(call, predictor.declared.outputs.split(call.output)),
        )
        for path, predictor in predictors.items()
        for call in sorted(calls[path], key=lambda one: key_order(one.key))
    ]
