"""`make bench`: measure, print the table, and with `--check` exit with 1 when a target is missed."""

import asyncio
import logging
import sys
import warnings

import core
import journal
import service
import tracing
from table import Row, printed


async def main() -> list[Row]:
    return [*await core.rows(), *await journal.rows(), *await service.rows(), *await tracing.rows()]


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    results = asyncio.run(main())
    print(printed(results))
    sys.exit("--check" in sys.argv and not all(row.ok for row in results))
