"""The real data flow of runs: an object that came out of one call and went into another is an edge, nothing else is."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from datetime import date
from decimal import Decimal
from enum import Enum
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, RootModel
from pydantic_ai import Agent, BinaryContent
from pydantic_ai.models.test import TestModel

from scripted import echo
from stagegraph import Graph, Run, RunError, Runner, Stage, fan_out, gather, step
from stagegraph.journal import MemoryJournal


class Team(Enum):
    SALES = "sales"


class Word(BaseModel):
    text: str = "w"


class Page(BaseModel):
    model_config = ConfigDict(extra="allow")

    words: list[Word] = []
    index: dict[str, Word] = {}
    inner: Page | None = None
    team: Team | None = None
    short: str = ""
    long: str = ""
    count: int = 0


@dataclass
class Sheet:
    page: Page | None = None
    rows: list[Word] = field(default_factory=list)


class Falsy(BaseModel):
    """A model that says it is empty, as one with a `__len__` may."""

    word: Word = Word()

    def __len__(self) -> int:
        return 0


class Moody(BaseModel):
    """A model that cannot be asked whether it is true."""

    word: Word = Word()

    def __bool__(self) -> bool:
        raise ValueError


class Words(RootModel[list[Word]]):
    pass


class Chain(Graph[str, str]):
    first = Stage(str, Agent())
    second = Stage(str, Agent())

    async def flow(self, text: str) -> str:
        return await self.second(await self.first(text))


Make = Callable[[], Any]


class Free(Graph[Any, Any]):
    """Nodes that make and take anything; each test writes the flow."""

    @step
    async def make(give: Any) -> Any:  # type: ignore[misc] # noqa: N805
        return give() if callable(give) else give

    @step
    async def other(give: Any) -> Any:  # type: ignore[misc] # noqa: N805
        return give() if callable(give) else give

    @step
    async def passes(value: Any) -> Any:  # type: ignore[misc] # noqa: N805
        return value

    @step
    async def take(value: Any) -> None:  # type: ignore[misc] # noqa: N805
        del value

    def __init__(self, how: Callable[[Free], Coroutine[Any, Any, Any]], inner: Free | None = None) -> None:
        self.how = how
        if inner is not None:
            self.inner = inner

    async def flow(self, value: Any) -> Any:
        return await self.how(self)


async def edges(how: Callable[[Free], Coroutine[Any, Any, Any]], inner: Free | None = None) -> list[tuple[str, str]]:
    run = await Runner().run(Free(how, inner), None)
    return run.edges()


WHOLE: dict[str, Make] = {
    "a model": Word,
    "a falsy model": Falsy,
    "a model without truth": Moody,
    "a root model": lambda: Words([Word()]),
    "a dataclass": Sheet,
    "a list": lambda: [1, 2],
    "a dict": lambda: {"a": 1},
    "a tuple": lambda: (1, 2),
    "a set": lambda: {1},
    "a date": lambda: date(2026, 1, 2),
    "a decimal": lambda: Decimal("1.5"),
    "bytes": lambda: bytes([255, 254] * 9),
    "a long text": lambda: "long " * 30,
    "media": lambda: BinaryContent(b"\xff\xfe", media_type="image/png"),
    "any object": object,
}


@pytest.mark.parametrize("name", WHOLE)
async def test_what_came_out_of_a_call_and_went_into_another_is_an_edge(name: str) -> None:
    """Whatever kind of object it is."""

    async def how(graph: Free) -> None:
        await graph.take(await graph.make(WHOLE[name]))

    assert await edges(how) == [("make", "take")]


INSIDE: dict[str, Callable[[Word], Any]] = {
    "a field": lambda word: Page(inner=Page(words=[word])),
    "a list": lambda word: [1, [word]],
    "a tuple": lambda word: (word,),
    "a dict": lambda word: {"a": {"b": word}},
    "a dataclass": lambda word: Sheet(Page(), [word]),
    "a dataclass in a model": lambda word: Page(other=Sheet(rows=[word])),  # type: ignore[call-arg]
    "an extra field": lambda word: Page(extra=word),  # type: ignore[call-arg]
    "a falsy model": lambda word: Falsy(word=word),
    "a root model": lambda word: Words([word]),
}


@pytest.mark.parametrize("name", INSIDE)
async def test_a_part_is_followed_in_and_out_of_other_objects(name: str) -> None:
    """An output inside a bigger input, and a part of an output as an input: both are data flow."""

    async def packed(graph: Free) -> None:
        await graph.take(INSIDE[name](await graph.make(Word)))

    async def unpacked(graph: Free) -> None:
        word = Word()
        await graph.make(lambda: INSIDE[name](word))
        await graph.take(word)

    async def ring(graph: Free) -> None:
        ring: list[Any] = [INSIDE[name](Word())]
        ring.append(ring)
        await graph.take([await graph.make(lambda: ring)])

    assert await edges(packed) == [("make", "take")]
    assert await edges(unpacked) == [("make", "take")]
    assert await edges(ring) == [("make", "take")]  # followed once


SHARED: dict[str, Any] = {
    "a number": 7,
    "a big number": 10**30,
    "a float": 1.5,
    "true": True,
    "nothing": None,
    "an enum member": Team.SALES,
    "an empty text": "",
    "one letter": "a",
    "an empty tuple": (),
    "a class": Word,
}


@pytest.mark.parametrize("name", SHARED)
async def test_values_that_are_one_object_everywhere_prove_nothing(name: str) -> None:
    """Numbers, enum members, `None` and the like give no edge, alone or inside of something."""

    async def how(graph: Free) -> None:
        await graph.take(await graph.passes(SHARED[name]))
        await graph.take([await graph.passes([SHARED[name]]) and SHARED[name]])

    assert await edges(how) == []


async def test_short_texts_inside_of_objects_prove_nothing() -> None:
    """A category that two outputs share is no data flow; a long text is, and a short one that is the whole output."""

    async def short(graph: Free) -> None:
        first = await graph.make(lambda: Page(short="billing", team=Team.SALES, count=3))
        await graph.take(Page(short=first.short, team=first.team, count=first.count))
        await graph.take(first.short)

    async def long(graph: Free) -> None:
        first = await graph.make(lambda: Page(long="x" * 63 + "yz"))
        await graph.take(Page(long=first.long))

    assert await edges(short) == []
    assert await edges(long) == [("make", "take")]
    run = await Runner(TestModel(custom_output_text="ok")).run(Chain(), "x")
    assert run.edges() == [("first", "second")]


async def test_equal_objects_are_no_edge() -> None:
    """What looks alike did not flow."""

    async def how(graph: Free) -> None:
        page = await graph.make(lambda: Page(words=[Word(text="same")], long="l" * 100))
        await graph.take(Page(words=[Word(text="same")], long="l" * 99 + page.long[-1]))
        await graph.take(page.model_copy(deep=True, update={"long": ""}))

    assert await edges(how) == []


async def test_the_input_of_the_run_comes_from_no_call() -> None:
    """What the caller gave is nobody's output."""
    run = await Runner().run(Chain.first, "text " * 40, model=echo())
    assert run.edges() == []
    page = Page(words=[Word()])

    async def how(graph: Free) -> None:
        await graph.take(page)
        await graph.take(page)

    assert await edges(how) == []


async def test_a_diamond_has_four_edges() -> None:
    """One output into two calls, two outputs into one."""

    class Diamond(Graph[Word, Page]):
        a, b, c = step(_word), step(_wrap), step(_wrap)
        d = step(_join)

        async def flow(self, word: Word) -> Page:
            made = await self.a(word)
            left, right = await gather(self.b(made), self.c(made))
            return await self.d([left, right])

    run = await Runner().run(Diamond(), Word())
    assert run.edges() == [("a", "b"), ("a", "c"), ("b", "d"), ("c", "d")]


async def _word(word: Word) -> Word:
    return Word(text=word.text + "!")


async def _wrap(word: Word) -> Page:
    return Page(inner=Page(words=[Word(text=word.text)]))


async def _join(pages: list[Page]) -> Page:
    return Page(words=[page.inner.words[0] for page in pages if page.inner])


async def test_a_loop_is_a_path_through_its_rounds() -> None:
    """Each round gets what the round before it made, not its own later output."""

    async def how(graph: Free) -> None:
        value = await graph.make(Word)
        for _ in range(3):
            value = await graph.other(
                lambda value=value: Page(words=[value] if isinstance(value, Word) else value.words)
            )
            await graph.take(value)

    class Rounds(Graph[Word, Word]):
        improve = step(_word)

        async def flow(self, word: Word) -> Word:
            for _ in range(3):
                word = await self.improve(word)
            return word

    run = await Runner().run(Rounds(), Word())
    assert run.edges() == [("improve", "improve#1"), ("improve#1", "improve#2")]
    assert await edges(how) == [("other", "take"), ("other#1", "take#1"), ("other#2", "take#2")]


async def test_a_fan_out_has_an_edge_for_each_branch() -> None:
    """From the call that made the list to each branch, and from each branch to the call that takes them all."""

    class Wide(Graph[int, Page]):
        words = step(_words)
        mark = step(_word)
        bind = step(_bind)

        async def flow(self, size: int) -> Page:
            return await self.bind(await fan_out(self.mark, await self.words(size)))

    run = await Runner().run(Wide(), 11)
    into = [("words", f"mark[{n}]") for n in range(11)]
    out = [(f"mark[{n}]", "bind") for n in range(11)]
    assert run.edges() == [*out, *into]


async def _words(size: int) -> list[Word]:
    return [Word(text=str(number)) for number in range(size)]


async def _bind(words: list[Word]) -> Page:
    return Page(words=words)


async def test_a_step_that_passes_a_value_on_stands_in_between() -> None:
    """Who handed the object on last, or made the outermost one around it, is where it came from."""

    async def passes(graph: Free) -> None:
        await graph.take(await graph.passes(await graph.make(Word)))

    async def wraps(graph: Free) -> None:
        word = await graph.make(Word)
        await graph.take(await graph.other(lambda: Page(words=[word])))

    assert await edges(passes) == [("make", "passes"), ("passes", "take")]
    assert await edges(wraps) == [("other", "take")]


async def test_a_graph_is_looked_through_to_the_calls_inside() -> None:
    """A graph that gives what one of its calls made is no maker itself."""

    async def inside(graph: Free) -> Any:
        return await graph.make(Word)

    async def assembles(graph: Free) -> Any:
        first, second = await graph.make(Word), await graph.other(Word)
        return Page(words=[first], index={"b": second})

    async def invents(_graph: Free) -> Any:
        return Word()

    async def how(graph: Free) -> None:
        await graph.take(await graph.inner(None))

    assert await edges(how, Free(inside)) == [("inner.make", "take")]
    assert await edges(how, Free(assembles)) == [("inner.make", "take"), ("inner.other", "take")]
    assert await edges(how, Free(invents)) == [("inner", "take")]


async def test_a_value_goes_into_a_graph_to_the_calls_inside() -> None:
    """Edges end at leaf calls: what a graph is given is followed to who uses it."""

    class Uses(Graph[Word, Word]):
        again = step(_word)

        async def flow(self, word: Word) -> Word:
            return await self.again(word)

    class Outer(Graph[Word, Word]):
        make = step(_word)
        uses = Uses()

        async def flow(self, word: Word) -> Word:
            return await self.uses(await self.make(word))

    run = await Runner().run(Outer(), Word())
    assert run.edges() == [("make", "uses.again")]


async def test_a_failed_run_has_the_edges_up_to_its_failure() -> None:
    """The failed call is where data arrived, and gave none."""

    class Fails(Graph[Word, Word]):
        make = step(_word)
        fail = step(_fail)

        async def flow(self, word: Word) -> Word:
            return await self.fail(await self.make(word))

    with pytest.raises(RunError) as caught:
        await Runner().run(Fails(), Word())
    assert caught.value.run.edges() == [("make", "fail")]


async def _fail(word: Word) -> Word:
    raise ValueError(word.text)


class Stored(Graph[Word, Page]):
    a, b, c = step(_word), step(_wrap), step(_wrap)
    d = step(_join)

    async def flow(self, word: Word) -> Page:
        made = await self.a(word)
        left, right = await gather(self.b(made), self.c(Word(text="other")))
        return await self.d([left, right])


async def _photo(word: Word) -> BinaryContent:
    return BinaryContent(word.text.encode() + b"\xff\xfe", media_type="image/png")


async def _raw(photo: BinaryContent) -> bytes:
    return photo.data


async def _size(data: bytes) -> int:
    return len(data)


class Photo(Graph[Word, int]):
    photo, raw, size = step(_photo), step(_raw), step(_size)

    async def flow(self, word: Word) -> int:
        return await self.size(await self.raw(await self.photo(word)))


async def test_a_run_from_a_journal_has_the_same_edges() -> None:
    """There an object is known by its content, bytes that are no text too."""
    runner = Runner(journal=MemoryJournal())
    run = await runner.run(Stored(), Word())
    again: Run[Word, Any] = await runner.resume(run.id)
    assert run.edges() == again.edges() == [("a", "b"), ("b", "d"), ("c", "d")]
    photo = await runner.run(Photo(), Word(text="w" * 80))
    again = await runner.resume(photo.id)
    assert photo.edges() == again.edges() == [("photo", "raw"), ("raw", "size")]
    assert again.call("raw").output == photo.call("raw").output
