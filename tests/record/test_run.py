"""What a run leaves behind: typed calls, the data flow that really happened, drawings, and JSON that comes back."""

import copy
import dataclasses
import pickle
from enum import Enum

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from stagegraph import DeclarationError, Graph, Run, Runner, fan_out, gather, settle, step


@step
async def double(number: int) -> int:
    return number * 2


class Mood(Enum):
    GOOD = "good"
    BAD = "bad"


class Part(BaseModel):
    name: str
    mood: Mood = Mood.GOOD


class Parts(BaseModel):
    parts: list[Part]


@dataclasses.dataclass
class Pair:
    part: Part
    extra: dict[str, Part]


class Done(BaseModel):
    text: str


@step
async def split(text: str) -> Parts:
    return Parts(parts=[Part(name=word) for word in text.split()])


@step
async def pair(part: Part) -> Pair:
    return Pair(part, {"same": part})


@step
async def finish(pair: Pair) -> Done:
    if pair.part.name == "bad":
        msg = "this one is bad"
        raise ValueError(msg)
    return Done(text=pair.part.name)


@step
async def join(done: list[Done]) -> str:
    return " ".join(one.text for one in done)


@step
async def count(number: int) -> int:
    return number


class Branch(Graph[Part, Done]):
    pair = pair
    finish = finish

    async def flow(self, part: Part) -> Done:
        return await self.finish(await self.pair(part))


class Whole(Graph[str, str]):
    split = split
    branch = Branch()
    join = join
    count = count

    async def flow(self, text: str) -> str:
        parts = await self.split(text)
        outcomes = await settle(self.branch, parts.parts, key=lambda part: part.name)
        await gather(self.count(1), self.count(1))
        return await self.join([outcome.value for outcome in outcomes if outcome.ok])


@pytest.fixture(name="run")
async def _run() -> Run[str, str]:
    return await Runner().run(Whole(), "a bad c", tags=("x",), metadata={"k": 1}, session_id="s", user_id="u")


async def test_calls_are_found_by_node_and_by_key(run: Run[str, str]) -> None:
    """One node's calls, all leaf calls in key order, and one call by its key."""
    assert [call.key for call in run.calls(finish)] == ["branch[a].finish", "branch[bad].finish", "branch[c].finish"]
    assert [call.output and call.output.text for call in run.calls(Branch.finish)] == ["a", None, "c"]
    assert [call.key for call in run.calls(Whole.branch)] == ["branch[a]", "branch[bad]", "branch[c]"]
    assert "count#1" in [call.key for call in run.calls()]
    assert run.call("").output == "a c"
    assert run.root.children[0].key == "split"
    with pytest.raises(KeyError, match=r"did you mean `branch\[a\].finish`"):
        run.call("branch[a].finsh")
    with pytest.raises(DeclarationError, match="not part of Whole"):
        run.calls(split.__class__(split.fn))


def nodes_and_arrows(text: str) -> tuple[set[str], list[str]]:
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "flowchart TD"
    assert sum(line.startswith("subgraph ") for line in lines) == lines.count("end")
    ids = {line.split("(")[0].split("[")[0] for line in lines if line.startswith("n")}
    return ids, [line for line in lines if "-->" in line or "-.->" in line]


async def test_drawings_show_what_happened_and_what_is_declared(run: Run[str, str]) -> None:
    """One box a call and one arrow an edge; what is declared has a box a node."""
    text = run.mermaid()
    _, arrows = nodes_and_arrows(text)
    assert len(arrows) == len(run.edges())
    assert "branch[bad].finish" in text
    assert "failed" in text
    declared = Whole().mermaid()
    assert "branch (Branch)" in declared
    assert "Pair to Done" in declared
    nodes_and_arrows(declared)


async def test_a_wide_run_is_drawn_by_path() -> None:
    """Nobody can read a thousand boxes: they are counted."""

    class Many(Graph[int, list[int]]):
        count = count

        async def flow(self, size: int) -> list[int]:
            return await fan_out(self.count, range(size))

    text = (await Runner().run(Many(), 1_000)).mermaid()
    assert "1000 calls" in text
    assert len(text.splitlines()) < 10


@given(st.text(min_size=1, max_size=30))
def test_a_label_cannot_break_a_drawing_or_a_key(label: str) -> None:
    """A model may choose the names of items: keys stay unambiguous, and drawings stay drawings."""

    class One(Graph[str, list[Pair]]):
        pair = pair

        async def flow(self, text: str) -> list[Pair]:
            once = await fan_out(self.pair, [Part(name=text)], key=lambda part: part.name)
            return [*once, *await fan_out(self.pair, [Part(name=text)], key=lambda part: part.name)]

    run = One().run_sync(label)
    first, second = (call.key for call in run.calls(pair))
    assert second == f"{first}#1"
    assert first.startswith("pair[")
    assert first.endswith("]")
    assert not set(first[5:-1]) & set("[]#\n")
    nodes_and_arrows(run.mermaid())
    assert run.call(second).path == "pair"


async def test_a_run_may_be_copied_and_is_not_pickled() -> None:
    """What never changes is its own copy; pickle is refused with what to use for other processes."""
    run = await Runner().run(double, 2)
    assert copy.copy(run) is run
    assert copy.deepcopy({"run": run})["run"] is run
    said = r"cannot be pickled.*send `run\.to_json\(\)`, and read it with `Run\.from_json"
    with pytest.raises(TypeError, match=said):
        pickle.dumps(run)
