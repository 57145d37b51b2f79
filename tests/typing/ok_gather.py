"""The types of `gather`, for pyright and for `mypy --strict`."""

from collections.abc import Awaitable
from dataclasses import dataclass
from typing import assert_type

from stagegraph import Graph, gather, step


@dataclass
class Code:
    text: str


@dataclass
class Docs:
    pages: int


@step
async def document(code: Code) -> Docs:
    return Docs(len(code.text))


@step
async def improve(code: Code) -> Code:
    return code


class Publish(Graph[Code, Docs]):
    document = document
    improve = improve

    async def count(self, code: Code) -> int:
        return len(code.text)

    async def flow(self, value: Code) -> Docs:
        assert_type(await gather(), tuple[()])
        assert_type(await gather(self.improve(value)), tuple[Code])
        assert_type(await gather(self.improve(value), self.document(value)), tuple[Code, Docs])
        assert_type(await gather(self.document(value), self.count(value), self.improve(value)), tuple[Docs, int, Code])
        code, docs, number, same = await gather(
            self.improve(value), self.document(value), self.count(value), self.improve(value)
        )
        assert_type(code, Code)
        assert_type(docs, Docs)
        assert_type(number, int)
        assert_type(same, Code)
        six = await gather(
            self.improve(value),
            self.document(value),
            self.count(value),
            self.count(value),
            self.document(value),
            self.improve(value),
        )
        assert_type(six, tuple[Code, Docs, int, int, Docs, Code])
        return docs


async def alike(values: list[Code], given: list[Awaitable[Docs]]) -> None:
    graph = Publish()
    first = values[0]
    seven = await gather(
        graph.count(first),
        graph.count(first),
        graph.count(first),
        graph.count(first),
        graph.count(first),
        graph.count(first),
        graph.count(first),
    )
    assert_type(seven, tuple[int, ...])
    assert_type(await gather(*[graph.improve(value) for value in values]), tuple[Code, ...])
    assert_type(await gather(*(graph.count(value) for value in values)), tuple[int, ...])
    assert_type(await gather(*given), tuple[Docs, ...])
