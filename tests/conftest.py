"""What every test shares: one event loop flavour, and no request that could leave the machine."""

import os

import pytest
from hypothesis import settings
from pydantic_ai import models

# What a developer has set for other programs: keys of a server, colours, a narrow terminal.
for name in list(os.environ):
    theirs = name.startswith("LANGFUSE_") and "STAGEGRAPH_LANGFUSE_URL" not in os.environ
    if theirs or name in {"STAGEGRAPH_JOURNAL", "FORCE_COLOR", "NO_COLOR", "COLUMNS", "LINES", "PYTHONHASHSEED"}:
        del os.environ[name]

models.ALLOW_MODEL_REQUESTS = False
settings.register_profile("here", deadline=None)  # a busy machine is no defect
settings.load_profile("here")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
