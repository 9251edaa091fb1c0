"""One zone's share of the ledger: where its primary is, and where its files are on this machine.

Everything below a zone is made from one of these and from nothing else, so two zones have no file, no connection
and no token in common. Does not know which call belongs to which zone.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from app.storage.errors import StorageError

DEFAULT_ZONE = "global"
_NAME = re.compile(r"[a-z][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True)
class Zone:
    """A zone as this machine keeps it. Raises ValueError for a name that is not a plain word."""

    name: str
    data_dir: Path
    url: str | None
    """Of the primary, http(s); None: records stay in a local file."""
    token: Callable[[], str] = field(repr=False)
    """The token as it is now. Asked before each request, in a thread; ValueError when there is none."""

    def __post_init__(self) -> None:
        if _NAME.fullmatch(self.name) is None:
            raise ValueError(f"zone name {self.name!r} should be a lower-case word: it names a directory")

    @property
    def directory(self) -> Path:
        """Where the files of this zone are."""
        return self.data_dir / self.name

    def make_directory(self) -> None:
        """0700: a zone's records are nobody else's business. Raises StorageError."""
        if not self.data_dir.is_dir():
            raise StorageError(
                f"the data directory {self.data_dir} does not exist: create it, or point"
                " NEARCALL_DATA_DIR elsewhere"
            )
        try:
            self.directory.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise StorageError(f"cannot create {self.directory}: {error.strerror}") from error

    @property
    def spool(self) -> Path:
        """Records on their way to the primary."""
        return self.directory / "spool.db"

    @property
    def replica(self) -> Path:
        """The copy of the primary that is read here."""
        return self.directory / "replica.db"

    @property
    def readable(self) -> Path:
        """The file that answers questions: the copy of the primary, or the ledger itself."""
        return self.local if self.url is None else self.replica

    @property
    def local(self) -> Path:
        """The ledger itself, when there is no primary."""
        return self.data_dir / "ledger.db" if self.name == DEFAULT_ZONE else self.directory / "ledger.db"
