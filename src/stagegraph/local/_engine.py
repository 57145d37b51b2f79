"""The running model: loaded once per process, shared by threads and event loops."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, cast

from pydantic import BaseModel
from pydantic_core import to_json

from stagegraph.schema.errors import DeclarationError

from ._weights import INSTALL, KNOWN

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

__all__ = ["Chunk", "Engine", "EngineConfig", "Problem", "engine"]


class Delta(BaseModel):
    content: str | None = None


class Choice(BaseModel):
    delta: Delta
    finish_reason: str | None = None


class Tokens(BaseModel):
    prompt_tokens: int
    completion_tokens: int


class Progress(BaseModel):
    total: int
    """Tokens of the whole prompt."""


class Problem(BaseModel):
    """Why the server refused or gave up."""

    message: str
    code: int = 500
    type: str = ""
    n_prompt_tokens: int | None = None


class Chunk(BaseModel):
    """One piece of an answer, as llama.cpp's server streams it."""

    choices: list[Choice] = []
    usage: Tokens | None = None
    prompt_progress: Progress | None = None
    error: Problem | None = None


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """What has to be equal for two models to share one engine."""

    name: str
    path: Path | None
    slots: int
    context: int
    threads: int


class _Server(Protocol):
    """What is used of `xllamacpp.Server`, which is compiled and carries no types."""

    def handle_chat_completions(self, prompt: str, callback: Callable[[str], bool], /) -> object:
        """Stream the answer to a JSON request into the callback, until it returns true."""
        ...


class Engine:
    """One set of weights and the threads that wait for it; nothing is loaded before the first request."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._loading = threading.Lock()
        self._server: _Server | None = None
        # As many waiting threads as the server has slots: more would only queue inside the server, where a request
        # whose caller has gone cannot be withdrawn.
        self._workers = ThreadPoolExecutor(config.slots, thread_name_prefix="stagegraph-local")

    async def stream(self, request: Mapping[str, object]) -> AsyncGenerator[Chunk]:
        """The chunks of an answer; leaving early, or being cancelled, stops the model at its next token."""
        loop = asyncio.get_running_loop()
        received: asyncio.Queue[Chunk | BaseException | None] = asyncio.Queue()
        left = threading.Event()
        body = to_json({**request, "stream": True}).decode()

        def send(item: Chunk | BaseException | None) -> None:
            with suppress(RuntimeError):  # the loop is closed: nobody waits any more
                loop.call_soon_threadsafe(received.put_nowait, item)

        def receive(raw: str) -> bool:
            # xllamacpp drops what its callback raises, so errors travel the same way as chunks.
            try:
                send(Chunk.model_validate_json(raw))
            except ValueError as error:  # pragma: no cover - llama.cpp would have changed its format
                send(error)
            return left.is_set()

        def work() -> None:
            try:
                server = self._load()
                if not left.is_set():
                    server.handle_chat_completions(body, receive)
            except BaseException as error:  # noqa: BLE001 - raised again where the answer is awaited
                send(error)
            else:
                send(None)

        job = self._workers.submit(work)
        try:
            while (item := await received.get()) is not None:
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            left.set()
            job.cancel()

    def _load(self) -> _Server:
        with self._loading:
            if self._server is None:
                self._server = _start(self._config)
            return self._server


def _start(config: EngineConfig) -> _Server:
    weights = KNOWN[config.name]
    path = weights.check(config.path or weights.find())
    try:
        xllamacpp = cast("Any", import_module("xllamacpp"))  # compiled, without types
    except ImportError as error:
        msg = f"local models run on the package xllamacpp, which cannot be imported ({error}): {INSTALL}"
        raise DeclarationError(msg) from error
    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_parallel, params.n_ctx = config.slots, config.slots * config.context
    # A request whose caller has gone is dropped between batches, so they are small.
    params.n_batch = params.n_ubatch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config.threads
    params.cache_ram_mib, params.warmup, params.ui, params.verbosity = 64, False, False, -1
    # llama.cpp's server cannot be had without its port: it listens to this machine only, and nobody has the key.
    params.hostnames, params.api_keys = ["127.0.0.1"], [secrets.token_hex(32)]
    params.n_threads_http = 1
    params.prefill_assistant = False
    try:
        return cast("_Server", xllamacpp.Server(params))
    except RuntimeError as error:  # pragma: no cover - the machine has no memory or no port left
        size = f"{config.slots} slots of {config.context} tokens"
        msg = f"the local model could not start with {size}; use less, if memory is short"
        raise DeclarationError(msg) from error


_engines: dict[tuple[int, EngineConfig], Engine] = {}
_adding = threading.Lock()


def engine(config: EngineConfig) -> Engine:
    """The engine of this process for a configuration.

    The one piece of state that belongs to the process and not to an object: weights take 200 MB and up, whatever the
    number of models, runners and event loops. A forked process gets its own, as its parent's threads did not come with
    it.
    """
    with _adding:
        return _engines.setdefault((os.getpid(), config), Engine(config))
