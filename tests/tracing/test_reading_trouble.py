"""Reading from a server that gives pages, is busy, slow, wrong or older: what is there is read, the rest is said."""

from __future__ import annotations

import json
from typing import Any

import anyio
import pytest
from _observations import GROUPS
from recorded_runs import ITEMS, LABELS, Desk, Item, Many, One, found, price, same

from stagegraph.schema.errors import TracingError

pytestmark = pytest.mark.anyio


async def test_a_wide_run_takes_several_pages(desk: Desk) -> None:
    """A trace with more observations than a page holds comes back whole."""
    run = await desk.run(Many(), [Item(name=str(number)) for number in range(120)])
    desk.server.requests.clear()
    again = await same(desk, run, Many())
    assert len(again.root.children) == 120
    assert len(desk.server.asked("v2/observations")) > 2


async def test_many_runs_take_several_pages(desk: Desk) -> None:
    """The list of runs goes on after its first page."""
    runs = [await desk.runner().run(price, ITEMS[0]) for _ in range(205)]
    await desk.watch.sent()
    assert set(await found(desk.langfuse, price)) == {run.id for run in runs}


@pytest.mark.parametrize("status", [429, 500, 503, 524])
async def test_a_busy_server_is_asked_again(desk: Desk, status: int) -> None:
    """After the time it names, and until it answers."""
    await desk.run(One(), ITEMS[0], run_id="r")
    desk.server.requests.clear()
    desk.server.fail_next(2, status, retry_after=0.1)
    begun = anyio.current_time()
    assert await found(desk.langfuse) == ["r"]
    assert anyio.current_time() - begun >= 0.2
    assert len(desk.server.asked("v2/observations")) == 4


async def test_patience_has_an_end(desk: Desk) -> None:
    """A server that stays away is an error that says so, and no more is waited than was allowed."""
    desk.server.status, desk.server.retry_after = 503, 3600
    with pytest.raises(TracingError, match=r"answered 503.*try again later"):
        await found(desk.source(patience=5))
    desk.server.close()
    with pytest.raises(TracingError, match="does not answer"):
        await found(desk.source(patience=0))


async def test_wrong_keys_are_named(desk: Desk) -> None:
    """Nobody has to guess why nothing is read; the key itself is not told."""
    with pytest.raises(TracingError, match="LANGFUSE_PUBLIC_KEY and LANGFUSE_SECRET_KEY") as raised:
        await found(desk.source(secret_key="sk-wrong"))
    assert "sk-wrong" not in str(raised.value)


@pytest.mark.parametrize("body", [b"<html>", b"[]", b"{}", b'{"data": 1}', b"\xff", b""])
async def test_nonsense_is_no_answer(desk: Desk, body: bytes) -> None:
    """Whatever it is, it is a TracingError that names the server."""
    desk.server.nonsense = body
    with pytest.raises(TracingError, match=desk.server.url):
        await found(desk.langfuse)


@pytest.mark.parametrize("row", [{}, {"id": 1}, {"id": "1", "metadata": "x"}])
async def test_rows_of_others_are_left_out(desk: Desk, row: dict[str, Any]) -> None:
    """What is in a trace and none of ours is counted, not read."""
    desk.server.nonsense = json.dumps({"data": [row, 5, None]}).encode()
    assert await found(desk.langfuse) == []
    assert desk.langfuse.skipped.total()


async def test_a_run_that_is_not_seen_yet_is_waited_for(desk: Desk) -> None:
    """A server takes a while to show what it got; without patience, the error says so."""
    run = await desk.run(One(), ITEMS[0])
    desk.server.lag = 2
    with pytest.raises(TracingError, match="takes up to 30 seconds"):
        await desk.langfuse.run(run.id, One())
    desk.langfuse.skipped.clear()
    assert (await desk.langfuse.run(run.id, One(), wait=10)).output == run.output
    assert not desk.langfuse.skipped


FIELDS = sorted(set().union(*GROUPS.values()))


@pytest.mark.parametrize("field", FIELDS)
async def test_a_server_may_lack_a_field(desk: Desk, field: str) -> None:
    """Nothing breaks; what cannot be used any more is counted, and the calls that remain stand where they did."""
    run = await desk.run(Many(), ITEMS[:3], **LABELS)
    desk.server.omit = {field}
    runs = [one async for one in desk.langfuse.runs(Many())]
    if field in {"id", "metadata", "input", "output"}:
        assert not runs
        assert desk.langfuse.skipped.total() >= 1
        with pytest.raises(TracingError):
            await desk.langfuse.run(run.id, Many())
        return
    (again,) = runs
    assert (again.output, again.call("one[1]").input) == (run.output, ITEMS[1])
    known = field != "parentObservationId"
    assert again.usage.requests == 3 * known
    assert again.cost is None  # as before: the model has no price
    assert [call.key for call in again.root.walk()] == [call.key for call in run.root.walk()]
    examples = await desk.langfuse.examples(Many(), stage=Many.one)
    assert len(examples) == 3
    assert not desk.langfuse.skipped


async def test_one_odd_row_does_not_spoil_a_page(desk: Desk) -> None:
    """Of a row that does not fit Langfuse's types the rest is read, and one that is none is counted."""
    run = await desk.run(Many(), ITEMS[:3], **LABELS)
    odd = {"type": 5, "usageDetails": {"input": "many"}, "level": "FANCY"}
    desk.server.spoil = lambda rows: [{**rows[0], **odd}, *rows[1:], {"id": None}]
    again = await desk.langfuse.run(run.id, Many())
    assert (again.output, again.status) == (run.output, "succeeded")
    assert dict(desk.langfuse.skipped) == {"an observation cannot be read": 1}


@pytest.mark.parametrize("prices", [["abc"], ["NaN"], ["Infinity", "-Infinity"], [{}], [[]], ["sNaN"], ["9" * 400]])
async def test_a_price_that_is_no_number_is_unknown(desk: Desk, prices: list[object]) -> None:
    """The run is read with everything else."""
    run = await desk.run(Many(), ITEMS[:3], **LABELS)
    desk.server.spoil = lambda rows: [
        {**row, "totalCost": prices[index % len(prices)]} for index, row in enumerate(rows)
    ]
    again = await desk.langfuse.run(run.id, Many())
    assert (again.output, again.cost) == (run.output, None)
