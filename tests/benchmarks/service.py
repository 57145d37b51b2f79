"""What HTTP adds to a run: CPU time of the serving thread alone, and how well many runs share a model's limit."""

from __future__ import annotations

import asyncio
import statistics
import sys
import threading
import time
from pathlib import Path

import httpx
from fastapi import FastAPI

from agents import EACH, RUNS, SLOTS, Twelve, slow_model
from core import Chain, X, check
from stagegraph import Runner
from stagegraph.service import router
from table import Row

sys.path.insert(0, str(Path(__file__).parents[1] / "service"))
from serving import serving

REQUESTS = 300
DELAY = 0.5


async def rows() -> list[Row]:
    """Both claims; servers run in threads of their own."""
    return await asyncio.to_thread(_rows)


def _rows() -> list[Row]:
    alone = asyncio.run(_alone())
    beyond = (_served() - alone) * 1000
    makespan, ideal = asyncio.run(_makespan()), RUNS * EACH * DELAY / SLOTS
    what = f"{RUNS} runs of {EACH} calls over HTTP, {SLOTS} model requests of {DELAY} s in flight"
    return [
        Row("a request beyond its run, CPU of the serving thread", beyond, "ms", 3),
        Row(f"{what}: makespan against the ideal", makespan / ideal, "x", 1.25, f"{makespan:.1f} s"),
    ]


async def _alone() -> float:
    """Seconds of one run without a service, the median."""
    runner, graph = Runner(tracing=None), Chain()
    found: list[float] = []
    for _ in range(REQUESTS):
        began = time.thread_time()
        live = runner.start(graph, X(v=0))
        check((await live.result()).status, "succeeded")
        found.append(time.thread_time() - began)
    return statistics.median(found)


def _served() -> float:
    """Seconds of one request, of the serving thread's own time, the median."""
    runner = Runner(tracing=None)
    app = FastAPI(lifespan=runner.lifespan)
    app.include_router(router(Chain(), runner))
    before = set(threading.enumerate())
    found: list[float] = []
    with serving(app) as url, httpx.Client(base_url=url, trust_env=False) as client:
        [thread] = set(threading.enumerate()) - before
        assert thread.ident is not None
        clock = time.pthread_getcpuclockid(thread.ident)
        for _ in range(REQUESTS):
            began = time.clock_gettime(clock)
            check(client.post("/runs", json={"v": 0}).json()["status"], "succeeded")
            found.append(time.clock_gettime(clock) - began)
    return statistics.median(found)


async def _makespan() -> float:
    """Seconds until the last of many runs that begin at once is answered."""
    runner = Runner(slow_model(DELAY), tracing=None, max_concurrency=SLOTS)
    app = FastAPI(lifespan=runner.lifespan)
    app.include_router(router(Twelve(), runner))
    limits = httpx.Limits(max_connections=RUNS)
    with serving(app) as url:
        async with httpx.AsyncClient(base_url=url, timeout=300, limits=limits, trust_env=False) as client:
            await client.post("/runs", json="warm up")
            began = time.perf_counter()
            answers = await asyncio.gather(*(client.post("/runs", json=str(number)) for number in range(RUNS)))
            taken = time.perf_counter() - began
    check({one.json()["status"] for one in answers}, {"succeeded"})
    return taken
