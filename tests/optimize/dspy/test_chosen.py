"""Which model a module's stages run with, whoever asks: a call, an optimizer of DSPy, or our GEPA."""

from collections.abc import Iterator
from typing import Any

import dspy
import pytest
from pydantic_ai.models.function import FunctionModel
from rules import Chain, learner, rows, separate, student
from words import before

from stagegraph import Example, Run, RunError, Runner, Stage, TuningError
from stagegraph.optimize import GEPA, Budget, GraphModule, dspy_metric, lm, to_dspy

pytestmark = pytest.mark.filterwarnings("ignore")  # DSPy's optimizers use what their own dependencies deprecate

TRAIN, VAL = rows("t", 4), rows("v", 3)


class Asked:
    """Models that answer alike and write down which of them was asked."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self._student = student()[0]

    def model(self, name: str) -> FunctionModel:
        return before(self._student, lambda *_: self.names.append(name), name)

    def taken(self) -> set[str]:
        found = set(self.names)
        self.names.clear()
        return found


@pytest.fixture(name="asked")
def _asked() -> Iterator[Asked]:
    found = Asked()
    dspy.configure(lm=lm(found.model("configured")))
    yield found
    dspy.configure(lm=None)


def better(module: GraphModule, **options: Any) -> GraphModule:
    gepa = GEPA(separate, budget=Budget(runs=60), retry_delays=(0,), **{"reflection_model": learner()} | options)
    return gepa.compile(module, trainset=TRAIN, valset=VAL)


def test_gepa_tunes_for_the_model_that_was_set(asked: Asked) -> None:
    """What `set_lm` chose is what is asked, and the tuned module still has it."""
    module = GraphModule(Chain(), model=asked.model("own"))
    module.set_lm(lm(asked.model("set")))
    tuned = better(module)
    assert asked.taken() == {"set"}
    assert "no" not in tuned(input="x").output
    assert asked.taken() == {"set"}


def test_gepa_tunes_for_the_model_of_the_context(asked: Asked) -> None:
    """As the module would ask it there."""
    module = GraphModule(Chain(), model=asked.model("own"))
    with dspy.context(lm=lm(asked.model("context"))):
        better(module)
        assert asked.taken() == {"context"}
    module(input="x")
    assert asked.taken() == {"own"}


def test_what_is_configured_is_the_last_resort(asked: Asked) -> None:
    """It is asked where nobody else names a model, and nowhere else."""
    module = GraphModule(Chain())
    module(input="x")
    assert asked.taken() == {"configured"}
    module.a(input="x")
    assert asked.taken() == {"configured"}
    assert "no" not in better(module)(input="x").output
    assert asked.taken() == {"configured"}
    GraphModule(Chain(), runner=Runner(models={"a": asked.model("path")}))(input="x")
    assert asked.taken() == {"configured", "path"}
    for own in ({"model": asked.model("own")}, {"runner": Runner(asked.model("own"))}):
        GraphModule(Chain(), **own)(input="x")
        assert asked.taken() == {"own"}

    class Own(Chain):
        c = Stage(str, Chain.c.agent, model=asked.model("stage"))

    GraphModule(Own())(input="x")
    assert asked.taken() == {"configured", "stage"}
    dspy.configure(lm=None)
    with pytest.raises(RunError, match="no model"):
        GraphModule(Chain())(input="x")


def test_sampling_again_stays_with_the_module_s_model(asked: Asked) -> None:
    """BootstrapFewShot's second round makes a copy of what is configured, which is no choice of a model."""

    def wrong(_example: Example[str], _run: Run[str, str]) -> bool:
        return False

    for module, names in (
        (GraphModule(Chain(), model=asked.model("own")), {"own"}),
        (GraphModule(Chain()), {"configured"}),
    ):
        bootstrap = dspy.BootstrapFewShot(metric=dspy_metric(wrong), max_rounds=2)
        bootstrap.compile(module, trainset=to_dspy(TRAIN, Chain()))
        assert asked.taken() == names


def test_an_lm_may_write_the_texts() -> None:
    """As `reflection_model` or under the name that it has in `dspy.GEPA`, and somebody hears of what happens."""
    module = GraphModule(Chain(), model=student()[0])
    heard: list[str] = []
    for name in ("reflection_model", "reflection_lm"):
        tuned = better(module, **{name: lm(learner()), "reflection_model": lm(learner()) if name[-1] == "l" else None})
        assert "no" not in tuned(input="x").output
    better(module, reflection_lm=learner(), reflection_model=None, callback=lambda event, _: heard.append(event))
    assert {"run", "proposing", "proposed", "validated"} <= set(heard)
    with pytest.raises(TuningError, match="two names of one thing"):
        better(module, reflection_lm=learner())
