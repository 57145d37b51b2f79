"""GEPA as a DSPy teleprompter: the same search, on a `GraphModule`."""

from pathlib import Path
from typing import Any

import dspy
import pytest
from rules import Chain, coupled, learner, rows, separate, student

from stagegraph import TuningError
from stagegraph.optimize import GEPA, Budget, Candidates, GraphModule, to_dspy
from stagegraph.optimize.tuning.options import Options
from stagegraph.optimize.tuning.search import search

pytestmark = pytest.mark.anyio

TRAIN, VAL = rows("t", 4), rows("v", 3)


def gepa(metric: Any = coupled, **options: Any) -> GEPA:
    return GEPA(metric, budget=Budget(runs=80), retry_delays=(0, 0), **{"reflection_model": learner()} | options)


async def test_compile_finds_what_the_search_finds(tmp_path: Path) -> None:
    """The same candidates in the same order, in a copy of the module; the original stays as it was."""
    module = GraphModule(Chain(), model=student()[0])
    seed = module.prompts()
    teleprompter = gepa(run_dir=tmp_path)
    better = teleprompter.compile(module, trainset=TRAIN, valset=VAL)
    options = Options(
        budget=Budget(runs=80), model=student()[0], reflection_model=learner(), retry_delays=(0, 0), prompts=seed
    )
    found = await search(Chain(), coupled, TRAIN, VAL, options)
    assert teleprompter.found is not None
    assert [one.texts for one in teleprompter.found.candidates] == [one.texts for one in found.candidates]
    assert better.prompts().digest == found.prompts.digest
    assert module.prompts().digest == seed.digest
    assert "no" not in better(input="x").output


async def test_rows_of_dspy_will_do() -> None:
    """Examples in DSPy's form are read as the graph's own, and the async twin gives the same."""
    module = GraphModule(Chain(), model=student()[0])
    train, val = (to_dspy(part, Chain()) for part in (TRAIN, VAL))
    pool = Candidates({path: [f"{path}: RULE-{path}"] for path in "abc"})
    teleprompter = gepa(separate, proposer=pool, reflection_model=None)
    better = await teleprompter.acompile(module, trainset=train, valset=val)
    assert "no" not in (await better.acall(input="x")).output


async def test_only_a_graph_module_is_taken() -> None:
    """Another module is for `dspy.GEPA`, and the error says so."""
    with pytest.raises(TuningError, match=r"dspy\.GEPA takes any module"):
        gepa().compile(dspy.Predict("a -> b"), trainset=TRAIN, valset=VAL)  # type: ignore[arg-type]
    with pytest.raises(TuningError, match="there are no validation examples"):
        gepa().compile(GraphModule(Chain(), model=student()[0]), trainset=TRAIN, valset=[])
