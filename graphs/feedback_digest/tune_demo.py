"""`make tune-demo`: repair a bad instruction of the `extract` stage, with nothing but the embedded model.

The stage starts with an instruction that seems helpful, and whose example the embedded model takes for the answer. No
model writes anything here: the search chooses from a pool of texts, so that nothing but the weights is needed.
"""

import argparse
import asyncio
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graph import FeedbackDigest
from stagegraph import Example, Prompt, Prompts, Score, load_examples
from stagegraph.optimize import Budget, Candidates, tune
from stagegraph.record.run import Run

BAD = 'Answer like this: {"customer":"Tom Baker","stars":5}'
POOL = (
    'Say who wrote the review and how many stars they gave, for example "Tom Baker" and 5.',
    "Be careful and accurate.",
    "Extract the name of the customer and the number of stars from the review.",
    "Who wrote the review, and how many stars did they give? Copy the name from the review.",
)
"""Texts to try instead; two of them are not good either."""


def right(example: Example[str], run: Run[Any, Any]) -> Score:
    """1 when customer and stars are both right; the notes say what is not."""
    want: Mapping[str, Any] = example.expected
    call, found = run.calls()[0], run.output
    notes = [
        call.note(f"The {name} is {want[name]!r}, not {given!r}.")
        for name, given in (("customer", found.customer.strip()), ("stars", found.stars))
        if str(given).casefold() != str(want[name]).casefold()
    ]
    return Score(float(not notes), notes=notes)


def progress(name: str, data: Mapping[str, Any]) -> None:
    """What the search is doing, in a line each."""
    if name == "validated":
        print(f"  candidate {data['candidate']}: {data['mean']:.2f} on the validation reviews", flush=True)
    elif name == "proposing":
        print(f"  another text for `{data['stage']}`", flush=True)


async def main(model: str, runs: int, fresh: int) -> None:
    """Tune on the `dev` reviews, report on `test` reviews."""
    began = time.monotonic()
    path, stage = Path(__file__).with_name("examples.jsonl"), FeedbackDigest.extract
    known, test = (load_examples(path, stage, split=split) for split in ("dev", "test"))
    train, val, test = known[0::2], known[1::2], test[:fresh]
    print(f"{len(train)} reviews to learn from, {len(val)} to choose by, {len(test)} fresh ones for the verdict")
    tuning = await tune(
        stage,
        right,
        train=train,
        val=val,
        test=test,
        budget=Budget(runs=runs),
        model=model,
        prompts=Prompts({stage.__node__.name: Prompt(BAD)}),
        proposer=Candidates({stage.__node__.name: POOL}),
        concurrency=4,
        callback=progress,
    )
    print(f"stopped: {tuning.found.stopped}\n\nscores on the validation reviews, which chose:")
    for number, one in enumerate(tuning.found.candidates):
        mark = "*" if number == tuning.found.best else " "
        print(f"{mark} {one.mean:.2f} {one.texts[stage.__node__.name]}")
    print(f"\non fresh reviews:\n\n{tuning.comparison.table()}")
    print(f"\n{tuning.spent.runs} runs to tune, {2 * len(test)} for the verdict, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="local:smollm2")
    parser.add_argument("--runs", type=int, default=72)
    parser.add_argument("--fresh", type=int, default=40, help="how many of the 72 test reviews the verdict is about")
    given = parser.parse_args()
    asyncio.run(main(given.model, given.runs, given.fresh))
