"""A disk whose faults come and go under a process: builds faulty_disk.c, and writes what it is to do."""

import functools
import os
import resource
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

SOURCE = Path(__file__).with_name("faulty_disk.c")


@functools.cache
def library() -> Path:
    """The shared library. Skips the test when there is no compiler; CI makes an error of that (conftest.py)."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("there is no C compiler: install one as 'cc'")
    built = Path(tempfile.mkdtemp(prefix="nearcall-faulty-disk-")) / "faulty_disk.so"
    command = (compiler, "-Wall", "-Wextra", "-shared", "-fPIC", "-O1", "-o", str(built), str(SOURCE), "-ldl")
    subprocess.run(command, check=True)
    return built


class FaultyDisk:
    """What a process that runs with `env` meets below `directory`."""

    def __init__(self, directory: Path, control: Path) -> None:
        self._directory = directory
        self._control = control
        self.mend()

    @property
    def env(self) -> Mapping[str, str]:
        """For the process, beside its own."""
        return {"LD_PRELOAD": str(library()), "FAULTY_DISK": str(self._control)}

    def mend(self) -> None:
        """No faults any more; writes that hang return."""
        self._become("")

    def fill(self, spare_bytes: int = 0) -> None:
        """Have no room but this beyond what is used now."""
        used = sum(each.stat().st_blocks * 512 for each in self._directory.rglob("*") if each.is_file())
        self._become(f"full {self._directory} {used + spare_bytes}\n")

    def fail(self, *files: Path) -> None:
        """Fail to write these files, as they are now, or all there is."""
        self._become(self._lines("eio", files))

    def hang(self) -> None:
        """No write returns."""
        self._become(self._lines("hang", ()))

    def _lines(self, mode: str, files: tuple[Path, ...]) -> str:
        where = [f"#{each.stat().st_ino}" for each in files] or [str(self._directory)]
        return "".join(f"{mode} {each}\n" for each in where)

    def _become(self, text: str) -> None:
        # In one step: the process reads it at every write.
        new = self._control.with_name(f"{self._control.name}.new")
        new.write_text(text)
        new.replace(self._control)


LEAF = b"\x0d"
"""What a page begins with that holds rows of a table (sqlite.org/fileformat2.html 1.6)."""


def damage_pages(path: Path, *, leaves_only: bool = False) -> None:
    """Overwrite every fourth page but the first, as a disk does that lies about what it wrote.

    `leaves_only`: spare the pages that only say where others are. One of those costs the rows of 500 others.
    """
    with path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        for page in range(3, size // 4096, 4):
            file.seek(page * 4096)
            if leaves_only and file.read(1) != LEAF:
                continue
            file.seek(page * 4096)
            file.write(b"\xff" * 4096)


@contextmanager
def no_descriptor_left() -> Iterator[None]:
    """No file can be opened, as in a server with more calls than its limit allows."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest_free = os.dup(0)
    os.close(lowest_free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest_free, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
