"""Checks that each region answers, from outside through Fly's edge, as Twilio reaches it.

Requests to `/healthz` use `fly-force-region`: only a Machine of that region can answer. Test calls use
`fly-prefer-region`: the edge may choose another region, so the call reports which one answered.
"""

import asyncio
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import httpx

from scripts.rolloutlib.shell import ROOT, Ran, Shell, StepError, run, spelt

FORCE_HEADER = "fly-force-region"

SAY = ROOT / "app/sim/voices/caller_asks.wav"
"""What the test caller says: a tenant without a greeting waits for the caller to speak."""

CALL_LIMIT_S = 120.0
"""The limit for a whole test call, which takes about 15 s."""


@dataclass(frozen=True, slots=True)
class Patience:
    """How long a region may take to answer."""

    limit_s: float = 120.0
    """Fly's edges learn about a new Machine within seconds."""
    every_s: float = 2.0
    request_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Drains:
    """What the servers that a rollout has replaced did with their calls, as the new ones report it."""

    admin_token: str = field(default="", repr=False)
    """Without it /healthz does not say."""
    since_ms: int = 0
    """When the rollout began: a drain that was over before belongs to another one. Unix ms."""

    @property
    def headers(self) -> dict[str, str]:
        """The headers with which /healthz shows the details."""
        return {"Authorization": f"Bearer {self.admin_token}"} if self.admin_token else {}

    def line(self, health: Mapping[str, Any]) -> str | None:
        """Return what became of the calls of a region's old server; None when that is not known."""
        drain = health.get("last_drain")
        if not isinstance(drain, dict) or drain.get("finished_ms", 0) < self.since_ms:
            return None
        moved, failed, cut_short = (drain.get(name, 0) for name in ("moved", "move_failed", "cut_short"))
        line = f"{moved + failed} calls moved"
        if failed:
            line += f", {failed} of them by closing their streams"
        return f"WARNING: {line}; {cut_short} cut short" if cut_short else line


NO_DRAINS = Drains()


async def all_healthy(
    shell: Shell, url: str, regions: Sequence[str], patience: Patience, drains: Drains = NO_DRAINS
) -> dict[str, tuple[str, ...]]:
    """Wait until each region reports that it takes calls. Raises StepError with the regions that do not.

    Says what became of the calls of the servers that were replaced. Returns the test numbers that can be dialled
    there, by region: one for each zone whose calls it takes.
    """
    for region in regions:
        shell.say(f"$ curl --header '{FORCE_HEADER}: {region}' {url}/healthz")
    if shell.dry_run:
        return dict.fromkeys(regions, ("test:ZONE",))
    numbers: dict[str, tuple[str, ...]] = {}
    async with httpx.AsyncClient(timeout=patience.request_s) as client:
        await _all([_healthy(shell, client, url, region, patience, numbers, drains) for region in regions])
    return numbers


async def all_answer(shell: Shell, nearcall: str, url: str, numbers: Mapping[str, Sequence[str]]) -> None:
    """Call each test number of each region, all at the same time. Raises StepError with what failed."""
    calls = [(region, number) for region, its in numbers.items() for number in its]
    options = ("--say", str(SAY), "--greeting-optional", "--json")
    commands = [(nearcall, "call", url, "--region", region, "--to", number, *options) for region, number in calls]
    for command in commands:
        shell.say(f"$ {spelt(command)}")
    if not shell.dry_run:
        await _all([_call(shell, *each, *command) for each, command in zip(calls, commands, strict=True)])


async def _all(checks: Sequence[Any]) -> None:
    """Run checks, each of which returns what is wrong, or None."""
    wrong = [line for line in await asyncio.gather(*checks) if line is not None]
    if wrong:
        raise StepError("; ".join(wrong).rstrip(".") + ".")


async def _healthy(
    shell: Shell,
    client: httpx.AsyncClient,
    url: str,
    region: str,
    patience: Patience,
    numbers: dict[str, tuple[str, ...]],
    drains: Drains,
) -> str | None:
    last, details = "no answer", drains.headers
    try:
        async with asyncio.timeout(patience.limit_s):
            while True:
                try:
                    # A new connection each time: a kept one stays with the Machine that it was opened to.
                    headers = {FORCE_HEADER: region, "Connection": "close", **details}
                    answer = await client.get(f"{url}/healthz", headers=headers)
                    if details and answer.status_code == httpx.codes.UNAUTHORIZED:
                        # A version that works must not be rolled back for that.
                        shell.say(f"{region}: WARNING: NEARCALL_ADMIN_TOKEN is not the server's")
                        details = {}
                        continue
                    last, why = _judged(answer, region)
                except httpx.HTTPError as error:
                    last, why = f"no answer ({error or type(error).__name__})", None
                if not last:
                    numbers[region] = tuple(answer.json()["test_numbers"])
                    shell.say(f"{region}: healthy" if why is None else f"{region}: WARNING: {why}")
                    if (line := drains.line(answer.json())) is not None:
                        shell.say(f"{region}: {line}")
                    if not numbers[region]:
                        shell.say(f"{region}: WARNING: no test call can reach any of its zones")
                    return None
                await asyncio.sleep(patience.every_s)
    except TimeoutError:
        return f"{region} is not healthy after {patience.limit_s:g} s: {last}"


def _judged(answer: httpx.Response, region: str) -> tuple[str, str | None]:
    """Return what is wrong with an answer of /healthz ("" if nothing is), and what is degraded."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict) or not {"region", "status", "test_numbers"} <= body.keys():
        return f"it answered {answer.status_code}, and not as nearcall does", None
    if body["region"] != region:
        return f"{body['region']} answered", None
    if answer.status_code != httpx.codes.OK:
        return f"it answered {answer.status_code} ({body.get('why')})", None
    why = body.get("why")
    if why in _NO_CALLS:
        return f"it takes no calls ({why}: {_NO_CALLS[why]})", None
    return "", f"it takes calls, but is degraded: {why}" if body["status"] != "ok" else None


_NO_CALLS = {
    "no_backend": "it reaches no backend",
    "lagging": "its event loop is late",
    "starting": "it does not know its tenants yet; does it reach the database?",
}
"""Why a machine that answers 200 takes no calls (app/http/health_policy.py)."""


async def _call(shell: Shell, region: str, number: str, *command: str) -> str | None:
    call = f"the test call to {number} in {region}"
    try:
        async with asyncio.timeout(CALL_LIMIT_S):
            ran = await run(*command)
    except TimeoutError:
        return f"{call} did not end within {CALL_LIMIT_S:g} s"
    report = _report(ran)
    if report is None:
        return f"{call} could not be placed: {' '.join(ran.err.split()) or ran.last_words}"
    answered = [report.get("webhook_region"), report.get("stream_region")]
    if answered != [region, region]:
        webhook, stream = (name or "an unknown region" for name in answered)
        return f"{call} was answered by {webhook} (webhook) and {stream} (stream)"
    if ran.code != 0 or not report.get("good"):
        return f"{call} failed: {_bad(report)}"
    greeted_after_s = report["greeted_after_s"]
    greeting = "no greeting" if greeted_after_s is None else f"greeting after {greeted_after_s:.2f} s"
    shell.say(f"{region}: answered the test call to {number}, {greeting}")
    return None


def _report(ran: Ran) -> dict[str, Any] | None:
    """Return the report, the last line of `nearcall call --json`, if there is one."""
    lines = ran.out.splitlines()
    try:
        report = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        return None
    return report if isinstance(report, dict) and report.get("event") == "Report" else None


def _bad(report: dict[str, Any]) -> str:
    faults = " ".join(report.get("faults") or ["it does not say why"])
    return f"{faults.rstrip('.')} ({report.get('ended')})"
