"""Tracing while the server is well, ill or away: runs neither wait nor fail, what is lost is counted and said once."""

from __future__ import annotations

import asyncio
import gzip
import threading

import pytest
from _http import Answer, Listener
from langfuse_server import LangfuseServer
from small_runs import Echo, Make, closed_port, once_each, runs, warned

from stagegraph import Runner, feedback
from stagegraph.tracing.attributes import trace_id

pytestmark = pytest.mark.anyio

TRACES = "otel/v1/traces"
SCORES = "public/scores"


async def test_many_runs_are_few_requests(server: LangfuseServer, make: Make):
    """Nothing is sent run by run: what ends within a second goes together."""
    tracing = make()
    ids = await runs(tracing, 200)
    assert await tracing.flush(30)
    assert once_each(server, ids)
    assert len(server.asked(TRACES)) < 20
    assert tracing.lost == 0


async def test_what_waits_goes_without_a_flush(server: LangfuseServer, make: Make):
    """A server process never has to flush: spans go by themselves soon after their run."""
    tracing = make()
    ids = await runs(tracing, 2)
    server.wait_for(lambda: once_each(server, ids))
    assert tracing.lost == 0


@pytest.mark.parametrize("status", [401, 403, 400, 404])
async def test_a_refusal_is_counted_and_said_once(
    server: LangfuseServer, make: Make, caplog: pytest.LogCaptureFixture, status: int
):
    """However many runs are refused, the log has one line, with the status and without the secret."""
    server.status = status
    tracing = make()
    for _ in range(3):
        await runs(tracing)
        assert not await tracing.flush(5)
    assert tracing.lost == 18
    (line,) = warned(caplog)
    assert str(status) in line
    assert ("LANGFUSE_SECRET_KEY" in line) == (status in {401, 403})
    assert server.secret_key not in caplog.text
    assert len(server.asked(TRACES)) == 3


async def test_a_wrong_key_is_said_without_the_key(make: Make, caplog: pytest.LogCaptureFixture):
    """Neither the log nor the way objects print themselves shows the secret key."""
    tracing = make(secret_key="sk-lf-very-wrong")
    await runs(tracing)
    await tracing.flush(30)
    assert tracing.lost == 6
    said = caplog.text + repr(tracing) + repr(tracing.connection) + repr(vars(tracing))
    assert "401" in said
    assert "sk-lf-very-wrong" not in said
    assert repr(tracing) == f"<LangfuseTracing {tracing.connection.base_url} default>"


async def test_a_closed_port_costs_nothing_but_the_traces(make: Make, caplog: pytest.LogCaptureFixture):
    """With nobody there, runs go on, and what they would have shown is counted."""
    tracing = make(base_url=closed_port())
    await runs(tracing)
    assert not await tracing.flush(0.1)
    await runs(tracing)
    tracing.close(0)
    assert tracing.lost == 12
    (line,) = warned(caplog)
    assert "runs continue" in line


async def test_a_hanging_server_holds_nobody_up(server: LangfuseServer, make: Make, caplog: pytest.LogCaptureFixture):
    """Runs end, a flush gives up in time, and so does the end."""
    server.delay = 60
    tracing = make()
    loop = asyncio.get_running_loop()
    begun = loop.time()
    await runs(tracing, 20)
    assert not await tracing.flush(0.2)
    tracing.close(0.2)
    assert loop.time() - begun < 40
    assert tracing.lost == 40
    assert len(warned(caplog)) == 1


async def test_more_than_fits_is_counted_not_kept(server: LangfuseServer, make: Make, caplog: pytest.LogCaptureFixture):
    """While the server hangs, what waits takes 64 MB at most; the rest is lost at once."""
    server.delay = 60
    tracing = make()
    runner = Runner(tracing=tracing)
    for _ in range(30):
        await runner.run(Echo(), "x" * 1_000_000)
    lost = tracing.lost
    assert 20 < lost < 60
    tracing.close(0)
    assert tracing.lost == 60
    assert len(warned(caplog)) == 1


@pytest.mark.parametrize("status", [429, 503])
async def test_told_to_come_back_later_it_does(server: LangfuseServer, make: Make, status: int):
    """As long as the server says when, nothing is given up, whatever the number of times."""
    server.fail_next(5, status, retry_after=0.01)
    tracing = make()
    ids = await runs(tracing)
    server.wait_for(lambda: once_each(server, ids), 20)
    assert await tracing.flush(30)
    assert tracing.lost == 0


async def test_the_next_request_is_not_earlier_than_asked(server: LangfuseServer, make: Make):
    """Retry-After is waited for, and a flush meanwhile gives up rather than ask again."""
    server.fail_next(1, 429, retry_after=60)
    tracing = make()
    await runs(tracing)
    server.wait_for(lambda: server.asked(TRACES))
    assert not await tracing.flush(0.1)
    assert len(server.asked(TRACES)) == 1
    assert tracing.lost == 0


async def test_a_short_illness_loses_nothing(server: LangfuseServer, make: Make, caplog: pytest.LogCaptureFixture):
    """A server that fails and recovers gets everything, once, and nobody is warned."""
    server.fail_next(2, 500)
    tracing = make()
    ids = await runs(tracing)
    assert await tracing.flush(30)
    assert once_each(server, ids)
    assert tracing.lost == 0
    assert warned(caplog) == []


async def test_after_a_long_illness_it_goes_on(server: LangfuseServer, make: Make, caplog: pytest.LogCaptureFixture):
    """What failed for long is lost, what comes after the recovery arrives."""
    server.status = 500
    tracing = make()
    await runs(tracing)
    assert not await tracing.flush(20)
    await runs(tracing)
    await tracing.flush(20)  # on a busy machine they may be lost before
    assert tracing.lost == 12
    server.status = None
    ids = await runs(tracing)
    assert await tracing.flush(30)
    assert once_each(server, ids)
    assert tracing.lost == 12
    assert len(warned(caplog)) == 1


async def test_a_refusal_is_no_illness(server: LangfuseServer, make: Make):
    """After a refused batch the next one is tried as often as any."""
    server.fail_next(1, 400)
    server.fail_next(2, 503)
    tracing = make()
    await runs(tracing, 1)
    await tracing.flush(30)
    ids = await runs(tracing)
    assert await tracing.flush(30)
    assert once_each(server, ids)
    assert tracing.lost == 2


async def test_parts_are_not_sent_twice(server: LangfuseServer, make: Make):
    """A batch that the server finds too large is split until it fits; a part that is sent again is sent alone."""
    server.fail_next(3, 413)
    tracing = make()
    ids = await runs(tracing, 8)
    server.wait_for(lambda: server.asked(TRACES))
    server.wait_for(lambda: server.spans)
    assert await tracing.flush(30)
    assert once_each(server, ids)
    assert tracing.lost == 0
    server.fail_next(1, 413)
    server.fail_next(1, 400)
    before = len(server.spans)
    await runs(tracing, 4)
    await tracing.flush(10)  # on a busy machine a part of the spans may have gone before
    arrived = len(server.spans) - before
    assert arrived + tracing.lost == 8
    assert 0 < tracing.lost < 8


async def test_what_is_always_too_large_is_lost(server: LangfuseServer, make: Make, caplog: pytest.LogCaptureFixture):
    """Single spans that do not fit are counted like everything that does not arrive."""
    server.status = 413
    tracing = make()
    await runs(tracing, 2)
    assert not await tracing.flush(10)
    assert tracing.lost == 4
    assert len(warned(caplog)) == 1


async def test_a_web_page_is_no_answer(make: Make, caplog: pytest.LogCaptureFixture):
    """An address that answers everything with a page is not Langfuse's: nothing arrives there, which is said."""
    listener = Listener(lambda _: Answer(200, b"<html>", {"Content-Type": "text/html; charset=utf-8"}), print)
    listener.start()
    tracing = make(base_url=listener.url)
    await runs(tracing)
    assert not await tracing.flush(5)
    listener.stop()
    assert tracing.lost == 6
    (line,) = warned(caplog)
    assert "LANGFUSE_BASE_URL" in line


async def test_an_odd_answer_does_no_harm(server: LangfuseServer, make: Make, caplog: pytest.LogCaptureFixture):
    """Bytes that nobody understands do no harm; requests that were answered are not counted as lost."""
    server.nonsense = b"\x00\xff<html>"
    tracing = make()
    await runs(tracing)
    assert await tracing.flush(30)
    await feedback("run", "good", 1, runner=Runner(tracing=tracing))
    assert await tracing.flush(30)
    assert (tracing.lost, warned(caplog)) == (0, [])


async def test_scores_are_sent_again(server: LangfuseServer, make: Make):
    """A score survives a short illness of the server, and arrives once."""
    server.fail_next(2, 503, path=SCORES)
    tracing = make()
    await feedback("run", "good", True, runner=Runner(tracing=tracing))
    assert await tracing.flush(30)
    (score,) = server.scores
    assert (score["name"], score["value"], score["traceId"]) == ("good", 1, trace_id("run"))
    assert tracing.lost == 0


async def test_a_refused_score_does_not_take_others_along(
    server: LangfuseServer, make: Make, caplog: pytest.LogCaptureFixture
):
    """Only the score that the server rejects is counted, and the log has one line for all of them."""
    server.rejected_scores = {"bad"}
    tracing = make()
    for round_ in range(2):
        for name in ("good", "bad", "better"):
            await feedback(f"run{round_}", name, 0.5, runner=Runner(tracing=tracing))
        assert not await tracing.flush(5)
    assert tracing.lost == 2
    assert sorted(score["name"] for score in server.scores) == ["better", "better", "good", "good"]
    (line,) = warned(caplog)
    assert "scores" in line


async def test_large_texts_stay_below_the_size_of_a_request(
    server: LangfuseServer, make: Make, monkeypatch: pytest.MonkeyPatch
):
    """However much waits, and in whatever script, no request has more than about 5 MB before compression."""
    monkeypatch.setenv("LANGFUSE_TIMEOUT", "20")  # a busy machine takes its time with them
    tracing = make()
    runner = Runner(tracing=tracing)
    done = [await runner.run(Echo(), "字" * 120_000) for _ in range(12)]
    await feedback(done[0].id, "text", "字" * 1_000_000, comment="字" * 1_000_000, runner=runner)
    await feedback(done[0].id, "more", "字" * 1_000_000, comment="字" * 1_000_000, runner=runner)
    assert await tracing.flush(30)
    assert once_each(server, [trace_id(run.id) for run in done])
    spans = [len(gzip.decompress(one.body)) for one in server.asked(TRACES)]
    assert len(spans) > 1
    assert max(spans) < 5_100_000
    assert [len(one.json) for one in server.asked(SCORES) if len(one.body) > 5_100_000] == [1, 1]
    assert tracing.lost == 0


async def test_after_the_end_nothing_is_taken_and_nothing_fails(
    server: LangfuseServer, make: Make, caplog: pytest.LogCaptureFixture
):
    """Closing sends what waits and may be repeated; later runs go well, and are counted as not shown."""
    tracing = make()
    ids = await runs(tracing)
    tracing.close()
    tracing.close()
    assert once_each(server, ids)
    assert tracing.lost == 0
    await runs(tracing, 2)
    await feedback("run", "good", 1, runner=Runner(tracing=tracing))
    assert await tracing.flush(30)
    tracing.close()
    assert tracing.lost == 5
    assert len(warned(caplog)) == 2  # one of the observations, one of the scores


async def test_closing_leaves_no_connection_open(server: LangfuseServer, make: Make):
    """After `close` there is neither a thread nor a socket, so nothing complains when the interpreter cleans up."""
    tracing = make()
    await runs(tracing)
    before = {thread.name for thread in threading.enumerate()}
    tracing.close(5)
    after = {thread.name for thread in threading.enumerate()}
    assert "stagegraph-observations" in before - after
