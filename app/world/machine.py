"""One machine of the world: `nearcall serve` as a process that can be started, stopped, killed or cut off.

A machine that is cut off ("sick") has lost its links to all backends: they are broken and refuse, as when a region
loses its route to a vendor.
"""

import asyncio
import signal
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from app.sim.slow_link import SlowLink
from app.world.places import BACKENDS, rtt_ms
from app.world.process import answers, free_port, last_words

START_LIMIT_S = 20.0
STOP_LIMIT_S = 20.0
DRAIN_S = 15
"""Like STOP_LIMIT_S and unlike 280 s: nobody who looks at a world waits longer for its calls to move."""


class MachineError(Exception):
    """A server did not start. The text has the end of its output."""


class Machine:
    """The server of one region. It keeps its data when its process ends."""

    def __init__(
        self,
        region: str,
        directory: Path,
        environ: Mapping[str, str],
        backends: Mapping[str, int],
        twilio_rest_url: str,
        *,
        backend_rtt_ms: Callable[[str, str], float] = rtt_ms,
    ) -> None:
        """`environ` is common to all machines; `backends` maps names to the real ports.

        `backend_rtt_ms` says how far it is from a region to that of a backend.
        """
        self._twilio_rest_url = twilio_rest_url
        self.region = region
        self.port = 0
        """The port of its process; a new one after each start."""
        self.directory = directory
        self._environ = environ
        self._links = {
            name: SlowLink(port, delay_ms=backend_rtt_ms(region, BACKENDS[name]) / 2)
            for name, port in backends.items()
        }
        self._cut_off = 0
        """How many reasons there are for it to be cut off."""
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        self.directory.mkdir(parents=True)
        for link in self._links.values():
            await link.__aenter__()
        self._config().write_text(self._toml(), encoding="utf-8")
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()
        await self.gone()
        for link in self._links.values():
            await link.__aexit__(kind, error, trace)

    @property
    def data_dir(self) -> Path:
        """The directory that stands for its volume."""
        return self.directory / "data"

    async def start(self) -> None:
        """Starts the process and waits until it answers. Raises MachineError."""
        # A new port, since another connection may use the old one by now.
        self.port = free_port()
        with (self.directory / "log").open("ab") as log:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "app.world.serve", self._twilio_rest_url),
                env=self._settings(),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        if not await answers(f"http://127.0.0.1:{self.port}/livez", self._process, START_LIMIT_S):
            said = await asyncio.to_thread((self.directory / "log").read_bytes)
            raise MachineError(f"the server of {self.region} did not start: {last_words(said)}")

    def drain(self) -> None:
        """Sends SIGTERM, as a deploy does."""
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """Sends SIGKILL."""
        self._signal(signal.SIGKILL)

    async def gone(self) -> None:
        """Waits until its process has ended; kills it when that takes too long."""
        if self._process is None:
            return
        try:
            async with asyncio.timeout(STOP_LIMIT_S):
                await self._process.wait()
        except TimeoutError:
            self.kill()
            await self._process.wait()

    @property
    def exit_status(self) -> int | None:
        """Of its last process, negative when a signal ended it; None while that runs, and before the first."""
        return None if self._process is None else self._process.returncode

    async def sicken(self) -> None:
        """Breaks the links to all backends and refuses new connections to them."""
        self._cut_off += 1
        if self._cut_off == 1:
            for link in self._links.values():
                await link.break_off()

    async def heal(self) -> None:
        """Restores the links once it was called as often as `sicken`."""
        self._cut_off -= 1
        if self._cut_off == 0:
            for link in self._links.values():
                await link.mend()

    # --- Inside ------------------------------------------------------------------------------

    def _signal(self, number: signal.Signals) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(number)

    def _config(self) -> Path:
        return self.directory / "nearcall.toml"

    def _settings(self) -> dict[str, str]:
        return {
            "NEARCALL_DRAIN_S": f"{DRAIN_S}",
            **self._environ,
            "FLY_REGION": self.region,
            "FLY_MACHINE_ID": f"m-{self.region}",
            "NEARCALL_DATA_DIR": str(self.data_dir),
            "NEARCALL_CONFIG": str(self._config()),
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self._links['openai'].port}/v1",
            "PORT": str(self.port),
        }

    def _toml(self) -> str:
        return (
            "[backends.openai-eu]\n"
            'kind = "openai"\n'
            f'url = "http://127.0.0.1:{self._links["openai-eu"].port}/v1"\n'
            'key = "OPENAI_EU_API_KEY"\n'
            'residency = ["eu"]\n'
            'near = ["fra", "ams", "cdg", "arn"]\n'
        )
