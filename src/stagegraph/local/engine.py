"""The engine: llama.cpp's server inside this process, as a transport for HTTP clients."""

from __future__ import annotations

import asyncio
import os
import secrets
import threading
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import httpx2

from stagegraph.errors import DeclarationError

from .weights import INSTALL, KNOWN

__all__ = ["Engine", "EngineConfig", "engine"]


class EngineConfig(NamedTuple):
    """What two models must have in common to share one engine."""

    name: str
    path: str | None
    slots: int
    context: int
    threads: int


class Engine(httpx2.AsyncBaseTransport):
    """One set of weights and the server that runs them; nothing is loaded before it is started."""

    def __init__(self, config: EngineConfig) -> None:
        self._config = config
        self._lock = threading.Lock()
        self._process = 0
        """Where the server runs. A forked process starts its own: the threads of its parent are missing there."""
        self._server: Any = None
        self._key = secrets.token_hex(32)
        self._pools: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncHTTPTransport] = WeakKeyDictionary()

    async def start(self) -> None:
        """Load the weights, unless they are loaded; this takes seconds.

        Raises:
            DeclarationError: the weights or xllamacpp are missing, the weights are wrong, or memory is short.
        """
        if self._process != os.getpid():
            await asyncio.to_thread(self._start)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to the server, which has to be started."""
        request.url = request.url.copy_with(port=httpx2.URL(self._server.listening_address).port)
        request.headers["Authorization"] = f"Bearer {self._key}"
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            # A connection belongs to an event loop, so none outlives its request. More connections than slots would
            # only wait inside the server.
            limits = httpx2.Limits(max_connections=self._config.slots, max_keepalive_connections=0)
            self._pools[loop] = httpx2.AsyncHTTPTransport(trust_env=False, limits=limits)
        return await self._pools[loop].handle_async_request(request)

    def _start(self) -> None:
        with self._lock:
            if self._process != os.getpid():
                self._server = self._load()
                self._process = os.getpid()

    def _load(self) -> Any:
        config, weights = self._config, KNOWN[self._config.name]
        path = weights.find() if config.path is None else Path(config.path)
        weights.check(path)
        try:
            xllamacpp = import_module("xllamacpp")  # compiled, without types
        except ImportError as error:
            msg = f"local models run on the package xllamacpp, which cannot be imported ({error}): {INSTALL}"
            raise DeclarationError(msg) from error
        params = xllamacpp.CommonParams()
        params.model.path, params.model_alias = str(path), {config.name}
        params.n_parallel, params.n_ctx = config.slots, config.slots * config.context
        # A request whose caller has gone is dropped between batches, so they are small.
        params.n_batch = params.n_ubatch = 512
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = config.threads
        params.cache_ram_mib, params.warmup, params.ui, params.verbosity = 64, False, False, -1
        params.hostnames, params.api_keys = ["127.0.0.1"], [self._key]  # closed to other machines and processes
        params.prefill_assistant = False
        try:
            return xllamacpp.Server(params)
        except RuntimeError as error:  # pragma: no cover - the machine has no memory or no port left
            size = f"{config.slots} slots of {config.context} tokens"
            msg = f"the local model could not start with {size}; use less, if memory is short"
            raise DeclarationError(msg) from error


_engines: dict[EngineConfig, Engine] = {}


def engine(config: EngineConfig) -> Engine:
    """The engine of this process for a configuration.

    Engines belong to the process and not to an object: weights take 200 MB and up, whatever the number of models,
    runners and event loops.
    """
    return _engines.setdefault(config, Engine(config))
