"""What a graph declares: which nodes are found, under which paths, and which declarations cannot work."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic_ai import Agent

from scripted import Still
from stagegraph import DeclarationError, Graph, Prompts, Runner, Stage, step


@step
async def same(text: str) -> str:
    return text


def stage(text: str = "") -> Stage[str, str]:
    return Stage(str, Agent(instructions=text))


def fresh() -> Any:
    return type(same)(same.fn)


class Leaf(Graph[str, str]):
    write = stage("Write.")
    same = same

    async def flow(self, text: str) -> str:
        return await self.same(text)


class Middle(Graph[str, str]):
    left = Leaf()
    right = Leaf()

    async def flow(self, text: str) -> str:
        return await self.left(await self.right(text))


class Top(Graph[str, str]):
    def __init__(self, extra: int = 2) -> None:
        self.experts = [stage(f"Expert {number}.") for number in range(extra)]
        self.tools = {"fast": fresh(), 7: (Leaf(), [fresh()])}

    middle = Middle()
    last = stage("Last.")

    async def flow(self, text: str) -> str:
        return await self.middle(text)


def test_paths_are_where_nodes_are_declared() -> None:
    """Attributes, collections and graphs in graphs, parents first, in the order of declaration."""
    assert list(Top().__node__.tree.nodes) == [
        "",
        "middle",
        "middle.left",
        "middle.left.write",
        "middle.left.same",
        "middle.right",
        "middle.right.write",
        "middle.right.same",
        "last",
        "experts.0",
        "experts.1",
        "tools.fast",
        "tools.7.0",
        "tools.7.0.write",
        "tools.7.0.same",
        "tools.7.1.0",
    ]
    assert list(Prompts.of(Top(0))) == [
        "middle.left.write",
        "middle.right.write",
        "last",
        "tools.7.0.write",
    ]


def test_a_single_node_has_its_name_as_its_path() -> None:
    """A stage or step that is run by itself is found under its own name."""
    assert list(same.__node__.tree.nodes) == ["same"]
    assert list(Leaf.write.__node__.tree.nodes) == ["write"]
    assert list(Prompts.of(stage())) == ["stage"]
    assert list(Prompts.of(Stage(str, Agent(name="poet")))) == ["poet"]


def test_a_path_outlives_what_happens_to_the_agent() -> None:
    """An agent that gets its name later, as Pydantic AI gives it one, does not move its stage."""
    agent = Agent()
    lonely = Stage(str, agent)
    agent.name = "renamed"
    assert list(Prompts.of(lonely)) == ["stage"]


def test_graphs_of_one_class_have_separate_paths() -> None:
    """A change to the text at one path is no change to the other."""
    tree = Middle().__node__.tree
    assert tree.paths(Leaf.write) == {"left.write", "right.write"}
    assert tree.paths(Middle.left) == {"left"}


def test_an_instance_may_replace_a_node_of_its_class() -> None:
    """What `__init__` sets goes before what the class says."""

    class Other(Leaf):
        def __init__(self) -> None:
            self.write = stage("Set.")

    assert Prompts.of(Other())["write"].instructions == "Set."


@pytest.mark.parametrize("key", ["a.b", "a[0]", "a#1", "", "]", (1, 2), None, 1])
def test_a_key_that_cannot_be_part_of_a_path_is_refused(key: Any) -> None:
    """Dots, brackets and `#` have a meaning in keys; `1` and `"1"` would make one path, and one node would be lost."""

    class Keyed(Still):
        def __init__(self) -> None:
            self.nodes = {key: fresh()} if key != 1 else {1: fresh(), "1": fresh()}

    said = (
        r"Keyed\.nodes: the key .* cannot be part of a path" if key != 1 else r"Keyed declares two nodes at `nodes\.1`"
    )
    with pytest.raises(DeclarationError, match=said):
        _ = Keyed().__node__.tree


def test_a_node_of_another_graph_is_not_found() -> None:
    """The message lists what there is."""
    with pytest.raises(DeclarationError, match=r"is not part of Leaf, which has: write, same"):
        Leaf().__node__.tree.paths(Top.last)


async def test_reading_a_graph_does_not_change_it() -> None:
    """Looking at a tree, or running, leaves the same attributes behind."""
    graph = Top()
    before, nodes = dict(vars(graph)), list(graph.__node__.tree.nodes)
    async with Runner() as runner:
        assert (await runner.run(graph, "x")).output == "x"
    assert {name: vars(graph)[name] for name in before} == before
    assert list(graph.__node__.tree.nodes) == nodes


names = st.from_regex(r"[a-z][a-z0-9_]{0,5}", fullmatch=True).filter(
    lambda name: name not in {"run", "flow", "label", "kind", "takes", "gives"}
)
trees = st.recursive(
    st.just("leaf"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=12,
)


def planted(tree: Any) -> Any:
    if tree == "leaf":
        return fresh()
    return [planted(one) for one in tree] if isinstance(tree, list) else {k: planted(v) for k, v in tree.items()}


def expected(name: str, tree: Any) -> list[str]:
    if tree == "leaf":
        return [name]
    parts = enumerate(tree) if isinstance(tree, list) else tree.items()
    return [path for key, one in parts for path in expected(f"{name}.{key}", one)]


@given(st.dictionaries(names, trees, max_size=4))
def test_every_node_has_one_path_however_deep_it_stands(attributes: dict[str, Any]) -> None:
    """Lists and dicts of nodes, nested in any way: no node is lost, no path is given twice."""

    class Any_(Graph[str, str]):  # noqa: N801
        def __init__(self) -> None:
            for name, tree in attributes.items():
                setattr(self, name, planted(tree))

        async def flow(self, text: str) -> str:
            return text

    paths = [path for name, tree in attributes.items() for path in expected(name, tree)]
    assert list(Any_().__node__.tree.nodes) == ["", *paths]
