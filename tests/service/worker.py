"""A service whose steps leave one line in a file when they begin, and wait until another file is there."""

import sys
from pathlib import Path

import anyio

from serving import app_for, serve
from stagegraph import Graph, Runner, current_call, fan_out, step
from stagegraph.journal import SqliteJournal

FOLDER, DRAIN = Path(sys.argv[1]), float(sys.argv[2])
PATIENCE = int(sys.argv[3]) if len(sys.argv) > 3 else None
"""What uvicorn calls `--timeout-graceful-shutdown`."""


def did() -> None:
    info = current_call()
    with (FOLDER / "effects").open("ab", buffering=0) as file:
        file.write(f"{info.run_id} {info.key}\n".encode())


@step
async def quick(number: int) -> int:
    did()
    return number + 1


@step
async def gated(number: int) -> int:
    """Ends when the gate is open; it has an effect only then."""
    while not (FOLDER / "gate").exists():  # noqa: ASYNC110 - another process opens it
        await anyio.sleep(0.01)
    did()
    return number * 2


class Work(Graph[int, list[int]]):
    quick = quick
    gated = gated

    async def flow(self, number: int) -> list[int]:
        firsts = await fan_out(self.quick, range(number, number + 3))
        return await fan_out(self.gated, firsts)


def main() -> None:
    runner = Runner(journal=SqliteJournal(FOLDER / "runs.db"), drain_seconds=DRAIN, resume_interrupted=True)
    app = app_for(Work(), runner)

    @app.post("/by-hand/{number}")
    async def by_hand(number: int) -> list[int]:
        """A handler that somebody wrote without the router."""
        return (await runner.run(Work(), number)).output

    serve(app, timeout_graceful_shutdown=PATIENCE)


if __name__ == "__main__":
    main()
