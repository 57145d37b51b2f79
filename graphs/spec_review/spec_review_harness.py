"""Runs inside the limited process: sets the limits, runs the tests, says how it went on a channel of its own."""

import importlib.util
import inspect
import json
import os
import resource
import sys
import traceback
import unittest
from pathlib import Path
from types import ModuleType


def limit(order: dict[str, int]) -> None:
    seconds = max(1, int(order["seconds"]) + 1)
    for what, most in (
        (resource.RLIMIT_CPU, seconds),
        (resource.RLIMIT_AS, order["memory"]),
        (resource.RLIMIT_FSIZE, order["file"]),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NOFILE, 64),
        (resource.RLIMIT_NPROC, 64),
    ):
        _, hard = resource.getrlimit(what)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (allowed, allowed))


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, Path.cwd() / f"{name}.py")
    if spec is None or spec.loader is None:
        raise ImportError(name)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def run(module: ModuleType) -> tuple[int, int]:
    """Plain `test_*` functions and `unittest` cases; how many ran and how many failed."""
    ran = failed = 0
    for name, value in list(vars(module).items()):
        if name.startswith("test") and inspect.isfunction(value) and not inspect.signature(value).parameters:
            ran += 1
            try:
                value()
            except BaseException:  # noqa: BLE001 - a test may raise anything, SystemExit as well
                failed += 1
                print(f"{name} failed:")
                traceback.print_exc(limit=-3, file=sys.stdout)
    suite = unittest.defaultTestLoader.loadTestsFromModule(module)
    if suite.countTestCases():
        result = unittest.TextTestRunner(stream=sys.stdout, verbosity=0).run(suite)
        ran += result.testsRun
        failed += len(result.failures) + len(result.errors)
    return ran, failed


def main() -> None:
    channel = int(sys.argv.pop())
    os.set_inheritable(channel, False)
    order = json.loads(sys.stdin.read())
    limit(order)
    sys.path.insert(0, str(Path.cwd()))
    ran = failed = 0
    try:
        load("solution")
        ran, failed = run(load("test_solution"))
    except BaseException:  # noqa: BLE001
        ran, failed = ran + 1, failed + 1
        traceback.print_exc(limit=-3, file=sys.stdout)
    sys.stdout.flush()
    os.write(channel, json.dumps({"nonce": order["nonce"], "ran": ran, "failed": failed}).encode())
    os._exit(0)  # threads that the code left running end with it


main()
