"""What every test shares: one event loop flavour, and no request that could leave the machine."""

import pytest
from hypothesis import settings
from pydantic_ai import models

models.ALLOW_MODEL_REQUESTS = False
settings.register_profile("here", deadline=None)  # a busy machine is no defect
settings.load_profile("here")


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"
