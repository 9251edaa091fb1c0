"""scripts/rollout: checks, migrates, deploys, scales and calls every region; rolls back if a step fails.

The migration is fly.toml's release_command: Fly runs it once, with the new image, before it touches a Machine.
Exit codes: 0: deployed. 1: failed; the last line says why and what runs now. 2: the command line was wrong. 130:
interrupted before anything was changed.
"""

import argparse
import asyncio
import base64
import binascii
import re
import shutil
import sys
import tempfile
import time
import tomllib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from app.config import CallerSettings, environment
from app.regions.table import REGIONS as KNOWN_REGIONS
from app.urls import ExampleUrl, http_url
from app.validation import SettingsError
from scripts.rolloutlib.fly_toml import BACKEND_SECRETS, LEDGER_SECRETS, REGIONS, SECRETS, problems, unknown_keys
from scripts.rolloutlib.regions import Drains, Patience, all_answer, all_healthy
from scripts.rolloutlib.shell import ROOT, Shell, StepError, run, spelt
from scripts.rolloutlib.zones import config_file_of, lonely, promises, tenants_in

FLY = "fly"
FLY_TOML = ROOT / "fly.toml"
GROUP = "app"
"""Fly's name for the process group of an app that has only one. Release and console Machines have others."""
COMPLETE = {"complete", "succeeded"}
REGIONS_SETTING = "NEARCALL_REGIONS"
"""The regions that Machines may send calls on to: those of the rollout."""
CALLS_SETTING = "NEARCALL_CALLS_MAX"
"""How many calls a Machine takes; the limits in fly.toml have to match."""
ONE_AT_A_TIME = ("--strategy", "rolling", "--max-unavailable", "1")
"""Never two Machines at once, so never two of one zone. In a rollback the configuration that ran before may say
otherwise."""
SINGLE = "--allow-single-machine-zone"


@dataclass(frozen=True, slots=True)
class Plan:
    """What to roll out, and where."""

    app: str | None
    """None: the app that the configuration names."""
    regions: tuple[str, ...]
    skip_calls: bool
    url: str
    """Where Twilio reaches the app: https://calls.example.com."""
    config: Path = FLY_TOML
    allow_single_machine_zone: bool = False
    """Roll out although the calls of a zone have nowhere to go while its only Machine is replaced."""
    tenants_here: bool = False
    """The database of the tenants is set up where this script runs."""
    nearcall: str = str(Path(sys.executable).with_name("nearcall"))
    patience: Patience = Patience()  # noqa: RUF009  frozen
    admin_token: str = field(default="", repr=False)
    """Shows how many calls the old servers moved; empty: that is not shown."""

    def fly(self, *arguments: str) -> tuple[str, ...]:
        """Return a fly command for this app. Without a name, fly finds it in fly.toml."""
        return (FLY, *arguments, *(("--app", self.app) if self.app else ()))


@dataclass(frozen=True, slots=True)
class Before:
    """What ran before anything was changed."""

    machines: dict[str, str]
    """Version of each Machine, by its id."""
    way_back: tuple[str, ...] | None
    """The command that deploys it again; None if nothing ran."""


async def roll_out(plan: Plan, shell: Shell, keep: Path, confirm: Callable[[str], bool]) -> None:
    """Roll out. Raises StepError after deploying what ran before; if that fails too, the error says so.

    `keep` is a directory for the configuration that ran before.
    """
    began_ms = time.time_ns() // 1_000_000
    check_file(plan, shell)
    before = await look(plan, shell, keep)
    if not shell.dry_run and not confirm(f"Roll out to {', '.join(plan.regions)}?"):
        raise StepError("Not confirmed; nothing was changed.")
    try:
        # Scaling copies Machines, so new ones get NEARCALL_REGIONS too.
        regions = ("--env", f"{REGIONS_SETTING}={','.join(plan.regions)}")
        await shell.change(
            *plan.fly("deploy", "--config", str(plan.config), *regions, *ONE_AT_A_TIME, "--ha=false", "--yes")
        )
        await shell.change(*plan.fly(*scale(plan.regions)))
        await check_layout(plan, shell)
        drains = Drains(plan.admin_token, began_ms)
        numbers = await all_healthy(shell, plan.url, plan.regions, plan.patience, drains)
        if not plan.skip_calls:
            await all_answer(shell, plan.nearcall, plan.url, numbers)
    except StepError as error:
        raise StepError(f"{error} {await roll_back(plan, shell, before)}") from error
    except asyncio.CancelledError:
        back = f" To go back: {spelt(before.way_back)}" if before.way_back else ""
        raise StepError(f"Interrupted; each Machine runs either version.{back}") from None
    if shell.dry_run and before.way_back:
        shell.say("If one of these failed:")
        await shell.change(*before.way_back)


def scale(regions: Sequence[str]) -> tuple[str, ...]:
    """Name the regions: otherwise flyctl knows only those that have a Machine, and fails (fly.md 12.2)."""
    return ("scale", "count", str(len(regions)), "--max-per-region", "1", "--region", ",".join(regions), "--yes")


# --- Before ------------------------------------------------------------------------------------


def check_file(plan: Plan, shell: Shell) -> None:
    """Check fly.toml. Raises StepError with a line for each problem."""
    try:
        text = plan.config.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "not UTF-8"
        raise StepError(f"{plan.config.name}: {why}.") from None
    found = problems(text, plan.regions)
    for line in unknown_keys(text):
        shell.say(f"{plan.config.name}: WARNING: {line}")
    if found:
        raise StepError("\n".join(f"{plan.config.name}: {line}" for line in found))


async def look(plan: Plan, shell: Shell, keep: Path) -> Before:
    """Check that everything is there, and note what runs now. Changes nothing. Raises StepError."""
    if not shell.dry_run and shutil.which(FLY) is None:
        raise StepError("fly is not on the PATH: https://fly.io/docs/flyctl/install explains how to install it.")
    await shell.read(FLY, "auth", "whoami")
    await shell.read(*plan.fly("status", "--json"))
    await shell.read(*plan.fly("config", "validate", "--strict", "--config", str(plan.config)))
    secrets = await check_secrets(plan, shell)
    await check_zones(plan, shell, secrets)
    machines = await machines_of(plan, shell)
    for region in plan.regions:
        here = [machine["id"] for machine in machines if machine["region"] == region]
        if len(here) > 1:
            # Scaling down destroys Machines without a signal (fly.md 12.2), and so ends their calls.
            raise StepError(
                f"{region} has {len(here)} Machines ({', '.join(here)}); scaling to one would cut off calls."
            )
    for region in sorted({machine["region"] for machine in machines} - set(plan.regions)):
        shell.say(f"WARNING: the Machines in {region} get the new version too, without a test call.")
    versions = {machine["id"]: machine["instance_id"] for machine in machines}
    return Before(versions, await way_back(plan, shell, keep, machines) if machines or shell.dry_run else None)


async def check_zones(plan: Plan, shell: Shell, secrets: Collection[str]) -> None:
    """Check that each zone that is promised has a second Machine. Raises StepError."""
    tenants = await _tenants(plan, shell, secrets)
    file = config_file_of(_read_config(plan.config), plan.config.parent)
    found = lonely(promises(file, secrets, tenants), plan.regions)
    for line in found if plan.allow_single_machine_zone else ():
        shell.say(f"WARNING: {line}")
    if found and not plan.allow_single_machine_zone:
        raise StepError("\n".join([*found, f"To roll out all the same, add {SINGLE}."]))


async def _tenants(plan: Plan, shell: Shell, secrets: Collection[str]) -> list[dict[str, Any]]:
    """The tenants, as far as they can be read from here."""
    if not plan.tenants_here:
        if LEDGER_SECRETS[0] in secrets:
            here = f"{LEDGER_SECRETS[0]} is not set here"
            shell.say(f"WARNING: {here}, so the zones of the tenants were not checked for a second Machine.")
        return []
    command = (plan.nearcall, "tenants", "list", "--json")
    shell.say(f"$ {spelt(command)}")
    if shell.dry_run:
        return []
    ran = await run(*command)
    # Status 1 with a list: a tenant cannot be used by this version.
    tenants = tenants_in(ran.out)
    if tenants is None or (ran.code != 0 and not tenants):
        shell.say(f"WARNING: the zones of the tenants were not checked for a second Machine: {ran.last_words}")
        return []
    return tenants


async def check_secrets(plan: Plan, shell: Shell) -> set[str]:
    """Check the names of the secrets, and return them; Fly does not reveal their values. Raises StepError."""
    listed = await shell.read_list(*plan.fly("secrets", "list", "--json"))
    if shell.dry_run:
        return set()
    there = {str(each.get("name") or each.get("Name")) for each in listed}  # an older flyctl writes Name
    missing = [name for name in SECRETS if name not in there]
    if not any(str(name).endswith("_KEY") or name in BACKEND_SECRETS for name in there):
        missing.append(BACKEND_SECRETS[0])
    if missing:
        command = spelt(plan.fly("secrets", "import", "--stage"))
        file = f"from a file with a line {missing[0]}=... for each"
        raise StepError(f"Secrets are missing: {', '.join(missing)}. Set them {file}: {command} < FILE")
    if hidden := sorted({REGIONS_SETTING, CALLS_SETTING} & there):
        command = spelt(plan.fly("secrets", "unset", "--stage", *hidden))
        names = " and ".join(hidden)
        raise StepError(f"A secret overrides fly.toml, so {names} should not be among the secrets. Run: {command}")
    if not there.issuperset(LEDGER_SECRETS):
        both = " and ".join(LEDGER_SECRETS)
        shell.say(f"WARNING: without {both} each Machine keeps its own records on its volume only.")
    return there


async def way_back(
    plan: Plan, shell: Shell, keep: Path, machines: Sequence[dict[str, Any]]
) -> tuple[str, ...] | None:
    """Return the command that deploys the last release again, or None if no release has completed."""
    releases = await shell.read_list(*plan.fly("releases", "--json"))
    if shell.dry_run:
        releases = [{"Status": "complete", "ImageRef": "IMAGE-OF-THE-LAST-COMPLETE-RELEASE"}]
    done = [each for each in releases if each.get("Status") in COMPLETE and each.get("ImageRef")]
    if not done:
        shell.say("WARNING: no release has completed yet, so there is nothing to roll back to.")
        return None
    image = max(done, key=lambda each: int(each.get("Version", 0)))["ImageRef"]
    config = keep / "fly.before.toml"
    text = await shell.read(*plan.fly("config", "show", "--toml"))
    # After an interrupted rollout Machines differ: those with the previous image have its files.
    its_own_last = sorted(machines, key=lambda each: _config(each).get("image") == image)
    config.write_text(with_kept_files(text, its_own_last, keep, shell), encoding="utf-8")
    # Migrations only add, so the previous version keeps working; its own migrate would refuse the newer schema.
    options = (
        "--image",
        image,
        "--config",
        str(config),
        *ONE_AT_A_TIME,
        "--ha=false",
        "--skip-release-command",
        "--yes",
    )
    return plan.fly("deploy", *options)


def with_kept_files(config: str, machines: Sequence[dict[str, Any]], keep: Path, shell: Shell) -> str:
    """Return a release's configuration with the contents of `[[files]]` that its Machines have.

    A release stores the path of a local file and not its contents (flyctl, internal/appconfig, File), so
    deploying it again would give the old image the current file. Each Machine's own configuration has the
    contents; if several Machines have a file, the last one counts. Raises StepError.
    """
    try:
        files = tomllib.loads(config).get("files", [])
    except tomllib.TOMLDecodeError as error:
        raise StepError(f"`fly config show --toml` printed no TOML: {error}.") from None
    had = {
        file["guest_path"]: file["raw_value"]
        for machine in machines
        for file in _config(machine).get("files") or ()
        if file.get("guest_path") and file.get("raw_value")
    }
    for number, file in enumerate(files):
        guest_path, local_path = file.get("guest_path", ""), file.get("local_path", "")
        if not local_path:
            continue
        kept = keep / f"file-{number}"
        try:
            kept.write_bytes(base64.b64decode(had[guest_path], validate=True))
        except (KeyError, binascii.Error):
            today = f"a rollback would deploy the current {local_path}"
            shell.say(f"WARNING: no Machine reports its contents of {guest_path}; {today}.")
            continue
        file["local_path"] = str(kept)
        # flyctl writes TOML with either kind of quotes.
        line = re.compile(rf"""^(\s*local_path\s*=\s*)(["']){re.escape(local_path)}\2""", re.MULTILINE)
        if found := line.search(config):
            config = f"{config[: found.start()]}{found[1]}'{kept}'{config[found.end() :]}"
    if tomllib.loads(config).get("files", []) != files:
        raise StepError("`fly config show --toml` spells [[files]] in a way that this script cannot change.")
    return config


async def machines_of(plan: Plan, shell: Shell) -> list[dict[str, Any]]:
    """Return the Machines that take calls, as Fly lists them. Raises StepError."""
    listed = await shell.read_list(*plan.fly("machine", "list", "--json"))
    serving = [
        each for each in listed if _group(each) == GROUP and not each.get("state", "").startswith("destroy")
    ]
    if any({"id", "region", "instance_id", "state"} - set(each) for each in serving):
        raise StepError("`fly machine list --json` lacks fields that this script reads. Update fly.")
    return serving


def _config(machine: dict[str, Any]) -> dict[str, Any]:
    return machine.get("config") or machine.get("incomplete_config") or {}


def _group(machine: dict[str, Any]) -> str:
    metadata = _config(machine).get("metadata") or {}
    return str(metadata.get("fly_process_group", GROUP))


# --- After -------------------------------------------------------------------------------------


async def check_layout(plan: Plan, shell: Shell) -> None:
    """Check that every region has a Machine, since scaling can succeed in part. Raises StepError."""
    there = {machine["region"] for machine in await machines_of(plan, shell)}
    lacking = [region for region in plan.regions if region not in there]
    if lacking and not shell.dry_run:
        raise StepError(f"No Machine in {', '.join(lacking)}; Fly may be short of capacity there.")


async def roll_back(plan: Plan, shell: Shell, before: Before) -> str:
    """Deploy what ran before. Returns a sentence that says what runs now."""
    try:
        after = {machine["id"]: machine["instance_id"] for machine in await machines_of(plan, shell)}
    except StepError as error:
        shell.say(f"Cannot determine what runs now: {error}")
        after = {}
    if after and after == before.machines:
        return "No Machine was changed; the previous version runs."
    if before.way_back is None:
        return "There is no version before to go back to."
    shell.say("Rolling back.")
    try:
        await shell.change(*before.way_back)
    except (StepError, asyncio.CancelledError):
        return f"THE ROLL-BACK FAILED TOO. By hand: {spelt(before.way_back)}"
    image = before.way_back[before.way_back.index("--image") + 1]
    return f"Rolled back to {image}."


# --- The command line --------------------------------------------------------------------------


def _regions(text: str) -> tuple[str, ...]:
    regions = tuple(text.split(","))
    if len(set(regions)) != len(regions) or not KNOWN_REGIONS.keys() >= set(regions):
        known = ", ".join(KNOWN_REGIONS)
        raise argparse.ArgumentTypeError(f"region codes with commas, each once: nrt,fra. Known are {known}")
    return regions


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="scripts/rollout",
        description="Deploys nearcall on Fly.io: checks, migrates, deploys, scales and calls every region, and "
        "deploys the previous version again if something fails. Needs fly, logged in. The test calls need "
        "NEARCALL_PUBLIC_URL, TWILIO_ACCOUNT_SID and TWILIO_AUTH_TOKEN in the environment or in .env; the check "
        "of the tenants' zones needs TURSO_URL and TURSO_TOKEN there. With NEARCALL_ADMIN_TOKEN too, the rollout "
        "shows how many calls each region moved.",
    )
    parser.add_argument("--app", help="the app at Fly.io (default: the one that the configuration names)")
    parser.add_argument("--config", type=Path, default=FLY_TOML, help="the configuration file (default: fly.toml)")
    parser.add_argument(
        "--regions",
        type=_regions,
        help=f"regions to deploy to (default: {REGIONS_SETTING} under [env] in the configuration, or "
        f"{','.join(REGIONS)})",
    )
    parser.add_argument(
        SINGLE,
        action="store_true",
        help="roll out although a zone has a Machine in fewer than two of the regions. By default that is refused "
        "for a zone whose database or backend is among the secrets, or that a tenant is in",
    )
    parser.add_argument("--skip-calls", action="store_true", help="place no test calls")
    parser.add_argument("--dry-run", action="store_true", help="print every command in order, and run none")
    parser.add_argument("--yes", action="store_true", help="do not ask before the first change")
    return parser.parse_args(argv)


def _app(arguments: argparse.Namespace, config: dict[str, Any]) -> str | None:
    """Return the app to name in each command, or None if fly finds it in fly.toml, the only file that it reads."""
    if arguments.app or arguments.config == FLY_TOML:
        return str(arguments.app) if arguments.app else None
    return str(config.get("app", "")) if config else None


def _default_regions(config: dict[str, Any]) -> tuple[str, ...]:
    """Return the configuration's regions, so that an app for one zone never gets a Machine outside it."""
    env = config.get("env")
    setting = env.get(REGIONS_SETTING) if isinstance(env, dict) else None
    if setting is None:
        return REGIONS
    try:
        return _regions(str(setting).replace(" ", ""))
    except argparse.ArgumentTypeError as error:
        raise StepError(f"env.{REGIONS_SETTING} of the configuration should be {error}.") from None


def _read_config(path: Path) -> dict[str, Any]:
    """Read the configuration. Returns an empty one if it cannot be read; `check_file` reports why."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}


def _public_url(environ: dict[str, str]) -> str:
    url = environ.get("NEARCALL_PUBLIC_URL", "").split(",")[0].strip().rstrip("/")
    try:
        if not http_url(url).path:
            return url
    except ExampleUrl:
        # No region answers at the placeholder, so a good version would be rolled back.
        raise StepError(
            "NEARCALL_PUBLIC_URL still has the placeholder of the documentation."
            " It should be the URL that Twilio calls."
        ) from None
    except ValueError:
        pass  # reported below
    raise StepError("NEARCALL_PUBLIC_URL should be the URL that Twilio calls, such as https://calls.example.com.")


def _confirm(question: str) -> bool:
    if not sys.stdin.isatty():
        raise StepError("There is no terminal to ask for confirmation. Use --yes. Nothing was changed.")
    return input(f"{question} [y/N] ").strip().lower() in {"y", "yes"}


def main(argv: Sequence[str], **changes: Any) -> int:
    """Run the rollout, with `changes` to the plan. Returns the exit code."""
    arguments = _arguments(argv)
    arguments.config = arguments.config.resolve()
    shell = Shell(lambda line: print(line, flush=True), dry_run=arguments.dry_run)
    keep = Path(tempfile.mkdtemp(prefix="nearcall-rollout-"))
    error = ""
    regions: tuple[str, ...] = ()
    try:
        environ = environment()
        if not arguments.skip_calls and not arguments.dry_run:
            CallerSettings.from_env(environ)
        if arguments.dry_run:  # no URL is requested
            url = environ.get("NEARCALL_PUBLIC_URL") or "https://calls.example.com"
        else:
            url = _public_url(environ)
        config = _read_config(arguments.config)
        regions = arguments.regions or _default_regions(config)
        plan = Plan(
            _app(arguments, config),
            regions,
            arguments.skip_calls,
            url,
            arguments.config,
            arguments.allow_single_machine_zone,
            LEDGER_SECRETS[0] in environ,
            **changes,
        )
        plan = replace(plan, admin_token=environ.get("NEARCALL_ADMIN_TOKEN", ""))
        asyncio.run(roll_out(plan, shell, keep, lambda question: arguments.yes or _confirm(question)))
    except (StepError, SettingsError) as failed:
        error = str(failed)
    except KeyboardInterrupt:
        print(f"rollout: Interrupted. Check the app with `{spelt((FLY, 'status'))}`.", file=sys.stderr)
        return 130
    finally:
        if str(keep) not in error:  # otherwise it is needed to roll back by hand
            shutil.rmtree(keep)
    for line in error.splitlines():
        print(f"rollout: {line}", file=sys.stderr)
    if not error and not arguments.dry_run:
        print(f"Rolled out to {', '.join(regions)}.")
    return 1 if error else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
