"""The sender by itself: bounds, order, counting and its end, with a sender that is held and let go."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags

from stagegraph.tracing.api import RefusedError, UnreachableError
from stagegraph.tracing.sending import Sender, close_all


class Counter:
    """Where batches are handed in: held while the door is shut, answered by what is prepared for them."""

    def __init__(self) -> None:
        self.door = threading.Event()
        self.door.set()
        self.seen: list[list[int]] = []
        self.taken: list[int] = []
        self.answers: list[Exception] = []
        self.ended = threading.Event()
        self._changed = threading.Condition()

    def send(self, spans: list[ReadableSpan]) -> None:
        batch = [int(span.name) for span in spans]
        with self._changed:
            self.seen.append(batch)
            self._changed.notify_all()
        assert self.door.wait(20)
        if self.answers:
            raise self.answers.pop(0)
        self.taken += batch

    def wait_for(self, batches: int) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.seen) >= batches, 20)


def put(box: Sender, number: int, size: int) -> None:
    """Put in what is called by a number and has a text of that size."""
    context = SpanContext(1, 1, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    box.on_end(ReadableSpan(str(number), context, attributes={"text": "x" * size}))


SPAN = 1_000
"""Bytes that are counted for a span beside its texts."""


@pytest.fixture(name="counter")
def _counter() -> Iterator[Counter]:
    counter = Counter()
    yield counter
    counter.door.set()


def outbox(counter: Counter, **options: Any) -> Sender:
    return Sender(counter.send, what="things", on_close=counter.ended.set, **{"delay": 0.01} | options)


def held(counter: Counter, **options: Any) -> Sender:
    """An outbox whose first item, -1, is being sent and held at the door."""
    counter.door.clear()
    box = outbox(counter, **options)
    put(box, -1, 1)
    counter.wait_for(1)
    return box


def test_what_is_put_in_goes_in_order(counter: Counter):
    """Items keep their order, in batches of at most so many."""
    box = outbox(counter, batch_items=7)
    for number in range(100):
        put(box, number, 1)
    assert box.flush(20)
    assert counter.taken == list(range(100))
    assert max(map(len, counter.seen)) <= 7
    close_all([box])


def test_company_is_waited_for_but_not_by_a_full_batch(counter: Counter):
    """A full batch leaves at once; fewer items wait for others, a flush or the end."""
    box = outbox(counter, delay=60, batch_items=3, batch_bytes=5 * SPAN)
    for number in range(3):
        put(box, number, 1)
    counter.wait_for(1)
    put(box, 3, 4 * SPAN)
    counter.wait_for(2)
    put(box, 4, 1)
    put(box, 5, 1)
    assert box.flush(20)
    put(box, 6, 1)
    close_all([box], 20)
    assert counter.seen == [[0, 1, 2], [3], [4, 5], [6]]


@pytest.mark.parametrize(
    ("options", "size", "room"), [({"max_items": 10}, 1, 10), ({"max_bytes": 3 * SPAN + 100}, 30, 3)]
)
def test_what_does_not_fit_is_lost(
    counter: Counter, caplog: pytest.LogCaptureFixture, options: dict[str, int], size: int, room: int
):
    """Not more than so many items or bytes wait; what comes then is counted, and said once."""
    box = held(counter, **options)
    for number in range(1000):
        put(box, number, size)
    assert box.lost == 1000 - room
    counter.door.set()
    box.flush(20)
    assert counter.taken == [-1, *range(room)]
    (record,) = caplog.records
    assert "the queue is full" in record.getMessage()
    put(box, 1000, size)
    assert box.flush(20)
    assert (counter.taken[-1], box.lost) == (1000, 1000 - room)
    close_all([box])


def test_a_flush_does_not_wait_for_what_came_later():
    """Others may go on putting things in: a flush ends when what waited at its beginning is gone."""
    stop = threading.Event()

    def send(batch: list[ReadableSpan]) -> None:
        if not stop.is_set():
            put(box, int(batch[0].name) + 1, 1)

    box: Sender = Sender(send, what="things", delay=0)
    put(box, 0, 1)
    assert box.flush(20)
    assert box.lost == 0
    stop.set()
    close_all([box], 20)


def test_a_flush_says_whether_things_were_lost(counter: Counter):
    """It is true only when all that waited went."""
    box = outbox(counter)
    assert box.flush(0)
    counter.answers = [RefusedError("no")]
    put(box, 1, 1)
    assert not box.flush(20)
    put(box, 2, 1)
    assert box.flush(float("inf"))
    assert (box.lost, counter.taken) == (1, [2])
    close_all([box])


def test_the_end_gives_up_in_time_and_counts_once(counter: Counter, caplog: pytest.LogCaptureFixture):
    """What waits or is being sent when the time is over is lost, once, even if its answer comes later."""
    box = held(counter)
    for number in range(5):
        put(box, number, 1)
    close_all([box], 0.01)
    assert box.lost == 6
    counter.answers = [RefusedError("no")]
    counter.door.set()
    assert counter.ended.wait(20)
    close_all([box], 20)
    assert (box.lost, counter.taken, len(counter.seen)) == (6, [], 1)
    assert len(caplog.records) == 1


def test_the_end_of_many_takes_the_time_of_one(counter: Counter):
    """Outboxes are closed side by side: none begins to wait when another has finished."""
    boxes = [outbox(counter, delay=60) for _ in range(5)]
    counter.door.clear()
    for number, box in enumerate(boxes):
        put(box, number, 1)
    closing = threading.Thread(target=close_all, args=(boxes, 20))
    closing.start()
    counter.wait_for(5)
    counter.door.set()
    closing.join(20)
    assert sorted(counter.taken) == list(range(5))


def test_the_end_tries_once_more_while_there_is_time(counter: Counter):
    """Neither a pause between attempts nor the wait for company outlasts the end."""
    box = outbox(counter)
    counter.answers = [UnreachableError("later", 3600), UnreachableError("soon")]
    put(box, 1, 1)
    counter.wait_for(1)
    close_all([box], 20)
    assert (counter.taken, box.lost, len(counter.seen)) == ([1], 0, 3)


def test_the_end_does_not_wait_for_what_would_come_too_late(counter: Counter):
    """When the next attempt would be after the end, the outbox gives up at once."""
    box = outbox(counter, delay=60)
    counter.answers = [UnreachableError("later", 3600)]
    put(box, 1, 1)
    close_all([box], 10)
    assert counter.ended.is_set()
    assert (counter.taken, box.lost, len(counter.seen)) == ([], 1, 1)


def test_halves_are_counted_each(counter: Counter):
    """A batch that is refused as a whole goes in halves: what is sent is not lost, and not sent twice."""
    box = outbox(counter, delay=60)
    whole = [RefusedError("too large", divisible=True)] * 2
    counter.answers = [*whole, RefusedError("no"), *whole[:1], RefusedError("no", divisible=True)]
    for number in range(8):
        put(box, number, 1)
    assert not box.flush(20)
    assert counter.seen == [[*range(8)], [0, 1, 2, 3], [0, 1], [2, 3], [2], [3], [4, 5, 6, 7]]
    assert (counter.taken, box.lost) == ([3, 4, 5, 6, 7], 3)
    close_all([box])


def test_a_part_may_be_refused(counter: Counter):
    """The server may have taken some of a batch and say how many it did not."""
    box = outbox(counter, delay=60)
    counter.answers = [RefusedError("two of five", count=2)]
    for number in range(5):
        put(box, number, 1)
    assert not box.flush(20)
    assert box.lost == 2
    close_all([box])


def test_a_fault_in_sending_does_not_end_it(counter: Counter, caplog: pytest.LogCaptureFixture):
    """Whatever breaks in sending costs one batch; its text, which may quote contents, is not logged."""
    box = outbox(counter)
    counter.answers = [ValueError("what a user wrote")]
    put(box, 1, 1)
    box.flush(20)
    put(box, 2, 1)
    assert box.flush(20)
    assert (counter.taken, box.lost) == ([2], 1)
    assert "ValueError" in caplog.text
    assert "what a user wrote" not in caplog.text
    close_all([box])


class Stubborn(logging.Handler):
    """Hands every record to another thread that puts something in, and waits for it; then it fails."""

    def __init__(self, box: Sender) -> None:
        super().__init__()
        self.box = box
        self.went = False

    def emit(self, record: logging.LogRecord) -> None:
        other = threading.Thread(target=put, args=(self.box, 7, 1))
        other.start()
        other.join(10)
        self.went = not other.is_alive()
        raise OSError("the disk is full")


@pytest.mark.parametrize("full", [True, False])
def test_handlers_of_the_log_may_do_what_they_want(counter: Counter, full: bool):
    """The warning is given without a lock held, and its failure is nobody's."""
    box = outbox(counter, max_items=0 if full else 10)
    handler = Stubborn(box)
    logger = logging.getLogger("stagegraph.tracing")
    logger.addHandler(handler)
    counter.answers = [RefusedError("no")]
    try:
        put(box, 1, 1)
        box.flush(20)
    finally:
        logger.removeHandler(handler)
    assert handler.went
    close_all([box], 20)
    assert (box.lost, counter.taken) == ((2, []) if full else (1, [7]))


def test_many_threads_lose_nothing(counter: Counter):
    """What several threads put in, flush and lose at once adds up."""
    box = outbox(counter, max_items=500, batch_items=50)

    def work(start: int) -> None:
        for number in range(start, start + 1000):
            put(box, number, 1)
            if number % 400 == 0:
                box.flush(20)

    threads = [threading.Thread(target=work, args=(1000 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    close_all([box], 20)
    assert len(set(counter.taken)) == len(counter.taken)
    assert len(counter.taken) + box.lost == 8000


def test_an_outbox_that_was_never_used_leaves_nothing(counter: Counter):
    """Without an item there is no thread, and nothing keeps the outbox in memory; the same after its end."""
    for used in (False, True):
        box = outbox(counter)
        if used:
            put(box, 1, 1)
        close_all([box], 20)
        gone = weakref.ref(box)
        del box
        gc.collect()
        assert gone() is None
