"""A file that only takes up room on a disk, so that there is some left when the disk is full.

SQLite needs room to delete: each change is appended to the write-ahead log first. On a disk that others have
filled, deliveries could free nothing, and the last records could not be written. The ballast is deleted then, and
made again when the disk has room. It stays when the server stops, because the next one may start on a full disk.
Belongs to the thread that writes the file beside it.
"""

import os
from contextlib import suppress
from pathlib import Path

from app.storage.errors import StorageError

BALLAST_BYTES = 8 * 2**20
"""The write-ahead log grows to 4 MB before SQLite empties it into the file, which may then grow by as much."""


class Ballast:
    """The ballast of one file. `spent` from `release` until `make` works again."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.spent = False
        self._there = False

    def find(self) -> None:
        """Take over what an earlier run left."""
        with suppress(OSError):
            self._there = self._path.stat().st_size == BALLAST_BYTES

    def make(self) -> None:
        """Take up the room, if it is not taken yet. Raises StorageError when the disk does not have it."""
        if self._there:
            return
        try:
            number = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(number, 0, BALLAST_BYTES)
            finally:
                os.close(number)
        except OSError as error:
            # Half of it would only be missing elsewhere.
            self._unlink()
            raise StorageError(f"the disk has no room for {self._path}: {error.strerror}") from error
        self._there, self.spent = True, False

    def release(self) -> bool:
        """Give the room back for something that needs it now. True when there was any."""
        if not self._there:
            return False
        self._there, self.spent = False, True
        self._unlink()
        return True

    def _unlink(self) -> None:
        with suppress(OSError):
            self._path.unlink(missing_ok=True)
