"""The smallest graph that leaves a record."""

from stagegraph import Graph, step

__all__ = ["Echo"]


@step
async def echo(text: str) -> str:
    return text


class Echo(Graph[str, str]):
    """One step, which gives what it gets."""

    echo = echo

    async def flow(self, text: str) -> str:
        return await self.echo(text)
