"""Run code and tests that a model wrote, in a process of their own with limits.

What this does NOT protect against is said in the README beside this file: read it before you point it at strangers.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import shutil
import signal
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Limits", "Verdict", "run_tests"]

_HARNESS = Path(__file__).with_name("spec_review_harness.py")


@dataclass(frozen=True)
class Limits:
    """What the tests of one section may use."""

    seconds: float = 10.0
    """Wall time; the processor time is limited to the same."""
    memory: int = 512 * 1024**2
    """Bytes of address space."""
    output: int = 64_000
    """Bytes of standard output and error; more ends the tests."""
    file: int = 1_000_000
    """Bytes of any file that is written."""


@dataclass(frozen=True)
class Verdict:
    """How the tests went."""

    passed: bool
    ran: int
    failed: int
    log: str
    seconds: float
    stopped: str | None
    """Why they were ended from outside, if they were."""


async def run_tests(code: str, tests: str, limits: Limits | None = None) -> Verdict:
    """Write both into a fresh folder and run the tests there; nothing of it is left afterwards.

    Raises:
        OSError: the system cannot limit processes (this needs a Unix), or cannot start one.
    """
    limits = limits or Limits()
    folder = Path(tempfile.mkdtemp(prefix="spec_review_"))
    try:
        (folder / "solution.py").write_text(code, encoding="utf-8", errors="replace")
        (folder / "test_solution.py").write_text(tests, encoding="utf-8", errors="replace")
        return await _run(folder, limits)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


async def _run(folder: Path, limits: Limits) -> Verdict:
    nonce = secrets.token_hex(16)
    order = json.dumps({"nonce": nonce, "seconds": limits.seconds, "memory": limits.memory, "file": limits.file})
    reading, writing = os.pipe()
    began = time.monotonic()
    try:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-I",
            "-B",
            str(_HARNESS),
            str(writing),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            cwd=folder,
            env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "HOME": str(folder)},
            pass_fds=(writing,),
            start_new_session=True,
        )
        os.close(writing)
        writing = -1
        log, stopped = await _watched(process, order, limits)
        verdict = _verdict(reading, nonce)
    finally:
        os.close(reading)
        if writing != -1:
            os.close(writing)
    ran, failed = verdict or (0, 0)
    if stopped is None and verdict is None:
        stopped = f"the process ended without a verdict (exit code {process.returncode})"
    log = log.replace(f"{folder}{os.sep}", "")  # the folder's name is random
    passed = stopped is None and failed == 0 and ran > 0
    if stopped is None and ran == 0:
        log += "\nno tests were found"
    return Verdict(passed, ran, failed, log.strip(), time.monotonic() - began, stopped)


async def _watched(process: asyncio.subprocess.Process, order: str, limits: Limits) -> tuple[str, str | None]:
    """What the process printed, and why it had to be ended, if it had to; it is gone in any case."""
    given, printed = process.stdin, process.stdout
    if given is None or printed is None:
        msg = "the process has no pipes"
        raise OSError(msg)
    output = bytearray()
    stopped: str | None = None
    try:
        async with asyncio.timeout(limits.seconds):
            with contextlib.suppress(ConnectionError):
                given.write(order.encode())
                await given.drain()
                given.close()
            while chunk := await printed.read(8192):
                output += chunk
                if len(output) > limits.output:
                    stopped = f"it printed more than {limits.output:,} bytes"
                    break
            else:
                await process.wait()
    except TimeoutError:
        stopped = f"it ran longer than {limits.seconds:g} s"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # also what it started, as long as it stayed in the group
        _let_go(process)  # first: the wait lasts until every pipe is closed, and no reader is left
        await asyncio.shield(process.wait())
    return bytes(output[: limits.output]).decode("utf-8", "replace"), stopped


def _let_go(process: asyncio.subprocess.Process) -> None:
    """Close the pipes now: a child that left the group may still hold their other ends."""
    transport = getattr(process, "_transport", None)
    if transport is not None:
        transport.close()


def _verdict(reading: int, nonce: str) -> tuple[int, int] | None:
    """The harness's own word, on a channel that printing cannot reach and with a number that was not given away."""
    os.set_blocking(reading, False)
    with contextlib.suppress(BlockingIOError, ValueError, KeyError, TypeError):
        said = json.loads(os.read(reading, 4096))
        if said["nonce"] == nonce:
            return int(said["ran"]), int(said["failed"])
    return None
