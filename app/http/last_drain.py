"""What came of this machine's last drain, for /healthz: kept on its disk, since the process that drained is gone.

A deploy replaces the process, and Fly's edge sends a draining machine no requests: only the next process can say
how many calls were moved.
"""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

import orjson

from app.storage.errors import StorageError
from app.storage.thread import OwnThread

FILE = "last_drain.json"
DISK_LIMIT_S = 1.0
"""A disk that takes longer hangs: the server starts and stops without the report."""

log = logging.getLogger("nearcall.http")


async def read_last_drain(directory: Path) -> Mapping[str, object] | None:
    """Return the report of the last drain; None when there is none that can be read."""

    def read() -> object:
        return orjson.loads((directory / FILE).read_bytes())

    thread = OwnThread("last drain")
    try:
        async with asyncio.timeout(DISK_LIMIT_S):
            report = await thread.run(read)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, StorageError) as error:
        log.warning("last_drain_not_read", extra={"error": str(error) or type(error).__name__})
        return None
    finally:
        thread.close()
    return report if isinstance(report, dict) else None


async def write_last_drain(directory: Path, report: Mapping[str, object]) -> None:
    """Keep the report of a drain that is over. A fault is logged: no call depends on it."""

    def write() -> None:
        new = directory / f"{FILE}.new"
        try:
            new.write_bytes(orjson.dumps(report))
            new.replace(directory / FILE)
        except OSError:
            with contextlib.suppress(OSError):
                new.unlink()
            raise

    thread = OwnThread("last drain")
    try:
        async with asyncio.timeout(DISK_LIMIT_S):
            await thread.run(write)
    except (OSError, StorageError) as error:
        log.warning("last_drain_not_written", extra={"error": str(error) or type(error).__name__})
    finally:
        thread.close()
