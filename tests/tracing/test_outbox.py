"""The outbox by itself: bounds, order, counting and its end, with a sender that is held and let go."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from typing import Any

import pytest

from stagegraph.tracing.api import RefusedError, UnreachableError
from stagegraph.tracing.sending import Sender
from stagegraph.tracing.sending import close_all


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

    def send(self, batch: list[int]) -> None:
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


@pytest.fixture(name="counter")
def _counter() -> Iterator[Counter]:
    counter = Counter()
    yield counter
    counter.door.set()


def outbox(counter: Counter, **options: Any) -> Sender[int]:
    return Sender(counter.send, what="things", on_end=counter.ended.set, **{"delay": 0.01} | options)


def held(counter: Counter, **options: Any) -> Sender[int]:
    """An outbox whose first item, -1, is being sent and held at the door."""
    counter.door.clear()
    box = outbox(counter, **options)
    box.put(-1, 1)
    counter.wait_for(1)
    return box


def test_what_is_put_in_goes_in_order(counter: Counter):
    """Items keep their order, in batches of at most so many."""
    box = outbox(counter, batch_items=7)
    for number in range(100):
        box.put(number, 1)
    assert box.flush(20)
    assert counter.taken == list(range(100))
    assert max(map(len, counter.seen)) <= 7
    box.close()


def test_company_is_waited_for_but_not_by_a_full_batch(counter: Counter):
    """A full batch leaves at once; fewer items wait for others, a flush or the end."""
    box = outbox(counter, delay=60, batch_items=3, batch_bytes=100)
    for number in range(3):
        box.put(number, 1)
    counter.wait_for(1)
    box.put(3, 100)
    counter.wait_for(2)
    box.put(4, 1)
    box.put(5, 1)
    assert box.flush(20)
    box.put(6, 1)
    box.close(20)
    assert counter.seen == [[0, 1, 2], [3], [4, 5], [6]]


@pytest.mark.parametrize(("options", "size", "room"), [({"max_items": 10}, 1, 10), ({"max_bytes": 100}, 30, 3)])
def test_what_does_not_fit_is_lost(
    counter: Counter, caplog: pytest.LogCaptureFixture, options: dict[str, int], size: int, room: int
):
    """Not more than so many items or bytes wait; what comes then is counted, and said once."""
    box = held(counter, **options)
    for number in range(1000):
        box.put(number, size)
    assert box.lost == 1000 - room
    counter.door.set()
    box.flush(20)
    assert counter.taken == [-1, *range(room)]
    (record,) = caplog.records
    assert "too many wait" in record.getMessage()
    box.put(1000, size)
    assert box.flush(20)
    assert (counter.taken[-1], box.lost) == (1000, 1000 - room)
    box.close()


def test_a_flush_does_not_wait_for_what_came_later():
    """Others may go on putting things in: a flush ends when what waited at its beginning is gone."""
    stop = threading.Event()

    def send(batch: list[int]) -> None:
        if not stop.is_set():
            box.put(batch[0] + 1, 1)

    box: Sender[int] = Sender(send, what="things", delay=0)
    box.put(0, 1)
    assert box.flush(20)
    assert box.lost == 0
    stop.set()
    box.close(20)


def test_a_flush_says_whether_things_were_lost(counter: Counter):
    """It is true only when all that waited went."""
    box = outbox(counter)
    assert box.flush(0)
    counter.answers = [RefusedError("no")]
    box.put(1, 1)
    assert not box.flush(20)
    box.put(2, 1)
    assert box.flush(float("inf"))
    assert (box.lost, counter.taken) == (1, [2])
    box.close()


def test_the_end_gives_up_in_time_and_counts_once(counter: Counter, caplog: pytest.LogCaptureFixture):
    """What waits or is being sent when the time is over is lost, once, even if its answer comes later."""
    box = held(counter)
    for number in range(5):
        box.put(number, 1)
    box.close(0.01)
    assert box.lost == 6
    counter.answers = [RefusedError("no")]
    counter.door.set()
    assert counter.ended.wait(20)
    box.close(20)
    assert (box.lost, counter.taken, len(counter.seen)) == (6, [], 1)
    assert len(caplog.records) == 1


def test_the_end_of_many_takes_the_time_of_one(counter: Counter):
    """Outboxes are closed side by side: none begins to wait when another has finished."""
    boxes = [outbox(counter, delay=60) for _ in range(5)]
    counter.door.clear()
    for number, box in enumerate(boxes):
        box.put(number, 1)
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
    box.put(1, 1)
    counter.wait_for(1)
    box.close(20)
    assert (counter.taken, box.lost, len(counter.seen)) == ([1], 0, 3)


def test_the_end_does_not_wait_for_what_would_come_too_late(counter: Counter):
    """When the next attempt would be after the end, the outbox gives up at once."""
    box = outbox(counter, delay=60)
    counter.answers = [UnreachableError("later", 3600)]
    box.put(1, 1)
    box.close(10)
    assert counter.ended.is_set()
    assert (counter.taken, box.lost, len(counter.seen)) == ([], 1, 1)


def test_halves_are_counted_each(counter: Counter):
    """A batch that is refused as a whole goes in halves: what is sent is not lost, and not sent twice."""
    box = outbox(counter, delay=60)
    whole = [RefusedError("too large", divisible=True)] * 2
    counter.answers = [*whole, RefusedError("no"), *whole[:1], RefusedError("no", divisible=True)]
    for number in range(8):
        box.put(number, 1)
    assert not box.flush(20)
    assert counter.seen == [[*range(8)], [0, 1, 2, 3], [0, 1], [2, 3], [2], [3], [4, 5, 6, 7]]
    assert (counter.taken, box.lost) == ([3, 4, 5, 6, 7], 3)
    box.close()


def test_a_part_may_be_refused(counter: Counter):
    """The server may have taken some of a batch and say how many it did not."""
    box = outbox(counter, delay=60)
    counter.answers = [RefusedError("two of five", count=2)]
    for number in range(5):
        box.put(number, 1)
    assert not box.flush(20)
    assert box.lost == 2
    box.close()


def test_a_fault_in_sending_does_not_end_it(counter: Counter, caplog: pytest.LogCaptureFixture):
    """Whatever breaks in sending costs one batch; its text, which may quote contents, is not logged."""
    box = outbox(counter)
    counter.answers = [ValueError("what a user wrote")]
    box.put(1, 1)
    box.flush(20)
    box.put(2, 1)
    assert box.flush(20)
    assert (counter.taken, box.lost) == ([2], 1)
    assert "ValueError" in caplog.text
    assert "what a user wrote" not in caplog.text
    box.close()


class Stubborn(logging.Handler):
    """Hands every record to another thread that puts something in, and waits for it; then it fails."""

    def __init__(self, box: Sender[int]) -> None:
        super().__init__()
        self.box = box
        self.went = False

    def emit(self, record: logging.LogRecord) -> None:
        other = threading.Thread(target=self.box.put, args=(7, 1))
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
        box.put(1, 1)
        box.flush(20)
    finally:
        logger.removeHandler(handler)
    assert handler.went
    box.close(20)
    assert (box.lost, counter.taken) == ((2, []) if full else (1, [7]))


def test_many_threads_lose_nothing(counter: Counter):
    """What several threads put in, flush and lose at once adds up."""
    box = outbox(counter, max_items=500, batch_items=50)

    def work(start: int) -> None:
        for number in range(start, start + 1000):
            box.put(number, 1)
            if number % 400 == 0:
                box.flush(20)

    threads = [threading.Thread(target=work, args=(1000 * index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    box.close(20)
    assert len(set(counter.taken)) == len(counter.taken)
    assert len(counter.taken) + box.lost == 8000


def test_an_outbox_that_was_never_used_leaves_nothing(counter: Counter):
    """Without an item there is no thread, and nothing keeps the outbox in memory; the same after its end."""
    for used in (False, True):
        box = outbox(counter)
        if used:
            box.put(1, 1)
        box.close(20)
        gone = weakref.ref(box)
        del box
        gc.collect()
        assert gone() is None
