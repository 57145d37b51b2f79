"""Runs that go on by themselves, and their events."""

from __future__ import annotations

import asyncio
import itertools
import math
from datetime import UTC, datetime, timedelta
from decimal import Decimal

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from pydantic_ai import Agent
from pydantic_ai.models.function import FunctionModel
from pydantic_ai.models.test import TestModel

from scripted import Turnstile, echo, fails, others
from stagegraph import Event, Graph, LimitError, Limits, LiveRun, RunError, Runner, Stage, fan_out, parse_event, step
from stagegraph.data.events import (
    CallFinished,
    CallStarted,
    EventsDropped,
    RunFinished,
    TextDelta,
    ToolCalled,
    number_at,
)
from stagegraph.journal import MemoryJournal


@step
async def double(number: int) -> int:
    return number * 2


@step
async def fail(number: int) -> int:
    raise ValueError(f"no {number}")


class Many(Graph[int, int]):
    """A fan-out over steps."""

    double = double

    async def flow(self, number: int) -> int:
        return len(await fan_out(self.double, range(number)))


class Write(Graph[str, list[str]]):
    """A fan-out over stages."""

    write = Stage(str, Agent(output_type=str))

    async def flow(self, text: str) -> list[str]:
        return await fan_out(self.write, text.split())


async def read(live: LiveRun, **options) -> list[Event]:
    with anyio.fail_after(30):
        return [event async for event in live.events(**options)]


async def test_a_live_run_gives_its_result():
    """`start` gives at once a run that goes on by itself; `result` waits for it, any number of times."""
    live = Runner(model=echo()).start(Write(), "a b", run_id="r1")
    assert live.run_id == "r1"
    assert not live.done
    assert (await live.result()).output == ["a", "b"]
    assert await live.result() is await live.result()
    assert live.done


async def test_a_live_run_shows_its_record_while_it_goes_on():
    """`live.run` is the record so far: running calls are running, finished ones have their output."""
    gate = Turnstile()
    live = Runner(model=gate.model).start(Write(), "a b")
    with anyio.fail_after(30):
        await gate.crowd(2)
        so_far = live.run
        assert (so_far.status, so_far.output) == ("running", None)
        assert {call.key: call.status for call in so_far.calls()} == {"write[0]": "running", "write[1]": "running"}
        unread = live.run
        gate.open()
        await live.result()
    assert so_far.call("write[0]").status == unread.call("write[0]").status == "running"
    assert live.run.call("write[0]").output == "a"


async def test_events_tell_what_happened_in_order():
    """Numbers count from 0 without a gap, calls start before they finish, parents before children, the run frames all."""
    live = Runner(model=echo()).start(Write(), "a b")
    events = await read(live)
    assert [event.seq for event in events] == list(range(len(events)))
    assert {event.run_id for event in events} == {live.run_id}
    assert all(a.time <= b.time for a, b in itertools.pairwise(events))
    told = [(event.type, getattr(event, "key", None)) for event in events]
    assert told[:3] == [("run_started", None), ("call_started", ""), ("fan_out_started", "write")]
    assert told[-2:] == [("call_finished", ""), ("run_finished", None)]
    for key in ("write[0]", "write[1]"):
        assert told.index(("call_started", key)) < told.index(("call_finished", key))
    last = events[-1]
    assert isinstance(last, RunFinished)
    assert (last.status, last.output, last.error) == ("succeeded", ["a", "b"], None)
    assert [parse_event(event.model_dump_json()) for event in events] == events
    finished = next(event for event in events if isinstance(event, CallFinished) and event.key == "write[0]")
    assert (finished.status, finished.requests, finished.kind, finished.path) == ("succeeded", 1, "stage", "write")


async def test_several_readers_get_the_same_events():
    """Readers are independent of each other, and of when they read."""
    gate = Turnstile()
    live = Runner(model=gate.model).start(Write(), "a b c")
    found: list[list[Event]] = []

    async def reader() -> None:
        found.append([event async for event in live.events()])

    with anyio.fail_after(30):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(reader)
            await gate.crowd(3)
            group.start_soon(reader)
            gate.open()
    assert len(found) == 4
    assert all(events == found[0] for events in found)


async def test_a_reader_that_was_cut_off_goes_on_after_what_it_had():
    """A late one gets everything, as often as it likes; `after=` gives what came after that number."""
    live = Runner(model=echo()).start(Write(), "a b")
    await live.result()
    events = await read(live)
    assert events[0].type == "run_started"
    assert await read(live) == events
    assert await read(live, after=4) == events[5:]
    assert await read(live, after=events[-1].seq) == []
    assert await read(live, after=10**9) == []


@pytest.mark.parametrize("kind", ["plain", "recorded"])
async def test_every_event_has_a_number_of_its_own(kind: str):
    """However quickly one follows the other; the times in the record of a call give the same numbers."""
    journal = MemoryJournal() if kind == "recorded" else None
    live = Runner(journal=journal).start(Many(), 1000)
    events = await read(live)
    numbers = [event.number for event in events]
    assert numbers == sorted(set(numbers))
    if journal is None:
        return
    rows = {row.key: row for row in await journal.calls(live.run_id)}
    for event in events:
        if isinstance(event, CallStarted):
            assert event.time.timestamp() == pytest.approx(rows[event.key].started, abs=1e-6)
        elif isinstance(event, CallFinished):
            row = rows[event.key]
            assert event.number == number_at(row.started + row.duration)


async def test_a_graph_in_which_something_changed_ends_anew_when_its_run_is_resumed():
    """A graph whose calls are all recalled keeps the times of its first end, and its end is not told again."""
    journal = MemoryJournal()
    stopped: list[bool] = []

    @step
    async def stops(number: int) -> int:
        stopped.append(True)
        if len(stopped) == 1:
            raise ValueError("the first time")
        return number

    class Below(Graph[int, int]):
        one = double

        async def flow(self, number: int) -> int:
            return await self.one(number + changed)

    class Above(Graph[int, list[int]]):
        same = Below()
        other = Below()
        last = stops

        async def flow(self, number: int) -> list[int]:
            nonlocal changed
            changed = 0
            first = await self.same(number)
            changed = len(stopped)
            return [first, await self.other(number), await self.last(number)]

    changed = 0
    runner = Runner(journal=journal)
    with pytest.raises(RunError, match="the first time"):
        await runner.run(Above(), 1, run_id="r")
    before = {row.key: (row.started, row.duration) for row in await journal.calls("r")}
    live = await runner.start_resume("r")
    events = await read(live)
    after = {row.key: (row.started, row.duration) for row in await journal.calls("r")}
    assert (await live.result()).output == [2, 4, 1]
    assert [key for key in before if before[key] == after[key]] == ["same", "same.one"]
    resumed = await live.first_event()
    new = [event.key for event in events if isinstance(event, CallFinished) and event.number >= resumed]
    assert new == ["other.one", "other", "last", ""]
    assert before["other"][0] == after["other"][0]


async def test_a_reader_that_stops_does_not_disturb():
    """Leaving the loop early ends that reader alone."""
    gate = Turnstile()
    live = Runner(model=gate.model).start(Write(), "a")
    async for event in live.events():
        if event.type == "call_started":
            break
    gate.open()
    assert (await live.result()).output == ["a"]


async def test_a_reader_that_falls_behind_is_told_how_much_it_missed():
    """Events are bounded: a slow reader gets `EventsDropped` in place of what is gone, and goes on after it."""
    live = Runner().start(Many(), 12_000)
    await live.result()
    first, *rest = await read(live)
    assert isinstance(first, EventsDropped)
    assert first.count > 0
    assert rest[0].seq == first.count == first.seq + 1
    assert [event.seq for event in rest] == list(range(first.count, first.count + len(rest)))
    assert isinstance(rest[-1], RunFinished)
    assert await read(live, after=first.seq) == rest


async def test_text_comes_in_pieces_only_on_request():
    """With `deltas=True` models stream and every piece is an event at its call; without, there is none."""

    async def pieces(_messages: object, _info: object):
        for piece in ("Hel", "lo", "!"):
            yield piece

    runner = Runner(model=FunctionModel(stream_function=pieces))
    live = runner.start(Write(), "a b", deltas=True)
    texts: dict[str, str] = {}
    for event in await read(live):
        if isinstance(event, TextDelta):
            texts[event.key] = texts.get(event.key, "") + event.text
            assert event.path == "write"
    assert texts == {"write[0]": "Hello!", "write[1]": "Hello!"}
    assert (await live.result()).output == ["Hello!", "Hello!"]
    quiet = await read(Runner(model=echo()).start(Write(), "a"))
    assert not [event for event in quiet if isinstance(event, TextDelta)]


async def test_tool_calls_are_events():
    """Each tool that an agent calls is told with the key of its call."""
    agent = Agent(output_type=str, name="write")

    @agent.tool_plain
    def look(text: str) -> str:
        return text

    events = await read(Runner(model=TestModel()).start(Stage(str, agent), "x"))
    assert [(event.key, event.tool) for event in events if isinstance(event, ToolCalled)] == [("write", "look")]


async def test_the_last_event_of_a_failed_run_is_its_end():
    """`RunFinished` says how the run failed, in the words of the result's error, and `CallFinished` what failed in it."""
    live = Runner().start(fail, 3)
    last = (await read(live))[-1]
    with pytest.raises(RunError) as caught:
        await live.result()
    assert isinstance(last, RunFinished)
    assert (last.status, last.error, last.output) == ("failed", str(caught.value), None)
    assert live.run.status == "failed"
    events = await read(Runner().start(double, "many"))  # an input that is refused
    assert [event.type for event in events] == ["run_started", "call_started", "call_finished", "run_finished"]
    assert events[-1].status == "failed"
    limited = Runner(model=echo()).start(Write(), "a b c", limits=Limits(requests=1))
    last = (await read(limited))[-1]
    assert isinstance(last, RunFinished)
    assert "limit" in last.error
    with pytest.raises(LimitError):
        await limited.result()
    live = Runner(model=fails(ConnectionError("down"))).start(Write(), "a")
    ended = [event for event in await read(live) if isinstance(event, CallFinished)]
    assert [(event.key, event.status) for event in ended] == [("write[0]", "failed"), ("", "failed")]
    assert "down" in ended[0].error


async def test_cancelling_ends_everything_and_keeps_the_record():
    """`cancel` returns when nothing of the run is left; the result is an error with the partial record."""
    gate = Turnstile()
    before = others()
    live = Runner(model=gate.model).start(Write(), "a b")
    with anyio.fail_after(30):
        await gate.crowd(2)
        await live.cancel()
    assert gate.inside == []
    assert others() <= before
    with pytest.raises(RunError, match="the run of Write was cancelled") as caught:
        await live.result()
    assert caught.value.run.status == "cancelled"
    assert [call.status for call in caught.value.run.calls()] == ["cancelled", "cancelled"]
    events = await read(live)
    assert isinstance(events[-1], RunFinished)
    assert events[-1].status == "cancelled"
    started = {event.key for event in events if isinstance(event, CallStarted)}
    assert started == {event.key for event in events if isinstance(event, CallFinished)} == {"", "write[0]", "write[1]"}


async def test_a_run_may_be_cancelled_before_it_began_and_after_its_end():
    """At once, it has a result (the error), a record and a last event; a result that is there stays."""
    live = Runner().start(double, 1)
    await live.cancel()
    with pytest.raises(RunError, match="the run of double was cancelled") as caught:
        await live.result()
    assert caught.value.run.status == live.run.status == "cancelled"
    events = await read(live)
    assert isinstance(events[-1], RunFinished)
    assert events[-1].status == "cancelled"
    live = Runner().start(double, 2)
    await live.result()
    await live.cancel()
    assert ((await live.result()).output, live.run.status) == (4, "succeeded")


async def test_cancelling_the_wait_does_not_cancel_the_run():
    """A client that stops waiting leaves the run going."""
    gate = Turnstile()
    live = Runner(model=gate.model).start(Write(), "a")
    waiter = asyncio.create_task(live.result())
    with anyio.fail_after(30):
        await gate.crowd(1)
        waiter.cancel()
        await asyncio.wait([waiter])
        assert waiter.cancelled()
        gate.open()
        assert (await live.result()).output == ["a"]


async def test_a_run_nobody_asks_about_is_quiet():
    """A failed live run that nobody waits for warns of nothing."""
    live = Runner().start(fail, 1)
    await asyncio.wait([live.task])
    assert live.task.exception() is None


NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
BASE = {"run_id": "r", "seq": 3, "time": NOW}
SAMPLES = [
    {"type": "run_started", "graph": "Build"},
    {"type": "call_started", "key": "a[0]", "path": "a", "kind": "stage"},
    {"type": "fan_out_started", "key": "a", "size": 3},
    {"type": "text_delta", "key": "a", "path": "a", "text": 'é"\n\u2028'},
    {"type": "tool_called", "key": "a", "path": "a", "tool": "t"},
    {"type": "call_retried", "key": "a", "path": "a", "attempt": 1, "error": "x", "wait": 0.5},
    {
        "type": "call_finished",
        "key": "a",
        "path": "a",
        "kind": "step",
        "status": "failed",
        "error": "e",
        "duration": 1.5,
        "cost": Decimal("0.010"),
        "input_tokens": 4,
    },
    {"type": "run_finished", "status": "succeeded", "output": {"a": [1, None]}, "duration": 2.0},
    {"type": "events_dropped", "count": 7},
]


@pytest.mark.parametrize("fields", SAMPLES, ids=lambda fields: fields["type"])
def test_every_event_survives_json(fields: dict[str, object]):
    """`parse_event(event.model_dump_json())` is the same event of the same class, from text and from bytes."""
    event = TypeAdapter(Event).validate_python({**BASE, **fields})
    assert parse_event(event.model_dump_json()) == event
    again = parse_event(event.model_dump_json().encode())
    assert type(again) is type(event)
    assert again.time == NOW


def test_the_samples_cover_every_event():
    """A new kind of event needs a sample above."""
    kinds = TypeAdapter(Event).json_schema()["discriminator"]["mapping"]
    assert {fields["type"] for fields in SAMPLES} == set(kinds)


@given(st.text(), st.integers(0), st.datetimes(timezones=st.just(UTC)), st.text())
@settings(deadline=None)
def test_any_text_survives_json(key: str, seq: int, time: datetime, text: str):
    """Whatever a model writes comes back from JSON as it was."""
    event = TextDelta(run_id="r", seq=seq, time=time, key=key, path=key, text=text)
    again = parse_event(event.model_dump_json())
    assert again == event
    assert again.time - time == timedelta(0)


@pytest.mark.parametrize("text", ["", "{}", '{"type": "nothing"}', "[1]"])
def test_what_is_no_event_is_refused(text: str):
    """Other JSON is a validation error."""
    with pytest.raises(ValidationError):
        parse_event(text)


@step
async def garbles(text: str) -> str:
    msg = f"bad {text}"
    raise ValueError(msg)


@step
async def infinite(text: str) -> dict[str, float | str]:
    return {"text": text, "inf": math.inf, "nan": math.nan}


async def test_what_no_file_can_hold_stands_in_events_as_it_can():
    """Half a surrogate pair in an error or an output, and numbers that JSON cannot say, are no reason to fail."""
    for node in (garbles, infinite):
        live = Runner().start(node, "\ud800")
        events = await read(live)
        assert [parse_event(event.model_dump_json()) for event in events] == events
        if node is garbles:
            assert "bad \\ud800" in str(events[-1].error)
            with pytest.raises(RunError):
                await live.result()
        else:
            assert events[-1].output == {"text": "?", "inf": "Infinity", "nan": "NaN"}
