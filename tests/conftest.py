"""Shared by every room's tests."""

import gc
import logging
import os
import signal
from collections.abc import Generator
from itertools import islice

import pytest
from hypothesis import settings

# How long an example takes says nothing about whether it holds.
settings.register_profile("nearcall", deadline=None)
settings.load_profile("nearcall")


@pytest.fixture
def anyio_backend() -> str:
    """asyncio's own loop; the one that the server runs on is tried by the end-to-end tests."""
    return "asyncio"


def pytest_xdist_auto_num_workers() -> int:
    """How many `-n auto` are. Tests mostly wait for a phone, a process or a clock: four more than cores."""
    return min((os.cpu_count() or 1) + 4, 10)


def pytest_collection_finish() -> None:
    """Seven thousand tests are a million objects: the garbage collector need not look through them each time."""
    gc.collect()
    gc.freeze()


@pytest.hookimpl(trylast=True)  # when those that are not asked for have gone
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests begin first, and on every worker: one that begins last has everybody wait for it.

    `--dist worksteal` gives each worker an equal run of the list to begin with.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    long = [item for item in items if item.get_closest_marker("long") is not None]
    others = iter([item for item in items if item.get_closest_marker("long") is None])
    left = len(items)
    dealt: list[pytest.Item] = []
    for number in range(workers):
        share = left // (workers - number)
        left -= share
        first = long[number::workers]
        dealt += [*first, *islice(others, max(0, share - len(first)))]
    items[:] = [*dealt, *others]


class _Told(logging.Formatter):
    """A record with its fields: "replica_stopped" alone tells nobody why a test failed on another machine."""

    _standard = frozenset(logging.makeLogRecord({}).__dict__) | {"message", "taskName"}

    def format(self, record: logging.LogRecord) -> str:
        fields = {key: value for key, value in record.__dict__.items() if key not in self._standard}
        return f"{record.levelname:8} {record.name} {super().format(record)} {fields or ''}".rstrip()


def pytest_sessionstart(session: pytest.Session) -> None:
    """What a failed test logged is shown with its fields, and commands under test can be interrupted.

    A shell that starts a script in the background has it ignore SIGINT, and all its children with it.
    """
    signal.signal(signal.SIGINT, signal.default_int_handler)
    plugin = session.config.pluginmanager.get_plugin("logging-plugin")
    if plugin is not None:
        plugin.report_handler.setFormatter(_Told())


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
