"""A process that has imported the libraries once and forks a child for each Python command of a test.

A new interpreter spends more than a second with imports; a forked child starts in some milliseconds. It is a process like
any other: with its own pipes, directory, environment and signals, and with an exit code. What it shares with the
others is what was imported before, and the seed of hashes. Tests of imports, of start-up and of real kills start a
new interpreter with `subprocess` instead.
"""

from __future__ import annotations

import atexit
import gc
import importlib
import importlib.util
import json
import os
import pkgutil
import select
import signal
import socket
import subprocess
import sys
import threading
import types
from functools import cache
from pathlib import Path
from typing import Any

__all__ = ["Process", "cli", "python"]

PRELOADED = ("pydantic_ai.models.function", "pydantic_ai.models.test", "fastapi", "uvicorn", "rich.live", "rich.markup")


# The client: what tests call.


class Process(subprocess.Popen[str]):
    """`subprocess.Popen([sys.executable, *words])`, forked from the server: `-m MODULE`, `-c CODE` or a file."""

    def __init__(self, *words: str | Path, **options: Any) -> None:
        self._status: int | None = None
        super().__init__([str(word) for word in words], **{"text": True, **options})

    def _execute_child(self, args: list[str], *given: Any) -> None:
        # Popen has made the pipes; the positions are the same in Python 3.11 to 3.14.
        (cwd, env), pipes = given[4:6], given[9:15]
        environment = dict(os.environ if env is None else env)
        python = {name for name in {*environment, *os.environ} if name.startswith("PYTHON")}
        if any(environment.get(name) != os.environ.get(name) for name in python):
            message = "a forked process has the PYTHON* variables of this one; use `subprocess` for others"
            raise ValueError(message)
        self._status, status = os.pipe()
        asked = {"words": args, "cwd": str(cwd or Path.cwd()), "env": environment}
        p2cread, _, _, c2pwrite, _, errwrite = pipes
        streams = [own if own != -1 else number for number, own in enumerate((p2cread, c2pwrite, errwrite))]
        text = json.dumps(asked).encode()
        with _one_at_a_time:
            socket.send_fds(_server(), [len(text).to_bytes(8)], [*streams, status])
            _server().sendall(text)
        os.close(status)
        self.pid = _number(self._status)
        self._child_created = True
        self._close_pipe_fds(*pipes)

    def _internal_poll(self, *_: Any, **__: Any) -> int | None:
        return self._ended(0)

    def _wait(self, timeout: float | None) -> int:
        if self._ended(timeout) is None:
            raise subprocess.TimeoutExpired(self.args, timeout or 0)
        assert self.returncode is not None
        return self.returncode

    def _ended(self, timeout: float | None) -> int | None:
        if self.returncode is None and self._status is not None and select.select([self._status], [], [], timeout)[0]:
            self.returncode = _number(self._status)
            os.close(self._status)
            self._status = None
        return self.returncode


def python(
    *words: str | Path, stdin: str = "", check: bool = False, timeout: float = 120, **options: Any
) -> subprocess.CompletedProcess[str]:
    """`subprocess.run([sys.executable, *words])` with its output captured."""
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with Process(*words, **{**pipes, **options}) as process:
        try:
            out, err = process.communicate(stdin, timeout=timeout)
        except BaseException:
            process.kill()
            raise
    done = subprocess.CompletedProcess(process.args, process.returncode, out, err)
    if check:
        done.check_returncode()
    return done


def cli(folder: Path, *words: str | Path, stdin: str = "") -> subprocess.CompletedProcess[str]:
    """The command line in a folder, with a journal there and without colours."""
    environment = {**os.environ, "NO_COLOR": "1", "STAGEGRAPH_JOURNAL": str(folder / "runs.db")}
    return python("-m", "stagegraph", *words, stdin=stdin, cwd=folder, env=environment)


_one_at_a_time = threading.Lock()


def _number(status: int) -> int:
    data = os.read(status, 8)
    assert len(data) == 8, "the server of processes has ended"
    return int.from_bytes(data, signed=True)


@cache
def _server() -> socket.socket:
    ours, theirs = socket.socketpair()
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        server = subprocess.Popen(command, pass_fds=[theirs.fileno()], env={**os.environ, "OPENBLAS_NUM_THREADS": "1"})

    @atexit.register
    def end() -> None:
        ours.close()  # which the server reads as its end
        server.wait()

    return ours


# The server.


def serve(control: socket.socket) -> dict[str, Any]:
    """Fork a child for each command that comes; in a child, return the command."""
    from pydantic_ai.messages import ModelMessagesTypeAdapter

    import stagegraph

    packages = [
        stagegraph.__name__,
        *(module.name for module in pkgutil.walk_packages(stagegraph.__path__, "stagegraph.")),
    ]
    for name in [*PRELOADED, *packages]:
        if not name.endswith("__main__") and not name.startswith("stagegraph.local"):
            importlib.import_module(name)
    ModelMessagesTypeAdapter.dump_json([])  # which builds its schema
    gc.collect()
    gc.freeze()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # what a terminal sends to all is for the tests and their commands
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        size, descriptors, _, _ = socket.recv_fds(control, 8, 4)
        if not size:
            os._exit(0)
        text = b""
        while len(text) < int.from_bytes(size):
            text += control.recv(int.from_bytes(size) - len(text))
        if not os.fork():
            break
        for descriptor in descriptors:
            os.close(descriptor)
    # One process waits for the command, another one is the command.
    control.close()
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    *streams, status = descriptors
    child = os.fork()
    if child:
        for descriptor in (0, 1, 2, *streams):
            os.close(descriptor)
        os.write(status, child.to_bytes(8, signed=True))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(status, code.to_bytes(8, signed=True))
        os._exit(0)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
    os.closerange(3, max(descriptors) + 1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    return json.loads(text)


def become(asked: dict[str, Any]) -> tuple[types.CodeType, dict[str, Any]]:
    """Make this process what the command asks for; give the code and the variables of `__main__`."""
    os.chdir(asked["cwd"])
    os.environ.clear()
    os.environ.update(asked["env"])
    sys.stdout.reconfigure(line_buffering=sys.stdout.isatty())
    importlib.invalidate_caches()
    kind, *rest = asked["words"]
    module = types.ModuleType("__main__")
    sys.modules["__main__"] = module
    if kind == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        code = compile(rest[0], "<string>", "exec")
    elif kind == "-m":
        name = f"{rest[0]}.__main__" if importlib.util.find_spec(rest[0]).submodule_search_locations else rest[0]
        module.__spec__ = importlib.util.find_spec(name)
        module.__file__ = module.__spec__.origin
        module.__package__ = module.__spec__.parent
        sys.argv, sys.path[0] = [module.__file__, *rest[1:]], asked["cwd"]
        code = module.__spec__.loader.get_code(name)
    else:
        module.__file__ = kind
        sys.argv, sys.path[0] = [kind, *rest], str(Path(kind).resolve().parent)
        code = compile(Path(kind).read_bytes(), kind, "exec")
    return code, vars(module)


def main() -> None:
    ended = 1

    @atexit.register  # the first one is the last to be called; what would follow is to free what was imported
    def leave() -> None:
        if ended == -signal.SIGINT:
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError as error:
                print(f"Exception ignored in: {stream}\n{error!r}", file=sys.__stderr__)
        os._exit(ended)

    code, variables = become(serve(socket.socket(fileno=int(sys.argv[1]))))
    try:
        exec(code, variables)  # noqa: S102 - that is the command
        ended = 0
    except SystemExit as error:
        if error.code is not None and not isinstance(error.code, int):
            print(error.code, file=sys.stderr)
        ended = 0 if error.code is None else error.code if isinstance(error.code, int) else 1
    except BaseException as error:  # noqa: BLE001 - as at the end of any program
        sys.excepthook(type(error), error, error.__traceback__ and error.__traceback__.tb_next)
        ended = -signal.SIGINT if isinstance(error, KeyboardInterrupt) else 1


if __name__ == "__main__":
    main()
