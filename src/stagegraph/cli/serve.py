"""`stagegraph serve`: a graph behind HTTP, with a page on which a person runs it."""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Annotated

import typer

from stagegraph.schema.errors import DeclarationError, needs_extra

from . import options as opt
from .load import load_function, load_graph, made_deps
from .run import make_runner
from .text import say


def serve(
    graph: opt.GraphArgument,
    model: opt.ModelOption = None,
    prompts: opt.PromptsOption = None,
    models: opt.SetOption = None,
    deps: opt.DepsOption = None,
    host: Annotated[str, typer.Option(help="Where to listen; others can reach `0.0.0.0`.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65_535, help="0 takes a free one.")] = 8000,
    max_runs: Annotated[int, typer.Option(min=1, help="How many runs may go on at once.")] = 32,
    max_queued: Annotated[int, typer.Option(min=0, help="How many more may wait.")] = 32,
    drain: Annotated[float, typer.Option(min=0, help="Seconds for runs to finish at a shutdown.")] = 30.0,
    journal: opt.JournalOption = opt.DEFAULT_JOURNAL,
    record: Annotated[bool, typer.Option("--record/--no-record", help="Keep runs in the journal.")] = True,
) -> None:
    """Serve a graph over HTTP, with a page on which to run it; what a crash interrupted is finished first."""
    with needs_extra("service", "serving", "uvicorn", "fastapi", "starlette"):
        import uvicorn
        from starlette.middleware.trustedhost import TrustedHostMiddleware

        from stagegraph.service import app

    node, make_deps = load_graph(graph), load_function(deps)
    store = opt.open_journal(journal, create=True) if record else None
    limits = {"max_runs": max_runs, "max_queued": max_queued, "drain_seconds": drain}
    runner = make_runner(node, model, prompts, models, store, resume_interrupted=record, **limits)
    made: list[object] = []
    failed: list[DeclarationError] = []

    @asynccontextmanager
    async def life(_app: object) -> AsyncGenerator[None]:
        async with AsyncExitStack() as stack:
            try:
                made.append(await stack.enter_async_context(made_deps(make_deps)))
            except DeclarationError as error:
                failed.append(error)
                server.should_exit = True  # without a traceback of the server
            else:
                await stack.enter_async_context(runner.lifespan())
                say(f"{node.__node__.name} is at http://{shown}:{listening.getsockname()[1]}/", stderr=True)
            yield

    def for_row(_: object) -> object:
        return made[0]

    hooks = {} if deps is None else {"deps": lambda: made[0], "resume_deps": for_row}
    served = app(node, runner, lifespan=life, **hooks)
    if host in {"127.0.0.1", "localhost", "::1"}:  # so that no web page reaches it under a host name of its own
        served.add_middleware(TrustedHostMiddleware, allowed_hosts=["localhost", "127.0.0.1", "[::1]"])
    shown = f"[{host}]" if ":" in host else host
    config = uvicorn.Config(served, log_level="warning", timeout_graceful_shutdown=int(drain) + 10)
    server = uvicorn.Server(config)
    with _listening(host, port) as listening:
        server.run(sockets=[listening])
    if failed:
        raise failed[0]


def _listening(host: str, port: int) -> socket.socket:
    """A socket that listens."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        known = {errno.EADDRINUSE: "something else listens there", socket.EAI_NONAME: "there is no such host"}
        why = known.get(error.errno or 0) or os.strerror(error.errno or 0)
        msg = f"cannot listen at {host}, port {port}: {why}; choose another with --port (0 takes a free one) or --host"
        raise DeclarationError(msg) from error
