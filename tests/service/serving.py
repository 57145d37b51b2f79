"""Real servers on loopback for the tests of the service, and the graphs that they serve."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import httpx
import uvicorn
from fastapi import FastAPI

from stagegraph import Node, Runner
from stagegraph.service import router

HERE = Path(__file__).parent


def app_for(graph: Node[Any, Any], runner: Runner, *, prefix: str = "", **options: Any) -> FastAPI:
    """An app with the endpoints of a graph."""
    app = FastAPI(lifespan=runner.lifespan)
    app.include_router(router(graph, runner, **options), prefix=prefix)
    return app


@contextlib.contextmanager
def served(app: Any, **client_options: Any) -> Iterator[httpx.Client]:
    """An app behind uvicorn in a thread, and a client of it."""
    with serving(app) as url, httpx.Client(base_url=url, timeout=30, trust_env=False, **client_options) as client:
        yield client


@contextlib.contextmanager
def serving(app: Any) -> Iterator[str]:
    """The same, giving its address."""
    started = threading.Event()

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            started.set()

    config = uvicorn.Config(
        app, log_level="warning", lifespan="on", timeout_graceful_shutdown=10, timeout_keep_alive=60
    )
    server = Server(config)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen(2048)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        assert started.wait(30)
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)
            assert not thread.is_alive()


class Gate:
    """Lets nobody through until a test, in another thread, opens it."""

    def __init__(self) -> None:
        self.entered = threading.Semaphore(0)
        self.cancelled = threading.Event()
        self.opened = threading.Event()

    async def wait(self) -> None:
        self.entered.release()
        try:
            while not self.opened.is_set():  # noqa: ASYNC110 - the test opens it from another thread
                await asyncio.sleep(0.005)
        except BaseException:
            self.cancelled.set()
            raise


def serve(app: Any, **options: Any) -> None:
    """An app as the only thing that a process does; it says its address when it is there."""
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    listening.listen(2048)

    class Server(uvicorn.Server):
        async def startup(self, sockets: list[socket.socket] | None = None) -> None:
            await super().startup(sockets)
            os.write(1, f"http://127.0.0.1:{listening.getsockname()[1]}\n".encode())

    config = uvicorn.Config(app, log_level="warning", timeout_keep_alive=60, **options)
    asyncio.run(Server(config).serve(sockets=[listening]))


class Worker:
    """A server in a process of its own (`worker.py`, or another program), which may be killed."""

    def __init__(self, folder: Path, *options: str, program: str = "worker.py") -> None:
        from forked import Process  # the programs import this file, and have no use for it

        words = (HERE / program, folder, *options)
        self.process = Process(*words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.stderr and self.process.stderr.read()
        self.url = line.strip()

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=30, trust_env=False)

    def end(self, number: int) -> int:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        return self.process.wait(60)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate(timeout=30)


def events(response: httpx.Response) -> Iterator[dict[str, str]]:
    """The server-sent events of a response that is being read."""
    current: dict[str, str] = {}
    for line in response.iter_lines():
        if not line:
            if current:
                yield current
            current = {}
        elif not line.startswith(":"):
            name, _, value = line.partition(": ")
            current[name] = value
