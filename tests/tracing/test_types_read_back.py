"""What is read back from a server has the types that it had, where the declared type leaves them open."""

from __future__ import annotations

from datetime import date
from typing import Any

import pytest
from pydantic import BaseModel, Field, computed_field
from recorded_runs import Desk

from stagegraph import Graph, step

pytestmark = pytest.mark.anyio


class Approve(BaseModel):
    reason: str


class Reject(BaseModel):
    reason: str


class Area(BaseModel):
    side: int = Field(alias="theSide")

    @computed_field
    @property
    def area(self) -> int:
        return self.side**2


class Derived(Area):
    more: str = Field("m" * 300, alias="theMore")


@step
async def decide(given: Any) -> Approve | Reject:
    return Reject(reason="r")


@step
async def measure(area: Area) -> dict[str, Any]:
    return {"area": (area.area, b"x" * 300), "at": date(2026, 1, 1)}


class Open(Graph[bytes | str, Area]):
    decide = decide
    measure = measure

    async def flow(self, text: bytes | str) -> Area:
        await self.decide((1, True, text))
        await self.measure(Derived(theSide=3))
        await self.measure(Area(theSide=3))
        return Derived(theSide=4)


async def test_every_value_comes_back_with_its_type(desk: Desk) -> None:
    """A member of a union, a subclass, bytes beside text, and what stands under `Any`, however long it is."""
    run = await desk.run(Open(), b"YWJj", run_id="r")
    assert run.status == "succeeded"
    again = await desk.langfuse.run("r", Open())
    for call in run.root.walk():
        found = again.call(call.key)
        for value, other in ((call.input, found.input), (call.output, found.output)):
            assert (type(other), other) == (type(value), value)
    assert repr(again.call("decide").input) == "(1, True, b'YWJj')"
    assert again.metadata == {}
    assert [type(one.input) async for one in desk.langfuse.runs(Open())] == [bytes]


async def test_a_value_whose_type_was_cut_is_said_not_to_be_whole(desk: Desk) -> None:
    """It gives no example: the part that arrived does not tell what it was."""
    given = b"x" * 191_991  # as base64 within the limit of 256,000, and beyond it with the name of the type
    run = await desk.run(Open(), given, run_id="r")
    assert run.status == "succeeded"
    assert [one.metadata async for one in desk.langfuse.runs(Open())] == [{}]
    assert await desk.langfuse.examples(Open(), stage=Open.decide) == []
    assert desk.langfuse.skipped["the record does not hold the whole input"] == 1
