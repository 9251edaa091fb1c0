"""Handles one request at an edge: reads and forwards it, follows replays, falls back, answers, tunnels.

This module has the order of the steps. edge.py chooses the Machine, reach.py connects to it, and replay.py parses
`fly-replay`. Sources: fly.md 5, 8, 18 (codes), 19 rules 9 to 11.
"""

import asyncio
import contextlib
import random
import time
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, Literal

import h11

from app.sim.fly.edge import Machine
from app.sim.fly.http import (
    BadRequestError,
    Entry,
    HttpEnd,
    Request,
    pass_body,
    read_request,
    refuse,
    request_bytes,
    response_headers,
)
from app.sim.fly.link import Link
from app.sim.fly.log import Decision, Hop, Log, Trace
from app.sim.fly.reach import Attempt, Backhaul, MachineConnection
from app.sim.fly.replay import MAX_REPLAYED_BODY_BYTES, NoMachine, ReplayError, ReplayState, preference_of_client

_READ_LIMIT_S: Final = 60.0
"""For a whole request; Fly's `headers_read_timeout` has no documented default."""

_DISCARD_LIMIT_S: Final = 1.0
"""For the body of an answer that is replayed. It normally arrives together with its head."""

_REPLAY_JSON: Final = "application/vnd.fly.replay+json"

_LINGER_LIMIT_S: Final = 1.0
"""For a client that is still sending a request that was refused."""

_ULID_DIGITS: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"


class _ClientGoneError(Exception):
    """The client closed its connection before the answer."""


class _BrokenError(Exception):
    """A tunnel's connection broke on one side."""


@dataclass(frozen=True, slots=True)
class ClientPort:
    """A port for the clients of one location, and the edge nearest to them."""

    client_location: str
    edge: str
    port: int


class Proxy:
    """Serves client connections."""

    def __init__(
        self,
        backhaul: Backhaul,
        log: Log,
        rng: random.Random,
        *,
        app_name: str,
        forwarded_proto: Literal["http", "https"],
        forging_allowed: bool,
    ) -> None:
        self.backhaul = backhaul
        self.log = log
        self.app_name = app_name
        self._rng = rng
        self._forwarded_proto = forwarded_proto
        self._forging_allowed = forging_allowed

    async def serve(self, link: Link, client_port: ClientPort) -> None:
        """Serves one client connection: a request and its answer, or a tunnel until it ends."""
        client = HttpEnd(link, h11.SERVER)
        request_id = f"{self._ulid()}-{client_port.edge}"
        try:
            request = await self._read(client, request_id)
            if request is not None:
                await _RequestHandler(
                    self, client, request, self._entry(client_port, request_id, link), client_port
                ).run()
        finally:
            link.close()

    async def _read(self, client: HttpEnd, request_id: str) -> Request | None:
        """Reads the request. Returns None when there is none to forward."""
        try:
            async with asyncio.timeout(_READ_LIMIT_S):
                return await read_request(client)
        except BadRequestError as error:
            refuse(client, None, error.status, str(error), request_id)
            await _linger(client.link)
        except (ConnectionError, TimeoutError):
            pass  # the client sent no request and waits for no answer
        return None

    def _entry(self, client_port: ClientPort, request_id: str, link: Link) -> Entry:
        return Entry(
            client_port.edge,
            request_id,
            link.peer_address,
            client_port.port,
            self._forwarded_proto,
            self._forging_allowed,
        )

    def _ulid(self) -> str:
        number = (time.time_ns() // 1_000_000) << 80 | self._rng.getrandbits(80)
        return "".join(_ULID_DIGITS[number >> shift & 31] for shift in range(125, -5, -5))


class _RequestHandler:
    """Handles one request from its arrival to its end."""

    def __init__(
        self, proxy: Proxy, client: HttpEnd, request: Request, entry: Entry, client_port: ClientPort
    ) -> None:
        self._proxy = proxy
        self._client = client
        self._request = request
        self._entry = entry
        self._trace = Trace(
            entry.request_id, client_port.client_location, client_port.edge, request.method, request.target
        )
        self._at: MachineConnection | None = None
        self._answered = False

    async def run(self) -> None:
        self._proxy.log.open(self._trace)
        try:
            await self._unless_client_goes(self._answer())
            if self._at is not None and self._at.tunnel:
                await self._tunnel(self._at)
        except _ClientGoneError:
            self._hop(Decision.FAILED, "the client went away")
        finally:
            if self._at is not None:
                self._at.finish()

    async def _unless_client_goes(self, work: Coroutine[Any, Any, None]) -> None:
        """Does the work unless the client closes its connection, in either direction: it awaits no answer then."""
        working = asyncio.create_task(work)
        ended = asyncio.create_task(self._client.link.ended())
        try:
            await asyncio.wait({working, ended}, return_when=asyncio.FIRST_COMPLETED)
            if not working.done():
                raise _ClientGoneError
            await working
        finally:
            working.cancel()
            ended.cancel()
            await asyncio.gather(working, ended, return_exceptions=True)

    async def _answer(self) -> None:
        """Asks Machines until one has answered the client or none is left."""
        body_bytes = len(self._request.body)
        preference = preference_of_client(self._request.headers)
        replay_state = ReplayState(preference, app_name=self._proxy.app_name, body_bytes=body_bytes)
        while not self._answered:
            begun_s = asyncio.get_running_loop().time()
            connection = await self._proxy.backhaul.reach(self._attempt(replay_state))
            if isinstance(connection, NoMachine):
                self._no_machine(replay_state, connection, asyncio.get_running_loop().time() - begun_s)
                continue
            self._at = connection
            try:
                await self._ask(connection, replay_state)
            except (ConnectionError, h11.RemoteProtocolError) as error:
                self._broke(error)

    def _attempt(self, replay_state: ReplayState) -> Attempt:
        return Attempt(
            self._entry.edge,
            replay_state.preference,
            replay_state.timeout_s,
            repeatable=len(self._request.body) <= MAX_REPLAYED_BODY_BYTES,
            encode=lambda http, machine: request_bytes(
                http, self._request, self._entry, replay_state.headers(machine)
            ),
            refused=lambda machine, why: self._log(Decision.REFUSED, why, machine),
        )

    async def _ask(self, connection: MachineConnection, replay_state: ReplayState) -> None:
        machine = connection.http
        head = await machine.next_event()
        while isinstance(head, h11.InformationalResponse) and head.status_code != 101:
            head = await machine.next_event()
        assert isinstance(head, h11.InformationalResponse | h11.Response), head
        headers = response_headers(head, self._entry.request_id)
        if isinstance(head, h11.InformationalResponse):
            self._answered = connection.tunnel = True
            self._client.send(h11.InformationalResponse(status_code=101, headers=headers))
            self._hop(Decision.SERVED, "tunnel", 101)
            return
        found = {name.decode(): value.decode("latin-1") for name, value in head.headers}
        if found.get("content-type", "").partition(";")[0].strip() == _REPLAY_JSON:
            self._refuse(502, "the JSON form of fly-replay is not simulated, the header is")
            return
        replay = found.get("fly-replay")
        if replay is not None:
            await self._discard(machine)
            connection.finish()
            self._replay(replay_state, replay, connection.machine)
            return
        self._answered = True
        self._hop(Decision.SERVED, "answer", head.status_code)
        self._client.send(h11.Response(status_code=head.status_code, headers=headers, reason=head.reason))
        await pass_body(machine, self._client)

    async def _discard(self, machine: HttpEnd) -> None:
        with contextlib.suppress(TimeoutError, ConnectionError, h11.RemoteProtocolError):
            async with asyncio.timeout(_DISCARD_LIMIT_S):
                while not isinstance(await machine.next_event(), h11.EndOfMessage):
                    pass

    def _replay(self, replay_state: ReplayState, header: str, sender: Machine) -> None:
        try:
            replay_state.replayed(header, sender, time.time_ns() // 1000)
        except ReplayError as error:
            self._refuse(502, str(error))
        else:
            self._hop(Decision.REPLAYED, header)

    def _no_machine(self, replay_state: ReplayState, reason: NoMachine, elapsed_s: float) -> None:
        self._at = None
        if replay_state.no_machine_reached(reason, elapsed_s):
            self._hop(Decision.FELL_BACK, f"{reason} after {round(elapsed_s * 1000)} ms")
        elif reason is NoMachine.RETRIES_EXHAUSTED:
            self._refuse(502, "PR04: no candidate after retries")
        else:
            self._refuse(503, f"PR01: no Machine could take it ({reason})")

    def _broke(self, error: Exception) -> None:
        """Handles a lost Machine or one that speaks no HTTP: a 502 before its answer, a reset in the middle."""
        why = f"PU02: the Machine's answer broke: {error}"
        if self._client.link.broken:
            raise _ClientGoneError
        if not self._answered:
            self._refuse(502, why)
            return
        self._hop(Decision.FAILED, why)
        self._client.link.reset()

    def _refuse(self, status: int, why: str) -> None:
        self._answered = True
        self._hop(Decision.FAILED, why, status)
        refuse(self._client, self._request, status, why, self._entry.request_id)

    async def _tunnel(self, connection: MachineConnection) -> None:
        """Carries bytes both ways until both directions have ended or one is broken."""
        client, machine = self._client.link, connection.http.link
        machine_first, client_first = connection.http.trailing(), self._client.trailing()
        if machine_first:
            client.write(machine_first)
        if client_first:
            machine.write(client_first)
        reason = "ended"
        try:
            async with asyncio.TaskGroup() as ways:
                ways.create_task(_carry(client, machine))
                ways.create_task(_carry(machine, client))
        except* _BrokenError as broken:
            client.reset()
            machine.reset()
            reason = str(broken.exceptions[0])
        self._hop(Decision.CLOSED, reason)

    def _hop(self, decision: Decision, reason: str, status: int | None = None) -> None:
        self._log(decision, reason, None if self._at is None else self._at.machine, status)

    def _log(self, decision: Decision, reason: str, machine: Machine | None, status: int | None = None) -> None:
        machine_id, region = (None, None) if machine is None else (machine.id, machine.region)
        hop = Hop(self._trace.request_id, self._trace.edge, decision, reason, machine_id, region, status)
        self._proxy.log.add(self._trace, hop)


async def _linger(link: Link) -> None:
    """Reads on for a moment: closing with unread bytes would reset the connection before the answer is read."""
    link.write_eof()
    with contextlib.suppress(ConnectionError, TimeoutError):
        async with asyncio.timeout(_LINGER_LIMIT_S):
            while await link.read():
                pass


async def _carry(source: Link, target: Link) -> None:
    """Carries one direction of a tunnel until its end."""
    try:
        while data := await source.read():
            target.write(data)
            await target.drain()
    except ConnectionError as error:
        raise _BrokenError(str(error)) from None
    target.write_eof()
