"""A process whose steps order things in a shop, and which may be killed at any moment; see `test_effects.py`.

The shop is a file to which orders are added. It knows an order again by its idempotency key: the run and the key of the
call. A line is printed whenever something begins or has had its effect.
"""

import asyncio
import itertools
import os
import random
import sys
from pathlib import Path
from typing import Any

import anyio
from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelResponse, TextPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Graph, LimitError, Limits, Run, Runner, Stage, current_call, fan_out, gather, settle, step
from stagegraph.journal import SqliteJournal

FOLDER, WORKLOAD, PROCESS = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
_random = random.Random(f"{WORKLOAD} {PROCESS}")
_numbers = itertools.count()


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def append(name: str, line: str) -> None:
    file = os.open(FOLDER / name, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    os.write(file, f"{line}\n".encode())
    os.close(file)


def place(key: str, item: str) -> str:
    """Order something; the shop answers with its receipt, and a known key gets the receipt that it got before."""
    name = "orders" if current_call().run_id == "r" else "before"
    orders = FOLDER / name
    for line in orders.read_text().splitlines() if orders.exists() else ():
        known, _, receipt = line.split(" ")
        if known == key:
            append(f"{name} again", f"{key} {item}")
            return receipt
    receipt = f"<{key}|{item}|{PROCESS}{next(_numbers)}>"
    append(name, f"{key} {item} {receipt}")
    return receipt


async def moment() -> None:
    await anyio.sleep(_random.choice((0, 0.001, 0.003, 0.02)))


@step
async def order(item: str) -> str:
    """Order one item, whatever was said about it before."""
    key = current_call().key
    say(f"begins {key}")
    await moment()
    receipt = place(key, item.partition("/")[0])
    say(f"ordered {key}")
    await moment()
    return receipt


async def model(messages: list[ModelMessage], _info: AgentInfo) -> ModelResponse:
    """Say something that nobody has said before."""
    key, text = current_call().key, str(messages[-1].parts[-1].content)  # type: ignore[union-attr]
    append("asked", key)
    say(f"asked {key}")
    await moment()
    return ModelResponse([TextPart(f"{text}/{key}/{PROCESS}{next(_numbers)}")])


class Fan(Graph[str, str]):
    """The same item for everybody."""

    order = order

    async def flow(self, text: str) -> str:
        return "\n".join(await fan_out(self.order, [text] * 6))


class Pair(Graph[str, str]):
    """Two cups, three times: no call has an equal one but its twin."""

    order = order

    async def flow(self, text: str) -> str:
        pairs = [await fan_out(self.order, [f"{text}-{i}"] * 2) for i in range(3)]
        return "\n".join(receipt for pair in pairs for receipt in pair)


class Row(Graph[str, str]):
    """The same item time and again."""

    order = order

    async def flow(self, text: str) -> str:
        return "\n".join([await self.order(text) for _ in range(6)])


class Named(Graph[str, str]):
    """Items in another order in every process, each under its own name."""

    order = order

    async def flow(self, text: str) -> str:
        items = [f"{text}{i % 2}-{i}" for i in range(6)]
        _random.shuffle(items)
        outcomes = await settle(self.order, items, key=lambda item: item.rpartition("-")[2], limit=3)
        return "\n".join(sorted(outcome.value for outcome in outcomes))


class Choose(Graph[str, str]):
    """An agent is asked the same everywhere; what it answers is ordered, twice."""

    ask = Stage(str, Agent(instructions="Choose."))
    order = order

    async def one(self, text: str) -> str:
        chosen = await self.ask(text)
        return chosen + " " + " ".join(await gather(self.order(chosen), self.order(chosen)))

    async def flow(self, text: str) -> str:
        return "\n".join(await fan_out(self.one, [text] * 4, limit=3))


class Nested(Graph[str, str]):
    """Graphs in graphs, which order the same."""

    row = Row()
    choose = Choose()

    async def flow(self, text: str) -> str:
        rows = await fan_out(self.row, [text] * 2)
        return "\n".join([*rows, *await fan_out(self.choose, [text] * 2)])


class Again(Graph[str, str]):
    """A replay of a run that ordered three cups, with tea in front and one cup more."""

    order = order

    async def flow(self, text: str) -> str:
        return "\n".join(await fan_out(self.order, ["cup"] * 3 if text == "before" else ["tea", *["cup"] * 4]))


WORKLOADS: dict[str, Graph[str, str]] = {
    "fan": Fan(),
    "pair": Pair(),
    "row": Row(),
    "named": Named(),
    "again": Again(),
    "choose": Choose(),
    "nested": Nested(),
}


async def finish(runner: Runner, run_id: str, text: str, **options: Any) -> Run[str, str]:
    """The finished run of that name, which begins if there is none."""
    assert runner.journal is not None
    if await runner.journal.run(run_id) is None:
        return await runner.run(WORKLOADS[WORKLOAD], text, run_id=run_id, **options)
    return await runner.resume(run_id, graph=WORKLOADS[WORKLOAD])


async def main() -> None:
    """Finish the run `r`, and before it the one that it replays."""
    journal = SqliteJournal(FOLDER / "runs.db")
    limits = Limits(requests=int(os.environ["REQUESTS"])) if "REQUESTS" in os.environ else None
    runner = Runner(FunctionModel(model), journal=journal)
    replay = await finish(runner, "before", "before") if WORKLOAD == "again" else None
    try:
        run = await finish(runner, "r", "cup", limits=limits, replay=replay)
    except LimitError as error:
        append("limit", str(error))
        return
    for key, why in run.rerun.items():
        append("rerun", f"{key} {why}")
    (FOLDER / "output").write_text(run.output)
    await journal.aclose()


if __name__ == "__main__":
    asyncio.run(main())
