"""`make bench`: measure, print the table and what got worse; with `--check` exit with 1 when a target is missed."""

import asyncio
import logging
import sys
import warnings

import agents
import core
import journal
import service
import tracing
from table import Row, printed, worse

PARTS = {"core": core, "agents": agents, "journal": journal, "service": service, "tracing": tracing}


async def main(names: list[str]) -> list[Row]:
    return [row for name in names or PARTS for row in await PARTS[name].rows()]


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    results = asyncio.run(main([name for name in sys.argv[1:] if name in PARTS]))
    print(printed(results))
    print(*worse(results), sep="\n")
    sys.exit("--check" in sys.argv and not all(row.ok for row in results))
