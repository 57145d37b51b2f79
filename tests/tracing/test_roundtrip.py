"""The example of the whole way: shown, scored, read back, made into data; against a contract server or a real one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from langfuse_server import LangfuseServer

EXAMPLE = Path(__file__).parents[2] / "examples" / "langfuse_roundtrip.py"
PRINTED = [
    "sort[0] I was charged twice. -> billing",
    "sort[1] The site is down! -> billing",
    '{"team": "billing", "urgent": false} as it was',
    '{"team": "operations", "urgent": true} corrected',
    "2 examples in the data set; skipped: {}",
]


def printed(url: str, public: str, secret: str) -> list[str]:
    keys = {"LANGFUSE_PUBLIC_KEY": public, "LANGFUSE_SECRET_KEY": secret, "LANGFUSE_BASE_URL": url}
    done = subprocess.run(
        [sys.executable, str(EXAMPLE)],
        env={**os.environ, **keys},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_example_goes_the_whole_way() -> None:
    """What was run comes back typed, with the correction as what was expected, and stands in a data set."""
    with LangfuseServer() as server:
        assert printed(server.url, server.public_key, server.secret_key) == PRINTED
        assert {item["datasetName"] for item in server.dataset_items.values()} == {"triage"}


@pytest.mark.skipif("STAGEGRAPH_LANGFUSE_URL" not in os.environ, reason="needs a real Langfuse server")
def test_a_real_server_takes_part() -> None:
    """The same against the server at STAGEGRAPH_LANGFUSE_URL, with the keys of Langfuse's own variables."""
    keys = os.environ["LANGFUSE_PUBLIC_KEY"], os.environ["LANGFUSE_SECRET_KEY"]
    assert printed(os.environ["STAGEGRAPH_LANGFUSE_URL"], *keys)[:2] == PRINTED[:2]
