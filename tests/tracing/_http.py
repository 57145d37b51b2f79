"""HTTP/1.1 on loopback: requests in, answers out, and a clean end."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import parse_qs, urlsplit

__all__ = ["Answer", "Listener", "Request"]


@dataclass(frozen=True)
class Request:
    """One received request."""

    method: str
    path: str
    """As it was sent, without the query: names in it are still percent-encoded."""
    query: dict[str, list[str]]
    headers: dict[str, str]
    """With lower-case names."""
    body: bytes

    @property
    def json(self) -> Any:
        """The decoded JSON body."""
        return json.loads(self.body)


@dataclass(frozen=True)
class Answer:
    """What is sent back: bytes as they are, anything else as JSON."""

    status: int
    body: Any
    headers: dict[str, str] = field(default_factory=dict[str, str])

    @classmethod
    def failure(cls, status: int, retry_after: float | None) -> Self:
        """An answer that was asked for by a test."""
        headers = {} if retry_after is None else {"Retry-After": f"{retry_after:g}"}
        return cls(status, {"message": f"forced {status}", "error": "Forced"}, headers)


class Listener:
    """A thread that listens on a free port, and a thread for each connection."""

    def __init__(self, answer: Callable[[Request], Answer], broken: Callable[[BaseException], object]) -> None:
        self._server = _Server(answer, broken)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), name="langfuse-server")
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Stop listening, cut the connections and wait for their threads; a second call does nothing."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.cut()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    daemon_threads = False
    block_on_close = True
    request_queue_size = 128

    def __init__(self, answer: Callable[[Request], Answer], broken: Callable[[BaseException], object]) -> None:
        self.answer = answer
        self.broken = broken
        self._open: set[socket.socket] = set()
        self._lock = threading.Lock()
        super().__init__(("127.0.0.1", 0), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._open.discard(request)
        super().shutdown_request(request)

    def cut(self) -> None:
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:  # the client was faster
                    continue

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that go away are part of the tests, all else was given to `broken`."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server  # pyright: ignore[reportIncompatibleVariableOverride]

    def _handle(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        query = parse_qs(parts.query, keep_blank_values=True)
        try:
            answer = self.server.answer(Request(str(self.command), parts.path, query, headers, body))
        except Exception as error:  # noqa: BLE001 - a fault of this server has to fail the test, not only its thread
            self.server.broken(error)
            answer = Answer(500, {"message": repr(error)})
        raw = isinstance(answer.body, bytes)
        content = answer.body if raw else json.dumps(answer.body, ensure_ascii=False).encode()
        self.send_response(answer.status)
        kind = {"Content-Type": "application/octet-stream" if raw else "application/json; charset=utf-8"}
        for name, value in {**kind, **answer.headers, "Content-Length": str(len(content))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_DELETE = do_PUT = _handle  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Say nothing."""
