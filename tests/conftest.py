"""Shared by every room's tests."""

import os
from collections.abc import Generator

import pytest
from hypothesis import settings

# How long an example takes says nothing about whether it holds.
settings.register_profile("nearcall", deadline=None)
settings.load_profile("nearcall")


@pytest.fixture
def anyio_backend() -> str:
    """asyncio's own loop; the one that the server runs on is tried by the end-to-end tests."""
    return "asyncio"


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """What a developer's machine may skip, CI must run."""
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("CI") == "true":
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped, and CI must run it: {call.excinfo}"
    return report
