"""Requests and answers: what cannot be sent is told from what can, and odd answers are read with care."""

from __future__ import annotations

from typing import Any

import pytest
from _http import Answer, Listener
from langfuse_server import LangfuseServer
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.trace import SpanContext, TraceFlags

from stagegraph.tracing.api import RefusedError, UnreachableError
from stagegraph.tracing.connection import Connection
from stagegraph.tracing.sending import Http, Sender, close_all, score_span


def connection(url: str) -> Connection:
    return Connection("pk-lf-test", "sk-lf-test", url, "test", None, 5.0)


def span(name: str, number: int, **attributes: str) -> ReadableSpan:
    context = SpanContext(1, number, is_remote=False, trace_flags=TraceFlags(TraceFlags.SAMPLED))
    return ReadableSpan(name, context, attributes=attributes, start_time=1, end_time=2)


def sent(server: LangfuseServer, spans: list[ReadableSpan]) -> Sender:
    wire = Http(connection(server.url))
    box = Sender(wire.send_spans, what="spans", delay=60, on_close=wire.close)
    for one in spans:
        box.on_end(one)
    close_all([box], 20)
    return box


def test_one_that_cannot_be_encoded_goes_alone(server: LangfuseServer):
    """A span that cannot be written as protobuf is lost without those that were sent with it."""
    box = sent(server, [span("bad \ud800" if number == 5 else "good", number) for number in range(1, 21)])
    assert [int(one.span_id, 16) for one in server.spans] == [number for number in range(1, 21) if number != 5]
    assert box.lost == 1


def test_requests_are_split_by_their_real_size(server: LangfuseServer):
    """Whatever the estimate was, what is too large for a request goes in several; one span is never cut."""
    box = sent(server, [span("large", number, text="x" * 1_500_000) for number in range(1, 9)])
    assert [len(server.trace(f"{1:032x}")), box.lost] == [8, 0]
    assert 4 <= len(server.asked("traces")) <= 8  # a busy machine may send some before all are queued
    sent(server, [span("huge", 9, text="x" * 6_000_000)])
    assert server.spans[-1].name == "huge"


@pytest.mark.parametrize(
    ("body", "lost"),
    [
        ({"rejected": 2}, 2),
        ({"rejected": 0}, 0),
        ({"rejected": -1}, 0),
        ({"rejected": 99}, 3),
        ({"rejected": "many"}, 3),
        ([], 3),
        (b"<oops", 3),
    ],
)
def test_a_partial_refusal_is_read_with_care(body: Any, lost: int):
    """A 207 says how many scores were not taken; when it does not, none of them counts as taken."""
    listener = Listener(lambda _: Answer(207, body), print)
    listener.start()
    wire = Http(connection(listener.url))
    with pytest.raises(RefusedError) as caught:
        wire.send_scores([score_span("{}")] * 3)
    wire.close()
    listener.stop()
    assert caught.value.count == lost


@pytest.mark.parametrize(("header", "seconds"), [("7", 7.0), ("-1", 0.0), ("soon", None), ("nan", 0.0), ("", None)])
def test_an_odd_time_to_come_back_is_left_aside(header: str, seconds: float | None):
    """Retry-After is a number of seconds, and anything else is nothing."""
    listener = Listener(lambda _: Answer(429, {}, {"Retry-After": header}), print)
    listener.start()
    wire = Http(connection(listener.url))
    with pytest.raises(UnreachableError) as caught:
        wire.send_scores([score_span("{}")])
    wire.close()
    listener.stop()
    assert caught.value.retry_after == seconds
