"""Where a tuning stops: before the next run that it cannot pay for, and with everything that was paid for kept."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anyio
import pytest
from pydantic_ai.messages import ModelMessage
from pydantic_ai.models.function import AgentInfo
from rules import POOL, coupled, rows, searched, student, tuned
from words import before

from stagegraph import TuningError
from stagegraph.optimize import Budget, Proposal

pytestmark = pytest.mark.anyio

LARGE: dict[str, Any] = {"train": rows("t", 8), "val": rows("v", 10), "minibatch": 8, "concurrency": 2}
"""More examples than run at once."""
RUN = {"usd": 0.04, "tokens": 60}
"""What one run costs: four requests."""


@pytest.mark.parametrize("concurrency", [1, 2, 5])
@pytest.mark.parametrize("limit", [{"usd": 0.5}, {"usd": 1.1}, {"tokens": 1_000}])
async def test_money_and_tokens_are_looked_at_before_each_run(limit: dict[str, Any], concurrency: int) -> None:
    """Within a step, too: what is spent beyond the budget are the runs that were going on, and no more."""
    known = LARGE | {"concurrency": concurrency, "model": student(cost="0.01")[0]}
    result = await tuned(**known, budget=Budget(**limit))
    ((kind, most),) = limit.items()
    assert result.found.stopped == ("the budget of 1000 tokens" if kind == "tokens" else f"the budget of ${most:g}")
    assert result.found.error is None
    assert most <= getattr(result.spent, kind) < most + concurrency * RUN[kind] + 1e-9
    assert result.found.candidates


async def test_a_text_is_not_asked_for_when_nothing_is_left() -> None:
    """The proposal would cost more than there is."""
    asked: list[Proposal] = []
    budget = Budget(usd=0.4 + 8 * RUN["usd"] - 0.001)
    result = await tuned(
        **LARGE | {"concurrency": 8}, budget=budget, model=student(cost="0.01")[0], proposer=asked.append
    )
    assert not asked
    assert result.spent.runs == 18


async def test_what_was_paid_for_is_taken_up_with_a_larger_budget(tmp_path: Path) -> None:
    """Stopped in the middle of steps, it asks in all what an unlimited one asks, and ends like it."""
    data = {"train": rows("t", 4), "val": rows("v", 4), "minibatch": 4, "concurrency": 2, "proposer": POOL}
    whole, all_requests = student(cost="0.01")
    expected = await searched(coupled, **data, budget=Budget(usd=100), model=whole)
    model, requests = student(cost="0.01")
    known = {**data, "model": model, "run_dir": tmp_path}
    for usd in (0.2, 0.4, 0.6):
        assert "the budget of" in (await searched(coupled, **known, budget=Budget(usd=usd))).stopped
    result = await searched(coupled, **known, budget=Budget(usd=100))
    assert [one.texts for one in result.candidates] == [one.texts for one in expected.candidates]
    assert result.spent.runs == expected.spent.runs
    assert requests == all_requests


async def test_a_budget_that_does_not_pay_for_the_start_says_so(tmp_path: Path) -> None:
    """There is nothing to give then; what was run is kept for a larger one."""
    model, requests = student(cost="0.01")
    with pytest.raises(TuningError, match=r"on all 10 validation examples: the budget of \$0.1 was reached after 4"):
        await tuned(**LARGE, budget=Budget(usd=0.1), model=model, run_dir=tmp_path)
    assert requests["a"] == 4
    with pytest.raises(TuningError, match="the budget of 300 tokens was reached"):
        await tuned(**LARGE, budget=Budget(tokens=300), model=model, run_dir=tmp_path)
    assert requests["a"] < 4 + 10


async def test_the_deadline_ends_what_is_going_on(tmp_path: Path) -> None:
    """A model that never answers holds nothing up, and what its runs had paid for is not asked again."""
    model, requests = student()
    ended = 0

    async def act(_messages: list[ModelMessage], info: AgentInfo) -> None:
        nonlocal ended
        if (info.instructions or "").startswith("c"):
            try:
                await anyio.sleep_forever()
            finally:
                ended += 1

    with pytest.raises(TuningError, match=r"validation examples: the budget of 0.5 seconds was reached after 0"):
        await tuned(**LARGE, budget=Budget(seconds=0.5), model=before(model, act), run_dir=tmp_path)
    begun = requests["a"]
    assert ended <= begun <= 2
    result = await tuned(**LARGE, budget=Budget(runs=10), model=model, run_dir=tmp_path)
    assert result.spent.runs == 10
    assert requests["a"] == 10 + 10  # the seed, and the verdict on it


async def test_a_deadline_leaves_the_best_that_was_found() -> None:
    """It ends the search, and is no error."""
    stuck = False

    async def act(_messages: list[ModelMessage], _info: AgentInfo) -> None:
        if stuck:
            await anyio.sleep_forever()

    def callback(event: str, data: Any) -> None:
        nonlocal stuck
        stuck = stuck or (event == "validated" and data["candidate"] == 0)

    known = {**LARGE, "val": rows("v", 3), "budget": Budget(seconds=2)}
    result = await searched(coupled, **known, model=before(student()[0], act), callback=callback)
    assert stuck
    assert result.stopped == "the budget of 2 seconds"
    assert result.error is None
    assert [one.mean for one in result.candidates] == [0]
