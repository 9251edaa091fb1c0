"""Places calls that end in every possible way, and looks for what they left behind.

The server runs as a process of its own. Phones, backends of both services in two formats, and Twilio's REST API
are simulated. Callers hang up at random moments, agents hang up, connections break or stall, backends refuse,
fail and hang, and strangers connect. Afterwards no socket, task, timer or session may be left, memory must not
have grown with the calls, and the ledger must have one ending and a gapless list of turns for every call that
began.
"""

import argparse
import asyncio
import json
import random
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path

import orjson
import uvloop

from app.sim.phone.twilio_rest import TwilioRest
from app.world.process import free_port
from scripts.benchlib import targets
from scripts.benchlib.endings import (
    ALL_ENDINGS,
    BACKEND_KEY,
    OpenAIBackend,
    Scene,
    VoiceLiveBackend,
    check_ledger,
    ending_reasons,
    failover_reasons,
    make_calls,
)
from scripts.benchlib.leftovers import EXACT_MEMORY, Holdings
from scripts.benchlib.phone import ACCOUNT_SID, AUTH_TOKEN
from scripts.benchlib.process import ChildError, child, cores
from scripts.benchlib.targets import HEALTH, until_answered

GROWTH_MAX_KB = 1.0
"""Memory that may still be in use for each call that is over. Something is remembered of the last 10,000 calls."""

RSS_GROWTH_MAX_KB = 10.0
"""The same for resident memory, which moves by megabytes with the busiest moment so far and the gaps it left."""

WARM_UP_CALLS = 1_000
"""They take more than a minute: so long the server remembers its answers and used tickets, so from then on that
does not grow any more."""

IDLE_LIMIT_S = 30.0
"""After the last call: a webhook's session waits 15 s for its stream."""

LOOK_EVERY_S = 0.5

CLOSING_S = 6.0
"""After a call has ended, for its sockets: uvicorn keeps an HTTP connection for 5 s."""

BACKENDS = 48
GIVEN_UP = "backend_given_up"
"""The one error that the soak brings about on purpose."""

EXPECTED_REASONS = frozenset(
    {
        "agent_hung_up",
        "backend_lost",
        "backend_refused",
        "backend_silent",
        "caller_hung_up",
        "phone_lost",
        "phone_misbehaved",
        "phone_silent",
    }
)
EXPECTED_FAILOVERS = frozenset(
    {
        "backend_format",
        "backend_lost",
        "backend_not_ready",
        "backend_refused",
        "backend_unreachable",
    }
)
"""If one of these is missing, the soak no longer tries what it says it tries."""


class LeftoverCallsError(Exception):
    """Calls are left over at the end. The text says how many."""


@dataclass(frozen=True, slots=True)
class ServerState:
    """The state that the server reports."""

    holdings: Holdings
    calls: Mapping[str, int]
    rss_kb: int
    in_use_bytes: int


@dataclass(frozen=True, slots=True)
class Report:
    """The results of a soak test."""

    made: Mapping[str, int]
    reasons: Mapping[str, int]
    failovers: Mapping[str, int]
    """What made another backend take a call."""
    leaked: Mapping[str, int]
    growth_kb: float
    """Memory in use, for each call after the warm-up."""
    rss_growth_kb: float
    """Resident memory, likewise; negative when the process shrank."""
    problems: list[str]

    @property
    def good(self) -> bool:
        """True when nothing was left behind and nothing failed."""
        return not self.leaked and not self.problems and self.flat

    @property
    def flat(self) -> bool:
        """True when memory did not grow with the calls."""
        return self.growth_kb < GROWTH_MAX_KB and self.rss_growth_kb < RSS_GROWTH_MAX_KB


async def soak(calls: int, at_once: int, seed: int) -> Report:
    """Warm up, make the calls and look.

    Raises ChildError when the server dies, and LeftoverCallsError when calls stay open.
    """
    chance = random.Random(seed)
    server_core, _ = cores()
    rest = TwilioRest(ACCOUNT_SID, {ACCOUNT_SID: AUTH_TOKEN})
    async with AsyncExitStack() as outside:
        directory = Path(outside.enter_context(tempfile.TemporaryDirectory(prefix="nearcall-soak-")))
        rest_url = await outside.enter_async_context(rest.serve())
        openai = await outside.enter_async_context(OpenAIBackend(chance, slow=True))
        voicelive = await outside.enter_async_context(VoiceLiveBackend(chance, slow=True))
        config = directory / "nearcall.toml"
        config.write_text(_backends(openai.url, voicelive.url), encoding="utf-8")
        port, control_port = free_port(), free_port()
        scene = Scene(f"http://127.0.0.1:{port}", rest, chance)
        env = {**targets.settings(scene.url, directory, openai.url, BACKEND_KEY), **EXACT_MEMORY}
        env["NEARCALL_CONFIG"] = str(config)
        command = (sys.executable, "-m", "scripts.benchlib.watched", str(control_port), rest_url)
        async with child("nearcall", command, directory, core=server_core, env=env) as server:
            await until_answered(server, port, HEALTH)
            progress = _Progress(WARM_UP_CALLS + calls)
            await make_calls(scene, WARM_UP_CALLS, at_once, ALL_ENDINGS, progress.one_more)
            before = await _at_rest(control_port)
            await make_calls(scene, calls, at_once, ALL_ENDINGS, progress.one_more)
            after = await _at_rest(control_port)
            server.check()
        ledger = directory / "data" / "ledger.db"
        reasons, failovers = ending_reasons(ledger), failover_reasons(ledger)
        problems = [*scene.problems, *check_ledger(ledger, scene.heard), *_errors(server.log)]
        problems += [f"no call ended as {reason}" for reason in sorted(EXPECTED_REASONS - reasons.keys())]
        missing = sorted(EXPECTED_FAILOVERS - failovers.keys())
        problems += [f"no call was taken over for {reason}" for reason in missing]
    return Report(
        made=scene.made,
        reasons=reasons,
        failovers=failovers,
        leaked=after.holdings.more_than(before.holdings),
        growth_kb=(after.in_use_bytes - before.in_use_bytes) / 1000 / calls,
        rss_growth_kb=(after.rss_kb - before.rss_kb) / calls,
        problems=problems,
    )


def _backends(openai_url: str, voicelive_url: str) -> str:
    """So many that some work at any time: a backend with as many faults as these gets no calls for a while."""
    tables = []
    for number in range(BACKENDS):
        kind, url = (("openai", openai_url), ("voicelive", voicelive_url))[number % 2]
        audio = ("g711", "pcm16-24k")[number // 2 % 2]
        tables.append(
            f'[backends.b{number:02}]\nkind = "{kind}"\nurl = "{url}"\nkey = "OPENAI_API_KEY"\naudio = "{audio}"\n'
        )
    return "\n".join(tables)


class _Progress:
    """A line for every hundred calls."""

    def __init__(self, calls: int) -> None:
        self._calls = calls
        self._over = 0

    def one_more(self) -> None:
        self._over += 1
        if self._over % 100 == 0:
            _say(f"{self._over} of {self._calls} calls are over")


async def _at_rest(control_port: int) -> ServerState:
    """What the server holds once no call is left and sockets are closed. Raises LeftoverCallsError."""
    patience = round(IDLE_LIMIT_S / LOOK_EVERY_S)
    for _ in range(patience):
        state = await _ask(control_port)
        if not any(state.calls.values()):
            await asyncio.sleep(CLOSING_S)
            return await _ask(control_port)
        await asyncio.sleep(LOOK_EVERY_S)
    raise LeftoverCallsError(
        f"{IDLE_LIMIT_S:.0f} s after the last call was over the server still has {dict(state.calls)}."
    )


async def _ask(control_port: int) -> ServerState:
    reader, writer = await asyncio.open_connection("127.0.0.1", control_port)
    try:
        state = orjson.loads(await reader.read())
    finally:
        writer.close()
    return ServerState(Holdings(**state["holdings"]), state["calls"], state["rss_kb"], state["in_use_bytes"])


def _errors(log: Path) -> list[str]:
    """Lines of the server's log that tell of a fault of its own."""
    lines = (orjson.loads(line) for line in log.read_bytes().splitlines() if line.startswith(b"{"))
    errors = Counter(line["msg"] for line in lines if line["level"] in {"ERROR", "CRITICAL"})
    del errors[GIVEN_UP]
    return [f"the server logged an error {count} times: {text}" for text, count in errors.items()]


# --- The command -----------------------------------------------------------------------------


def main() -> int:
    """0: nothing was left behind; 1: something was; 2: it could not be tried."""
    options = _parser().parse_args()
    try:
        report = uvloop.run(soak(options.calls, options.at_once, options.seed))
    except KeyboardInterrupt:
        _say("Interrupted.")
        return 130
    except LeftoverCallsError as error:
        _say(str(error))
        return 1
    except (ChildError, OSError) as error:
        _say(f"Could not try it: {error}")
        return 2
    print(_as_json(report) if options.json else _as_text(report))
    return 0 if report.good else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/soak", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--calls",
        type=_count,
        default=1_000,
        help="number of calls, after 1000 to warm up (default: 1000, 3 minutes)",
    )
    parser.add_argument("--at-once", type=_count, default=50, help="number of simultaneous calls (default: 50)")
    parser.add_argument("--seed", type=int, default=1, help="random seed, to reproduce a run (default: 1)")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    return parser


def _count(text: str) -> int:
    count = int(text)
    if count < 1:
        raise argparse.ArgumentTypeError("should be at least 1")
    return count


def _as_json(report: Report) -> str:
    return json.dumps(
        {
            "good": report.good,
            "made": dict(report.made),
            "reasons": dict(report.reasons),
            "failovers": dict(report.failovers),
            "leaked": dict(report.leaked),
            "growth_kb_per_call": round(report.growth_kb, 3),
            "rss_growth_kb_per_call": round(report.rss_growth_kb, 3),
            "problems": report.problems,
        },
        indent=2,
    )


def _as_text(report: Report) -> str:
    lines = ["", "Calls made, by what the caller or the network did"]
    lines += [f"  {count:5}  {name.replace('_', ' ')}" for name, count in sorted(report.made.items())]
    lines += ["", "Endings in the ledger (refused calls have none)"]
    lines += [f"  {count:5}  {reason}" for reason, count in sorted(report.reasons.items())]
    lines += ["", "Backends replaced before the call talked"]
    lines += [f"  {count:5}  {reason}" for reason, count in sorted(report.failovers.items())]
    lines += ["", "Left behind"]
    lines += [f"  {count:5}  {name}: LEAKED" for name, count in report.leaked.items()]
    lines += [] if report.leaked else ["  no socket, task, timer or session: ok"]
    in_use = f"{report.growth_kb:.2f} kB in use (at most {GROWTH_MAX_KB:g})"
    resident = f"{report.rss_growth_kb:.2f} kB resident (at most {RSS_GROWTH_MAX_KB:g})"
    lines.append(f"  for each call {in_use} and {resident}: {'ok' if report.flat else 'MISSED'}")
    lines += ["", "Problems", *(f"  {problem}" for problem in report.problems or ["none"]), ""]
    return "\n".join(lines)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
