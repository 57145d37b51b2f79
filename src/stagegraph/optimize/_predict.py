"""One stage as a DSPy predictor: what optimizers read and write lives here, what runs is the stage itself."""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast

import dspy
from pydantic import ValidationError
from pydantic_core import to_jsonable_python

from stagegraph.data.prompt import Demo, Prompt, parsed
from stagegraph.schema.errors import DeclarationError

from ._fields import Fields, reject_reserved, signature_of
from ._lm import PydanticEngine
from ._loop import await_here, run_here

if TYPE_CHECKING:
    from stagegraph.nodes.stage import Stage

__all__ = ["StagePredict"]

Ask = Callable[["StagePredict", Any], Awaitable[Any]]
"""Runs a predictor's stage alone on one value."""


class Declared:
    """What a predictor shares with its copies, by reference: the stage and how it is asked."""

    def __init__(self, path: str, stage: Stage[Any, Any], ask: Ask, demo_limit: int) -> None:
        self.path = path
        self.stage = stage
        self.ask = ask
        self.demo_limit = demo_limit
        what = f"stage `{path}`"
        self.takes = Fields(stage.__node__.input_type, "input")
        self.gives = Fields(stage.__node__.output_type, "output", frozenset(self.takes.names))
        for fields in (self.takes, self.gives):
            reject_reserved(fields, what)
        clash = self.takes.names.keys() & self.gives.names.keys()
        if clash:
            msg = f"{what}: its input and its output both need the field `{min(clash)}`: rename one of them"
            raise DeclarationError(msg)

    def __deepcopy__(self, _memo: object) -> Self:
        return self


_DESCRIBED = "described"
"""Where a saved predictor has what is said about tools and fields of the answer; DSPy knows no such thing."""


class StagePredict(dspy.Predict):
    """The predictor of one stage: `signature.instructions` and `demos` are its prompt, and the agent answers.

    Called by itself it runs its stage alone. In a graph the `GraphModule` runs all stages and reads their predictors.
    """

    def __init__(self, declared: Declared, prompt: Prompt) -> None:
        self._declared = declared
        self._seed = prompt
        text = prompt.instructions if prompt.instructions is not None else declared.stage.instructions
        cast("Any", super()).__init__(signature_of(declared.path, declared.takes, declared.gives, text))
        self.demos = [self._fields_of(demo) for demo in prompt.demos]
        self._written = [self._demo(demo) for demo in cast("list[Mapping[str, Any]]", self.demos)]

    @property
    def path(self) -> str:
        """Where the stage is declared: `build.code`."""
        return self._declared.path

    @property
    def declared(self) -> Declared:
        """The stage and the fields of its types."""
        return self._declared

    def _fields_of(self, demo: Demo) -> dspy.Example:
        takes, gives = self._declared.takes, self._declared.gives
        given, answer = takes.schema.load(demo.input), gives.schema.load(demo.output)
        example = cast("Any", dspy.Example(**takes.split(given), **gives.split(answer)))
        return example.with_inputs(*takes.names)

    def prompt(self) -> Prompt:
        """What the stage is to say to its model now.

        Demos that an optimizer found are left out where they do not fit the stage's types, or are too long.
        """
        text = self.text
        seed = self._seed.instructions
        if seed is None:
            seed = self._declared.stage.instructions
        if inspect.cleandoc(text) == inspect.cleandoc(seed):
            text = seed  # as it was written: DSPy trims it
        found = (self._demo(demo) for demo in cast("list[Mapping[str, Any]]", self.demos))
        fitting = tuple(self._fitting(demo for demo in found if demo is not None))
        return Prompt(text, fitting, self._seed.tools, self._seed.fields)

    def _fitting(self, demos: Iterable[Demo]) -> Iterator[Demo]:
        """The demos that a person put there, and as many of the others as there is room for."""
        room = self._declared.demo_limit
        for demo in demos:
            size = len(json.dumps([demo.input, demo.output], ensure_ascii=False))
            if demo in self._written:
                yield demo
            elif size <= room:
                room -= size
                yield demo

    @property
    def text(self) -> str:
        """The instructions, as they were set; DSPy puts a sentence about the fields where there are none."""
        signature = cast("Any", self.signature)
        text = cast("str", signature.__doc__ or "")
        return "" if text == signature.with_instructions("").__doc__ else text

    def _demo(self, raw: Mapping[str, Any]) -> Demo | None:
        fields = dict(raw.items())
        values: list[Any] = []
        for side in (self._declared.takes, self._declared.gives):
            if not any(name in fields for name in side.names):
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
        output = run_here(self._answer(inputs), "await predictor.acall(...)")
        return self._predicted(inputs, output)

    async def aforward(self, **inputs: Any) -> dspy.Prediction:
        """Run the stage alone.

        Raises:
            RunError: it failed.
        """
        return self._predicted(inputs, await await_here(self._answer(inputs)))

    async def _answer(self, inputs: Mapping[str, Any]) -> Any:
        return await self._declared.ask(self, self._declared.takes.join(inputs))

    def _predicted(self, inputs: Mapping[str, Any], output: object) -> dspy.Prediction:
        from ._trace import recorded  # noqa: PLC0415 - it reads predictors

        prediction = cast("Any", dspy.Prediction).from_completions([self._declared.gives.split(output)])
        recorded([(self, dict(inputs), prediction)])
        return prediction

    def dump_state(self, json_mode: bool = True) -> dict[str, Any]:
        """The prompt as plain data; which model runs is the graph's affair and not part of it."""
        lm, self.lm = self.lm, None if _is_ours(self.lm) else self.lm
        try:
            state = super().dump_state(json_mode=json_mode)
        finally:
            self.lm = lm
        state["signature"]["instructions"] = self.text
        if described := Prompt(tools=self._seed.tools, fields=self._seed.fields).data():
            state[_DESCRIBED] = described
        return to_jsonable_python(state, fallback=str) if json_mode else state

    def load_state(self, state: dict[str, Any], *, allow_unsafe_lm_state: bool = False) -> Self:
        """Take over a prompt.

        Raises:
            PromptError: what it says about tools and fields is no text.
        """
        given = parsed(self.path, state.get(_DESCRIBED), "the saved program")
        self._seed = replace(self._seed, tools=given.tools, fields=given.fields)
        own = cast("Any", self.signature).dump_state()["fields"]
        known = {name: value for name, value in state.items() if name != _DESCRIBED}
        kept = {**known, "signature": {"instructions": state["signature"]["instructions"], "fields": own}}
        cast("Any", super()).load_state(kept, allow_unsafe_lm_state=allow_unsafe_lm_state)
        demos = cast("list[Any]", self.demos)
        self.demos = [dspy.Example(cast("Any", demo)) if isinstance(demo, dict) else demo for demo in demos]
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """A predictor of its own that shares the stage, its agent and the model."""
        new = self.__class__.__new__(self.__class__)
        memo[id(self)] = new
        shared = {"_declared", "_seed", "lm", "callbacks"}
        state = {name: value if name in shared else copy.deepcopy(value, memo) for name, value in vars(self).items()}
        vars(new).update(state, callbacks=list(state["callbacks"]))
        # Some optimizers write into the signature class itself.
        new.signature = cast("Any", self.signature).with_instructions(self.text)
        return new


def _is_ours(lm: object) -> bool:
    return isinstance(getattr(lm, "_engine_spec", None), PydanticEngine)
