"""Steps that act on the world, in processes that are killed: each effect once, and each answer where it belongs."""

import os
import random
import re
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from forked import Process, python

WORKER = Path(__file__).with_name("shop.py")
RECEIPT = re.compile(r"<([^|<>]*)\|([^|<>]*)\|([a-z0-9]*)>")
KEYS = {
    "fan": {f"order[{i}]": "cup" for i in range(6)},
    "pair": {f"order[{i}]{f'#{n}' if n else ''}": f"cup-{n}" for n in range(3) for i in range(2)},
    "row": {f"order{f'#{i}' if i else ''}": "cup" for i in range(6)},
    "named": {f"order[{i}]": f"cup{i % 2}-{i}" for i in range(6)},
    "again": {"order[0]": "tea", "order[4]": "cup"},
    "choose": {f"order[{i}]{number}": "cup" for i in range(4) for number in ("", "#1")},
    "nested": {
        **{f"row[{i}].order{f'#{number}' if number else ''}": "cup" for i in range(2) for number in range(6)},
        **{f"choose[{i}].order[{j}]{n}": "cup" for i in range(2) for j in range(4) for n in ("", "#1")},
    },
}
"""Workload -> the key of each order that is wanted, and its item."""
KILLS = int(os.environ.get("STAGEGRAPH_SEEDS", "12"))
MOST = 4
"""Kills of one run."""


class Killed:
    """A run of one workload whose processes are killed, until one of them finishes it."""

    def __init__(self, folder: Path, workload: str, seed: int, **variables: str) -> None:
        self.folder = folder
        self.workload = workload
        self.kills = 0
        self.variables = {**os.environ, **variables}
        choice = random.Random(f"{workload} {seed}")
        moments = [choice.randrange(1, 3 * len(KEYS[workload])) for _ in range(choice.randrange(1, MOST + 1))]
        for number, moment in enumerate(moments):
            with self.process(f"{seed}p{number}") as worker:
                assert worker.stdout is not None
                if all(worker.stdout.readline() for _ in range(moment)):
                    time.sleep(choice.random() * 0.006)  # the moment is any, not only that of a line
                    worker.kill()
                    self.kills += worker.wait() < 0
                worker.communicate()
        with self.process(f"{seed}last") as worker:
            said, _ = worker.communicate()
            assert worker.returncode == 0, said

    def process(self, name: str) -> Process:
        return Process(WORKER, self.folder, self.workload, name, stdout=subprocess.PIPE, env=self.variables)

    def lines(self, name: str) -> Iterator[list[str]]:
        file = self.folder / name
        return (line.split(" ") for line in (file.read_text().splitlines() if file.exists() else ()))

    def check(self) -> None:
        """Every order was placed once, for the right item, and its receipt is in the output where it belongs."""
        wanted = KEYS[self.workload]
        placed = Counter((key, item) for key, item, _ in self.lines("orders"))
        assert placed == Counter(wanted.items()), "an order was lost, doubled, or placed for something else"
        assert all(wanted[key] == item for key, item in self.lines("orders again")), "a key was used for two orders"
        receipts = {receipt for _, _, receipt in self.lines("orders")}
        output = (self.folder / "output").read_text()
        found = [match.group() for match in RECEIPT.finditer(output)]
        replayed = {receipt for _, _, receipt in self.lines("before")}
        assert Counter(found) == Counter([*receipts, *replayed]), "a receipt is lost, or is given for two orders"
        keys = [match.group(1) for match in RECEIPT.finditer(output) if match.group() in receipts]
        assert keys == list(wanted), "a receipt is where another one belongs"
        for answer, key in re.findall(r"cup/([^/ ]*)/[^ ]* <([^|]*)\|", output):
            assert key.removesuffix("#1") == answer.replace("ask", "order"), "an answer is where another one belongs"


def until_killed(folder: Path, workload: str, **variables: str) -> Iterator[Killed]:
    """Runs of a workload, until its share of all processes was killed."""
    kills = seed = 0
    while kills < -(-KILLS // len(KEYS)):
        place = folder / str(seed)
        place.mkdir()
        run = Killed(place, workload, seed, **variables)
        yield run
        kills += run.kills
        seed += 1


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("workload", KEYS)
def test_kills_lose_double_and_cross_no_order(tmp_path: Path, workload: str) -> None:
    """Equal orders, side by side and in a row, in graphs, from agents: killed at any moment, also while resumed."""
    for run in until_killed(tmp_path, workload):
        run.check()


@pytest.mark.timeout(1800)
def test_kills_give_no_run_more_than_its_limit(tmp_path: Path) -> None:
    """Of eight agents and eleven requests: what was on its way when a process was killed is spent, answered or not."""
    for run in until_killed(tmp_path, "nested", REQUESTS="11"):
        made = len(list(run.lines("asked")))
        assert made <= 11
        if (run.folder / "limit").exists():
            assert made > 0
        else:
            run.check()


TWO_CUPS = """
import asyncio, os, signal, sys
from stagegraph import Graph, Runner, current_call, fan_out, step
from stagegraph.journal import SqliteJournal

journal = SqliteJournal(sys.argv[1])

class Cups(Graph[list[str], list[str]]):
    @step
    async def order(item: str) -> str:
        key = current_call().key
        print("ordered", key, flush=True)
        while key == "order[0]" and sys.argv[2] == "run":
            if any(row.status == "succeeded" for row in await journal.calls("r")):
                os.kill(os.getpid(), signal.SIGKILL)
        return f"{item} of {key}"

    async def flow(self, items: list[str]) -> list[str]:
        return await fan_out(self.order, items)

async def main():
    runner = Runner(journal=journal)
    if sys.argv[2] == "run":
        await runner.run(Cups(), ["cup", "cup"], run_id="r")
    print([(row.key, row.status) for row in await journal.calls("r") if row.kind == "step"])
    run = await runner.resume("r", graph=Cups(), strict=True)
    print(run.output, dict(run.rerun))
    await journal.aclose()

asyncio.run(main())
"""


def test_of_two_equal_orders_the_one_that_was_interrupted_is_placed(tmp_path: Path) -> None:
    """It has begun, which its row says; it runs under its own key, and does not take the receipt of the other one."""
    assert python("-c", TWO_CUPS, tmp_path / "runs.db", "run").stdout == "ordered order[0]\nordered order[1]\n"
    assert python("-c", TWO_CUPS, tmp_path / "runs.db", "resume").stdout.splitlines() == [
        "[('order[0]', 'running'), ('order[1]', 'succeeded')]",
        "ordered order[0]",
        "['cup of order[0]', 'cup of order[1]'] {'order[0]': 'it had begun, and its end was not recorded'}",
    ]
