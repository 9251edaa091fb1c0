"""Shared by every room's tests."""

import pytest


@pytest.fixture
def anyio_backend() -> str:
    """One event loop implementation: the one the server runs on is tried by the end-to-end tests."""
    return "asyncio"
