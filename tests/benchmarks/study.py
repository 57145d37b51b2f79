"""A simulated study of tuning: how many runs until a graph with hidden rules is right, by who hears what about them.

python tests/benchmarks/study.py [--seeds 20] [--minutes 12] [--cap 400] [--ways cba] [--faults both]

Five scripted stages, two of them in a fan-out, each with a hidden rule that its instructions have to hold. Independent
faults: the score is the share of stages without one. Coupled faults: the score is 1 when all are right, and else 0.
The reflection model is the same for all: it adds the rules that the feedback mentions, and where none is mentioned, one
of a pool at random. Three ways to tune:

(a) `dspy.GEPA` on a `GraphModule`, with the final score alone; (b) the same with the notes of the metric routed to the
stages; (c) `stagegraph.optimize.GEPA` with those notes.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import re
import statistics
import sys
import time
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from multiprocessing import get_context
from threading import Lock

from pydantic_ai import Agent
from pydantic_ai.messages import ModelMessage, ModelRequest, ModelResponse, TextPart, UserPromptPart
from pydantic_ai.models.function import AgentInfo, FunctionModel

from stagegraph import Graph, Run, Runner, Score, Stage, fan_out
from stagegraph.data.examples import Example
from stagegraph.journal import MemoryJournal
from table import machine

TRAIN, VAL, WIDTH = 6, 6, 2
STAGES = ("plan", "branch.find", "branch.read", "draft", "check")
POOL = tuple(f"RULE-{number:02}" for number in range(1, 21))
WAYS = {
    "a": "(a) `dspy.GEPA`, final score",
    "b": "(b) `dspy.GEPA`, routed notes",
    "c": "(c) `stagegraph` GEPA, routed notes",
}
FAULTS = {False: "independent", True: "coupled"}


class Branch(Graph[str, str]):
    """Two stages of every item."""

    find = Stage(str, Agent(instructions="find: look it up."))
    read = Stage(str, Agent(instructions="read: say what it says."))

    async def flow(self, text: str) -> str:
        return await self.read(await self.find(text))


class Report(Graph[str, str]):
    """Five stages, two of them once an item."""

    plan = Stage(str, Agent(instructions="plan: split the task."))
    branch = Branch()
    draft = Stage(str, Agent(instructions="draft: write it down."))
    check = Stage(str, Agent(instructions="check: have a last look."))

    async def flow(self, text: str) -> str:
        plan = await self.plan(text)
        parts = await fan_out(self.branch, [f"{plan} {number}" for number in range(WIDTH)])
        return await self.check(await self.draft(" | ".join(parts)))


@dataclass
class World:
    """One seed: the hidden rules, the scripted models, the metric, and what was counted."""

    seed: int
    coupled: bool
    noted: bool
    """Whether the metric says more than the final score."""
    runs: int = 0
    calls: int = 0
    solved: tuple[int, int] | None = None
    """Runs and model calls until a candidate was right on the whole validation set."""
    right: dict[str, set[str]] = field(default_factory=dict)
    lock: Lock = field(default_factory=Lock)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"study {self.seed}")
        self.rules = dict(zip(STAGES, self.rng.sample(POOL, len(STAGES)), strict=True))

    def answer(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        """A stage: it does well if its instructions hold its rule, and says nothing about why."""
        text = info.instructions or ""
        name = text.partition(":")[0]
        path = next(path for path in STAGES if path.endswith(name))
        with self.lock:
            self.calls += 1
        return ModelResponse([TextPart(f"{name} {'fine' if self.rules[path] in text else 'poor'}")])

    def reflect(self, messages: list[ModelMessage], info: AgentInfo) -> ModelResponse:
        """The reflection model, for both ways of asking."""
        question = "\n".join(
            part.content
            for message in messages
            if isinstance(message, ModelRequest)
            for part in message.parts
            if isinstance(part, UserPromptPart) and isinstance(part.content, str)
        )
        ours = "# The instructions now" in question
        pattern = (
            r"# The instructions now\n```\n(.*?)\n```(.*)" if ours else r"current_instruction ## \]\](.*?)\[\[ ##(.*)"
        )
        found = re.search(pattern, question, re.DOTALL)
        assert found is not None, question
        now, feedback = found[1].strip(), found[2]
        with self.lock:
            self.calls += 1
            rules = sorted(set(re.findall(r"RULE-\d\d", feedback)) - set(re.findall(r"RULE-\d\d", now)))
            if not rules:
                rules = [self.rng.choice([rule for rule in POOL if rule not in now] or POOL)]
        text = f"{now} {' '.join(rules)}"
        return ModelResponse([TextPart(f"```\n{text}\n```" if ours else json.dumps({"new_instruction": text}))])

    def metric(self, example: Example[str], run: Run[str, str]) -> Score:
        """The final score, and with notes also whose fault it was; asked once a run, so it counts them."""
        poor = [call for call in run.calls() if str(call.output).endswith("poor")]
        bad = {call.path for call in poor}
        value = float(not bad) if self.coupled else 1 - len(bad) / len(STAGES)
        texts = sorted({f"{call.path}: {_instructions(call.messages)}" for call in run.calls() if call.messages})
        with self.lock:
            self.runs += 1
            if value == 1.0 and example.id.startswith("val"):
                right = self.right.setdefault("\n".join(texts), set())
                right.add(example.id)
                if len(right) == VAL and self.solved is None:
                    self.solved = self.runs, self.calls
        notes = [call.note(f"It is missing {self.rules[call.path]}.") for call in poor] if self.noted else []
        return Score(value, notes=notes)


def _instructions(messages: Sequence[ModelMessage]) -> str:
    return next((m.instructions or "" for m in messages if isinstance(m, ModelRequest)), "")


def examples() -> tuple[list[Example[str]], list[Example[str]]]:
    """Training and validation examples."""
    train, val = (
        [Example(f"{part} task {i}", id=f"{part}{i}") for i in range(n)] for part, n in (("train", TRAIN), ("val", VAL))
    )
    return train, val


def with_dspy(world: World, cap: int) -> None:
    """`dspy.GEPA` as it comes, but for when it stops."""
    import dspy

    from stagegraph.optimize import GraphModule, dspy_metric, lm, to_dspy

    module = GraphModule(Report(), model=FunctionModel(world.answer))
    optimizer = dspy.GEPA(
        dspy_metric(world.metric),
        max_metric_calls=10 * cap,
        reflection_lm=lm(FunctionModel(world.reflect)),
        num_threads=VAL,
        seed=world.seed,
        gepa_kwargs={"stop_callbacks": lambda _state: world.solved is not None or world.runs >= cap},
    )
    train, val = (to_dspy(part, module.graph) for part in examples())
    optimizer.compile(module, trainset=train, valset=val)


def with_ours(world: World, cap: int) -> None:
    """The search of this package as it comes."""
    from stagegraph.optimize import GEPA, Budget, GraphModule

    module = GraphModule(Report(), model=FunctionModel(world.answer), runner=Runner(journal=MemoryJournal()))
    optimizer = GEPA(
        world.metric, budget=Budget(runs=cap), reflection_model=FunctionModel(world.reflect), seed=world.seed
    )
    train, val = examples()
    optimizer.compile(module, trainset=train, valset=val)


@dataclass(frozen=True)
class Result:
    """One way on one seed."""

    way: str
    coupled: bool
    seed: int
    solved: tuple[int, int] | None
    runs: int
    calls: int


def work(way: str, coupled: bool, seed: int, cap: int, deadline: float) -> Result | None:
    """One way on one seed, in a process of its own; nothing after the deadline."""
    if time.time() > deadline:
        return None
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    world = World(seed, coupled, noted=way != "a")
    (with_ours if way == "c" else with_dspy)(world, cap)
    solved = world.solved if world.solved is not None and world.solved[0] <= cap else None
    return Result(way, coupled, seed, solved, world.runs, world.calls)


def quiet() -> None:
    """A process of the pool: GEPA's progress bars are not for this."""
    for stream in (1, 2):
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream)


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """The 95 % interval of a median by the percentile bootstrap."""
    rng = random.Random(seed)
    medians = sorted(statistics.median(rng.choices(values, k=len(values))) for _ in range(4_000))
    return medians[100], medians[3_899]


def shown(values: Sequence[float], floor: float) -> str:
    """A median with its interval; seeds that were not solved count as infinite."""

    def number(value: float) -> str:
        return f"> {floor:.0f}" if value == float("inf") else f"{value:.0f}"

    low, high = interval(values)
    return f"{number(statistics.median(values))} ({number(low)} to {number(high)})"


def needed(results: Sequence[Result], which: int) -> tuple[list[float], float]:
    """Per seed, runs (0) or model calls (1) to the optimum; and what every unsolved one had used by then."""
    values = [one.solved[which] if one.solved else float("inf") for one in results]
    unsolved = [(one.runs, one.calls)[which] for one in results if one.solved is None]
    return values, min(unsolved, default=0)


def at_least(results: Sequence[Result], which: int) -> float:
    """The median, an unsolved seed counted with what it had used when it was given up."""
    return statistics.median([one.solved[which] if one.solved else (one.runs, one.calls)[which] for one in results])


def report(results: Sequence[Result], cap: int) -> str:
    """The table, and the verdict in one line for each kind of fault."""
    lines = [
        "| faults | way | solved | runs to the optimum | model calls to the optimum |",
        "| --- | --- | --- | --- | --- |",
    ]
    verdicts: list[str] = []
    for coupled, fault in FAULTS.items():
        by = {way: [one for one in results if (one.way, one.coupled) == (way, coupled)] for way in WAYS}
        for way, label in WAYS.items():
            if rows := by[way]:
                solved = sum(one.solved is not None for one in rows)
                cells = " | ".join(shown(*needed(rows, which)) for which in (0, 1))
                lines.append(f"| {fault} | {label} | {solved} of {len(rows)} seeds | {cells} |")
        if by["a"] and by["c"]:
            runs, calls = (at_least(by["c"], which) / at_least(by["a"], which) for which in (0, 1))
            yes = "yes" if runs <= 1 / 2 and calls <= 1 / 3 and all(one.solved for one in by["c"]) else "NO"
            bound = "at most " if any(one.solved is None for one in by["a"]) else ""
            verdicts.append(
                f"{fault}: (c) solves every seed with at most half the runs and a third of the model calls of (a): "
                f"{yes}, it needs {bound}{runs:.2f} of the runs and {bound}{calls:.2f} of the calls"
            )
    about = (
        f"Medians with 95 % bootstrap intervals; given up after the step that reached {cap} runs; {TRAIN} "
        f"training and {VAL} validation examples, fan-out of {WIDTH}, {len(POOL)} rules in the pool."
    )
    return "\n".join([*lines, "", about, "", *verdicts, "", machine()])


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the study."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--minutes", type=float, default=12)
    parser.add_argument("--cap", type=int, default=400)
    parser.add_argument("--ways", default="cba", help="which of them, a letter each")
    parser.add_argument("--faults", choices=[*FAULTS.values(), "both"], default="both")
    given = parser.parse_args(arguments)
    began = time.time()
    deadline = began + 60 * given.minutes
    kinds = [coupled for coupled, name in FAULTS.items() if given.faults in {name, "both"}]
    # The search of this package first, then seed by seed, so that what the time allows is the same for all others.
    jobs = [("c", coupled, seed) for seed in range(given.seeds) for coupled in kinds if "c" in given.ways]
    jobs += [
        (way, coupled, seed) for seed in range(given.seeds) for way in given.ways if way != "c" for coupled in kinds
    ]
    found: list[Result] = []
    with ProcessPoolExecutor(2, mp_context=get_context("spawn"), initializer=quiet) as pool:
        waiting = [pool.submit(work, *job, given.cap, deadline) for job in jobs]
        for future in waiting:
            result = future.result()
            if result is not None:
                found.append(result)
                print(f"{time.time() - began:6.0f} s {result}", file=sys.stderr, flush=True)
    print(report(found, given.cap))
    print(f"\n{(time.time() - began) / 60:.1f} minutes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
