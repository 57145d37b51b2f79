"""What is taken from the `langfuse` package, and what its import must not do to a program."""

from __future__ import annotations

import logging
import subprocess
import sys

import pytest
from langfuse import Langfuse, LangfuseOtelSpanAttributes

from stagegraph.tracing.attributes import Names, trace_id


def test_attributes_have_the_names_that_langfuse_reads() -> None:
    """They are written down here, as a program that only sends does not load the package."""
    known = {value for name, value in vars(LangfuseOtelSpanAttributes).items() if not name.startswith("_")}
    ours = {value for name, value in vars(Names).items() if not name.startswith("_")}
    assert ours - known == {"langfuse.experiment"}  # the beginning of several


@pytest.mark.parametrize("run_id", ["r", "run-1", "\N{SNOWMAN}"])
def test_trace_ids_are_those_of_langfuse(run_id: str) -> None:
    """Who knows the id of a run finds its trace with Langfuse's own client."""
    assert trace_id(run_id) == Langfuse.create_trace_id(seed=run_id)


def test_loading_langfuse_leaves_the_hosts_logging_alone() -> None:
    """The package sets up the logger of httpx when it is imported; a program that reads runs keeps its own set-up."""
    text = f"""
import logging, sys
import stagegraph.tracing
from stagegraph.tracing.api import load_langfuse
assert "langfuse" not in sys.modules
logging.getLogger("httpx").setLevel({logging.DEBUG})
load_langfuse()
assert "langfuse" in sys.modules
logger = logging.getLogger("httpx")
assert (logger.level, logger.handlers) == ({logging.DEBUG}, []), (logger.level, logger.handlers)
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
