"""scripts/rollout against a `fly` that fails at every step in turn: what is run after it, and what is said."""

import asyncio
import shlex
from itertools import chain
from pathlib import Path
from typing import Any

import pytest

from app.regions.zones import shipped_zones
from scripts.rolloutlib.fly_toml import REGIONS, SECRETS
from scripts.rolloutlib.regions import Patience
from scripts.rolloutlib.rollout import main
from scripts.rolloutlib.shell import ROOT, StepError
from tests.scripts.edge import healthy
from tests.scripts.fly_stand_in import machine
from tests.scripts.outside import IMAGE, Bench, short
from tests.waiting import a_moment

pytestmark = pytest.mark.anyio

SIX = ",".join(REGIONS)
ONE_AT_A_TIME = "--strategy rolling --max-unavailable 1"
EU = shipped_zones()["eu"]

LAST = r"(?:\A|\n)(?!.*\n)"
"""Begins a pattern of the command that `fly` was told last."""

HASTY = Patience(limit_s=1.0, every_s=0.05)

LOOK = ["auth whoami", "status", "config validate", "secrets list", "machine list"]
KNOW_THE_WAY_BACK = ["releases", "config show"]
CHANGE = ["deploy", "scale count", "machine list"]
BACK = ["machine list", "deploy --image"]


# --- It goes well ------------------------------------------------------------------------------------


async def test_roll_out_looks_deploys_scales_and_tries_each_region(bench: Bench) -> None:
    await bench.roll_out()
    assert bench.told == [*LOOK, *KNOW_THE_WAY_BACK, *CHANGE]
    assert bench.lines("deploy") == [
        f"deploy --config {ROOT}/fly.toml --env NEARCALL_REGIONS={SIX} {ONE_AT_A_TIME} --ha=false --yes"
    ]
    assert bench.lines("scale") == [f"scale count 6 --max-per-region 1 --region {SIX} --yes"]
    assert sorted(bench.edge.asked) == sorted(REGIONS)
    for region in REGIONS:
        assert f"{region}: healthy" in bench.said
        assert f"{region}: answered the test call to test:global, greeting after 0.50 s" in bench.said
    assert "fra: answered the test call to test:eu, greeting after 0.50 s" in bench.said
    assert len([line for line in bench.said if "nearcall call" in line]) == len(REGIONS) + 1


async def test_first_roll_out_makes_a_machine_in_each_region(bench: Bench) -> None:
    bench.set(machines=[], releases=[], version=0)
    await bench.roll_out()
    assert bench.told == [*LOOK, *CHANGE]
    assert sorted(each["region"] for each in bench.state["machines"]) == sorted(REGIONS)


async def test_secrets_may_be_listed_by_an_older_fly(bench: Bench) -> None:
    bench.set(name="Name")
    await bench.roll_out()


async def test_another_app_and_fewer_regions_are_named_in_every_command(bench: Bench) -> None:
    await bench.roll_out(app="other", regions=("iad", "fra"))
    assert all(line.endswith("--app other") for line in bench.lines() if line != "auth whoami")
    assert bench.lines("scale") == ["scale count 2 --max-per-region 1 --region iad,fra --yes --app other"]
    # Machines send calls on to these regions and to no others.
    assert " --env NEARCALL_REGIONS=iad,fra " in bench.lines("deploy")[0]
    assert sorted(set(bench.edge.asked)) == ["fra", "iad"]


DRAINED = {"calls_left": 0, "moved": 12, "move_failed": 0, "cut_short": 0}
IN_A_YEAR_MS = 32_000_000_000_000


async def test_calls_that_each_region_moved_are_shown(bench: Bench) -> None:
    now = {"finished_ms": IN_A_YEAR_MS}
    bench.edge.answers["gru"] = [healthy("gru", last_drain=DRAINED | now)]
    bench.edge.answers["fra"] = [healthy("fra", last_drain=DRAINED | now | {"move_failed": 2})]
    bench.edge.answers["iad"] = [healthy("iad", last_drain=DRAINED | now | {"cut_short": 1})]
    bench.edge.answers["lax"] = [healthy("lax", last_drain=DRAINED | {"finished_ms": 1})]
    await bench.roll_out(admin_token="t" * 32)
    assert sorted(line for line in bench.said if "moved" in line) == [
        "fra: 14 calls moved, 2 of them by closing their streams",
        "gru: 12 calls moved",
        "iad: WARNING: 12 calls moved; 1 cut short",
    ]
    assert bench.edge.tokens == {f"Bearer {'t' * 32}"}


async def test_without_the_admin_token_no_region_is_asked_for_its_drain(bench: Bench) -> None:
    await bench.roll_out()
    assert bench.edge.tokens == set()


async def test_wrong_admin_token_is_a_warning_and_rolls_nothing_back(bench: Bench) -> None:
    bench.edge.answers["gru"] = [(401, '{"title": "Unauthorized"}'), healthy("gru")]
    await bench.roll_out(admin_token="t" * 32)
    assert "gru: WARNING: NEARCALL_ADMIN_TOKEN is not the server's" in bench.said
    assert "gru: healthy" in bench.said


async def test_region_that_takes_a_while_is_waited_for(bench: Bench) -> None:
    down = healthy("gru", "down", why="draining")
    bench.edge.answers["gru"] = [(503, "no Machine"), healthy("iad"), down, healthy("gru")]
    await bench.roll_out()
    assert bench.edge.asked.count("gru") == 4


async def test_region_whose_ledger_does_not_work_is_a_warning(bench: Bench) -> None:
    bench.edge.answers["gru"] = [healthy("gru", "degraded", why="ledger")]
    await bench.roll_out()
    assert "gru: WARNING: it takes calls, but is degraded: ledger" in bench.said


async def test_region_whose_zones_cannot_be_tried_is_a_warning(bench: Bench) -> None:
    bench.edge.answers["gru"] = [healthy("gru", test_numbers=[])]
    await bench.roll_out()
    assert "gru: WARNING: no test call can reach any of its zones" in bench.said


async def test_zone_that_does_not_answer_is_named_and_rolled_back(bench: Bench) -> None:
    bench.reports(**{"fra test:eu": {"good": False}})
    why = await bench.fails()
    assert why.startswith("the test call to test:eu in fra failed: ")
    assert bench.told == [*LOOK, *KNOW_THE_WAY_BACK, *CHANGE, *BACK]


async def test_missing_database_is_a_warning(bench: Bench) -> None:
    bench.set(secrets=[*SECRETS, "OPENAI_API_KEY"])
    await bench.roll_out()
    assert any(line.startswith("WARNING: without TURSO_URL and TURSO_TOKEN") for line in bench.said)


async def test_machines_elsewhere_are_a_warning(bench: Bench) -> None:
    bench.set(machines=[*bench.state["machines"], machine("ams", "v2"), machine("iad", "v2", "fly_app_console")])
    await bench.roll_out()
    assert [line for line in bench.said if "WARNING" in line] == [
        "WARNING: the Machines in ams get the new version too, without a test call."
    ]


async def test_without_calls_only_health_is_asked(bench: Bench) -> None:
    bench.reports(**{region: {"error": "called"} for region in REGIONS})
    await bench.roll_out(skip_calls=True)
    assert not any("nearcall call" in line for line in bench.said)


# --- It does not begin -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "asked"),
    [
        (LAST + "auth whoami", 1),
        (LAST + "status", 2),
        (LAST + "config validate", 3),
        (LAST + "secrets list", 4),
        (LAST + "machine list", 5),
        (LAST + "releases", 6),
        (LAST + "config show", 7),
    ],
)
async def test_failed_look_is_named_and_nothing_is_changed(bench: Bench, command: str, asked: int) -> None:
    bench.set(fail={command: "no such thing"})
    why = await bench.fails()
    assert bench.told == [*LOOK, *KNOW_THE_WAY_BACK][:asked]
    assert why.startswith(f"`fly {command.removeprefix(LAST)}")
    assert why.endswith("failed: Error: no such thing")
    assert "\n" not in why


async def test_missing_secrets_are_named_and_nothing_is_changed(bench: Bench) -> None:
    bench.set(secrets=["NEARCALL_SECRET", "TURSO_URL"])
    why = await bench.fails(app="other")
    assert why.startswith(
        "Secrets are missing: NEARCALL_PUBLIC_URL, TWILIO_ACCOUNT_SID, TWILIO_AUTH_TOKEN, OPENAI"
    )
    assert "with a line NEARCALL_PUBLIC_URL=... for each: fly secrets import --stage --app other < FILE" in why
    assert bench.told == LOOK[:4]


@pytest.mark.parametrize("backend", ["OPENAI_EU_API_KEY", "AZURE_VOICELIVE_ENDPOINT", "ACME_KEY"])
async def test_any_backend_will_do(bench: Bench, backend: str) -> None:
    bench.set(secrets=[*SECRETS, backend])
    await bench.roll_out(allow_single_machine_zone=True)


async def test_second_machine_in_a_region_is_not_destroyed(bench: Bench) -> None:
    bench.set(machines=[*bench.state["machines"], machine("fra", "v2") | {"id": "second"}])
    assert await bench.fails() == "fra has 2 Machines (app-fra, second); scaling to one would cut off calls."
    assert bench.told == LOOK


async def test_broken_fly_toml_is_told_line_by_line_before_fly_is_asked(bench: Bench, tmp_path: Path) -> None:
    config = tmp_path / "fly.toml"
    text = (ROOT / "fly.toml").read_text().replace('"300s"', '"600s"').replace("max_unavailable = 1", "")
    config.write_text(text)
    why = await bench.fails(config=config)
    assert [line.split(": ")[:2] for line in why.splitlines()] == [
        ["fly.toml", "kill_timeout"],
        ["fly.toml", "deploy.max_unavailable"],
        ["fly.toml", "deploy.wait_timeout"],
    ]
    assert bench.told == []


async def test_fly_toml_that_is_not_there_is_one_line(bench: Bench, tmp_path: Path) -> None:
    assert await bench.fails(config=tmp_path / "fly.toml") == "fly.toml: No such file or directory."


async def test_who_is_not_sure_changes_nothing(bench: Bench) -> None:
    assert await bench.fails(sure=False) == "Not confirmed; nothing was changed."
    assert bench.told == [*LOOK, *KNOW_THE_WAY_BACK]


async def test_fly_that_is_not_installed_is_one_line(bench: Bench) -> None:
    (bench.directory / "bin" / "fly").unlink()
    assert (await bench.fails()).startswith("fly is not on the PATH: ")


async def test_list_that_is_none_is_one_line(bench: Bench) -> None:
    bench.set(machines="what?")
    assert await bench.fails() == "`fly machine list --json` printed no list of objects."
    bench.set(machines=[{"id": "1"}])
    assert (await bench.fails()).startswith("`fly machine list --json` lacks fields that this script reads")


# --- It fails on the way -----------------------------------------------------------------------------


async def test_failed_migration_leaves_everything_as_it_is(bench: Bench) -> None:
    """The release command runs before any Machine is touched: there is nothing to roll back."""
    bench.set(fail={LAST + "deploy --config": "release command failed"})
    why = await bench.fails()
    assert why.startswith(
        f"`fly deploy --config fly.toml --env NEARCALL_REGIONS={SIX} {ONE_AT_A_TIME} --ha=false --yes` failed"
    )
    assert why.endswith("No Machine was changed; the previous version runs.")
    assert bench.told == [*LOOK, *KNOW_THE_WAY_BACK, "deploy", "machine list"]


async def test_deploy_that_fails_halfway_is_rolled_back(bench: Bench) -> None:
    bench.set(fail={LAST + "deploy --config": "unhealthy"}, halfway=["unhealthy"])
    why = await bench.fails()
    assert why.endswith(f"Rolled back to {IMAGE}.")
    assert bench.told == [*LOOK, *KNOW_THE_WAY_BACK, "deploy", *BACK]
    (back,) = bench.lines("deploy", "--image")
    assert back.startswith(f"deploy --image {IMAGE} --config ")
    assert back.endswith(" --ha=false --skip-release-command --yes")
    assert "what-ran-before" in bench.state["config_of_rollback"]


FILES = """
app = "nearcall"

[[files]]
  guest_path = '/etc/nearcall.toml'
  local_path = '{path}'
"""


async def test_roll_back_brings_the_file_that_the_machines_had(bench: Bench, tmp_path: Path) -> None:
    """A release names a file's path; what is there today is what the failed version was to get."""
    today = tmp_path / "nearcall.toml"
    today.write_text("today")
    bench.set(
        config=FILES.format(path=today),
        machines=[
            machine("iad", "v2", image=IMAGE, file="what worked"),
            # Left over by a roll-out that broke off.
            machine("fra", "v3", image="registry.fly.io/nearcall:deployment-3", file="what failed"),
        ],
        fail={LAST + "scale": "no capacity"},
    )
    assert (await bench.fails()).endswith(f"Rolled back to {IMAGE}.")
    assert bench.state["files"] == {"/etc/nearcall.toml": "what worked"}
    assert today.read_text() == "today"


async def test_file_that_no_machine_tells_of_is_a_warning(bench: Bench, tmp_path: Path) -> None:
    today = tmp_path / "nearcall.toml"
    today.write_text("today")
    bench.set(config=FILES.format(path=today), fail={LAST + "scale": "no capacity"})
    await bench.fails()
    [warning] = [line for line in bench.said if "WARNING" in line]
    assert warning == (
        "WARNING: no Machine reports its contents of /etc/nearcall.toml;"
        f" a rollback would deploy the current {today}."
    )
    assert bench.state["files"] == {"/etc/nearcall.toml": "today"}


@pytest.mark.parametrize(
    ("config", "why"),
    [
        ("app = nearcall", "`fly config show --toml` printed no TOML: "),
        (
            "files = [{ guest_path = '/etc/nearcall.toml', local_path = 'x' }]",
            "`fly config show --toml` spells [[files]] in a way that this script cannot change.",
        ),
    ],
)
async def test_irreversible_configuration_is_refused_before_any_change(
    bench: Bench, config: str, why: str
) -> None:
    bench.set(config=config, machines=[machine("iad", "v2", image=IMAGE, file="what worked")])
    assert (await bench.fails()).startswith(why)
    assert bench.told == [*LOOK, *KNOW_THE_WAY_BACK]


async def test_regions_among_the_secrets_are_refused(bench: Bench) -> None:
    """A secret wins over the environment: Machines would send calls to regions that have none."""
    bench.set(secrets=[*bench.state["secrets"], "NEARCALL_REGIONS"])
    assert await bench.fails() == (
        "A secret overrides fly.toml, so NEARCALL_REGIONS should not be among the secrets. "
        "Run: fly secrets unset --stage NEARCALL_REGIONS"
    )
    assert bench.told == LOOK[:4]


async def test_unknown_key_in_fly_toml_is_a_warning(bench: Bench, tmp_path: Path) -> None:
    config = tmp_path / "fly.toml"
    config.write_text("key_of_2027 = 1\n" + (ROOT / "fly.toml").read_text())
    await bench.roll_out(config=config)
    assert bench.said[0].startswith("fly.toml: WARNING: key_of_2027: is not a key that is known of flyctl")


async def test_failed_scaling_is_rolled_back(bench: Bench) -> None:
    bench.set(fail={LAST + "scale": "no capacity"})
    why = await bench.fails()
    assert why.startswith(f"`fly scale count 6 --max-per-region 1 --region {SIX} --yes` failed with status 1.")
    assert bench.told == [*LOOK, *KNOW_THE_WAY_BACK, "deploy", "scale count", *BACK]


async def test_region_that_got_no_machine_is_named_and_rolled_back(bench: Bench) -> None:
    bench.set(machines=[machine("iad", "v2")], short_of_capacity=["gru", "syd"])
    why = await bench.fails()
    assert why.startswith("No Machine in gru, syd;")
    assert bench.told == [*LOOK, *KNOW_THE_WAY_BACK, *CHANGE, *BACK]


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        ((503, "no Machine"), "it answered 503, and not as nearcall does"),
        ((200, "[]"), "it answered 200, and not as nearcall does"),
        (healthy("iad"), "iad answered"),
        (healthy("gru", "down", why="draining"), "it answered 503 (draining)"),
        (
            healthy("gru", "degraded", why="no_backend"),
            "it takes no calls (no_backend: it reaches no backend)",
        ),
        (healthy("gru", "degraded", why="lagging"), "it takes no calls (lagging: its event loop is late)"),
        (
            healthy("gru", "degraded", why="starting"),
            "it takes no calls (starting: it does not know its tenants yet; does it reach the database?)",
        ),
    ],
)
async def test_region_that_is_not_healthy_is_named_and_rolled_back(
    bench: Bench, answer: tuple[int, str], why: str
) -> None:
    bench.edge.answers["gru"] = [answer]
    assert await bench.fails(patience=HASTY) == f"gru is not healthy after 1 s: {why}. Rolled back to {IMAGE}."
    assert bench.told == [*LOOK, *KNOW_THE_WAY_BACK, *CHANGE, *BACK]


async def test_edge_that_does_not_answer_is_named_and_rolled_back(bench: Bench) -> None:
    why = await bench.fails(url="http://127.0.0.1:1", regions=("iad",), patience=HASTY)
    assert why.startswith("iad is not healthy after 1 s: no answer (")
    assert why.endswith(f"Rolled back to {IMAGE}.")


@pytest.mark.parametrize(
    ("report", "why"),
    [
        (
            {"webhook_region": "iad", "stream_region": "iad"},
            "the test call to test:global in gru was answered by iad (webhook) and iad (stream)",
        ),
        (
            {"stream_region": "lax"},
            "the test call to test:global in gru was answered by gru (webhook) and lax (stream)",
        ),
        (
            {"webhook_region": None},
            ("the test call to test:global in gru was answered by an unknown region (webhook) and gru (stream)"),
        ),
        (
            {"good": False, "faults": ["Line 1 got no answer.", "It broke."]},
            "the test call to test:global in gru failed: Line 1 got no answer. It broke (the caller hung up)",
        ),
        (
            {"good": False},
            "the test call to test:global in gru failed: it does not say why (the caller hung up)",
        ),
        ({"error": "403"}, "the test call to test:global in gru could not be placed: nearcall: 403"),
    ],
)
async def test_test_call_that_goes_wrong_is_named_and_rolled_back(
    bench: Bench, report: dict[str, Any], why: str
) -> None:
    bench.reports(gru=report)
    assert await bench.fails() == f"{why}. Rolled back to {IMAGE}."
    assert bench.told == [*LOOK, *KNOW_THE_WAY_BACK, *CHANGE, *BACK]


async def test_tenant_may_leave_the_first_word_to_the_caller(bench: Bench) -> None:
    bench.reports(gru={"greeted_after_s": None})
    await bench.roll_out()
    assert "gru: answered the test call to test:global, no greeting" in bench.said


async def test_all_regions_that_fail_are_named_in_one_line(bench: Bench) -> None:
    bench.reports(gru={"good": False}, nrt={"error": "busy"})
    why = await bench.fails()
    assert "the test call to test:global in nrt could not" in why
    assert "the test call to test:global in gru failed" in why
    assert "\n" not in why


async def test_first_roll_out_that_fails_has_nothing_to_go_back_to(bench: Bench) -> None:
    bench.set(machines=[], releases=[], version=0)
    bench.reports(gru={"good": False})
    assert (await bench.fails()).endswith("There is no version before to go back to.")
    assert bench.told == [*LOOK, *CHANGE, "machine list"]


async def test_machines_without_a_completed_release_are_a_warning(bench: Bench) -> None:
    bench.set(releases=[{"Version": 1, "Status": "failed", "ImageRef": "x"}], fail={LAST + "scale": "no"})
    assert (await bench.fails()).endswith("There is no version before to go back to.")
    assert "WARNING: no release has completed yet, so there is nothing to roll back to." in bench.said


async def test_failed_roll_back_says_how_to_do_it_by_hand(bench: Bench) -> None:
    bench.set(fail={LAST + "scale": "no capacity", LAST + "deploy --image": "no such image"})
    why = await bench.fails()
    kept = bench.directory / "fly.before.toml"
    assert (
        f"THE ROLL-BACK FAILED TOO. By hand: fly deploy --image {IMAGE} --config {kept} {ONE_AT_A_TIME} --ha=false"
        in why
    )
    assert kept.is_file()
    assert "\n" not in why


async def test_machines_that_cannot_be_listed_are_rolled_back_all_the_same(bench: Bench) -> None:
    bench.set(fail={LAST + "scale": "no capacity", "(?s)scale.*machine list[^\n]*$": "the API is down"})
    why = await bench.fails()
    assert why.endswith(f"Rolled back to {IMAGE}.")


async def test_interrupted_deploy_is_stopped_and_says_how_to_go_back(bench: Bench) -> None:
    bench.set(hang=["deploy"])
    rolling = asyncio.create_task(bench.roll_out())
    while "deploy" not in bench.told and not rolling.done():
        await a_moment()
    rolling.cancel()
    with pytest.raises(StepError) as failed:
        await rolling
    assert str(failed.value).startswith(
        "Interrupted; each Machine runs either version. To go back: fly deploy --image"
    )
    assert bench.told == [*LOOK, *KNOW_THE_WAY_BACK, "deploy"]


async def test_interrupted_roll_back_says_how_to_do_it_by_hand(bench: Bench) -> None:
    bench.set(fail={LAST + "scale": "no capacity"}, hang=["--image"])
    rolling = asyncio.create_task(bench.roll_out())
    while "deploy --image" not in bench.told and not rolling.done():
        await a_moment()
    rolling.cancel()
    with pytest.raises(StepError) as failed:
        await rolling
    assert f"THE ROLL-BACK FAILED TOO. By hand: fly deploy --image {IMAGE}" in str(failed.value)


# --- Zones -------------------------------------------------------------------------------------------

LONELY_EU = (
    "Zone eu would have its only Machine in fra, so its calls have nowhere to go while that is replaced or down."
    " It is promised by {}. Add one of ams, arn, cdg to the regions.\n"
    "To roll out all the same, add --allow-single-machine-zone."
)


@pytest.mark.parametrize("secret", ["OPENAI_EU_API_KEY", "TURSO_EU_URL", "TURSO_EU_TOKEN"])
async def test_zone_with_one_machine_is_refused_before_any_change(bench: Bench, secret: str) -> None:
    bench.set(secrets=[*bench.state["secrets"], secret])
    assert await bench.fails() == LONELY_EU.format(f"the secret {secret}")
    assert bench.told == LOOK[:4]


async def test_tenant_of_a_zone_with_one_machine_is_refused(bench: Bench) -> None:
    bench.tenants({"tenant": "acme", "zone": "global"}, {"tenant": "berlin", "zone": "eu"}, {"tenant": "odd"})
    assert await bench.fails() == LONELY_EU.format("the tenant berlin")


async def test_zone_without_any_machine_is_refused(bench: Bench) -> None:
    bench.tenants({"tenant": "berlin", "zone": "eu"}, {"tenant": "paris", "zone": "eu"})
    why = await bench.fails(regions=("iad", "nrt"))
    assert why.startswith("Zone eu would have no Machine, so its calls have nowhere to go")
    assert "promised by the tenant berlin and 1 more. Add two of ams, arn, cdg, fra to the regions." in why


async def test_zone_with_one_machine_is_a_warning_when_it_is_allowed(bench: Bench) -> None:
    bench.set(secrets=[*bench.state["secrets"], "OPENAI_EU_API_KEY"])
    await bench.roll_out(allow_single_machine_zone=True)
    [warning] = [line for line in bench.said if "WARNING" in line]
    assert warning.startswith("WARNING: Zone eu would have its only Machine in fra")


async def test_zone_with_two_machines_is_rolled_out(bench: Bench) -> None:
    bench.set(secrets=[*bench.state["secrets"], "OPENAI_EU_API_KEY", "TURSO_EU_URL", "TURSO_EU_TOKEN"])
    bench.edge.answers["ams"] = [healthy("ams")]
    bench.tenants({"tenant": "berlin", "zone": "eu"})
    await bench.roll_out(regions=(*REGIONS, "ams"))
    assert f" --env NEARCALL_REGIONS={SIX},ams " in bench.lines("deploy")[0]
    assert "ams" in {each["region"] for each in bench.state["machines"]}
    assert not any("WARNING" in line for line in bench.said)


@pytest.mark.parametrize(
    ("regions", "advice"),
    [('"nrt", "sin"', "Add one of sin to the regions."), ('"nrt"', "The zone should allow a second region.")],
)
async def test_zone_of_the_operators_own_file_counts_too(
    bench: Bench, tmp_path: Path, regions: str, advice: str
) -> None:
    zone = f'[zones.apac]\nregions = [{regions}]\nresidency = "any"\ndatabase = "TURSO_APAC"\n'
    (tmp_path / "own.toml").write_text(zone)
    config = tmp_path / "fly.toml"
    text = (ROOT / "fly.toml").read_text().replace("[env]", '[env]\n  NEARCALL_CONFIG = "/etc/nearcall.toml"')
    config.write_text(text + '\n[[files]]\n  guest_path = "/etc/nearcall.toml"\n  local_path = "own.toml"\n')
    bench.set(secrets=[*bench.state["secrets"], "TURSO_APAC_URL"])
    why = await bench.fails(config=config)
    assert why.startswith("Zone apac would have its only Machine in nrt")
    assert advice in why


@pytest.mark.parametrize("status", [0, 1])
async def test_tenant_that_this_version_cannot_use_stops_no_rollout(bench: Bench, status: int) -> None:
    bench.tenants({"tenant": "acme", "error": "unknown field"}, status=status)
    await bench.roll_out()
    assert not any("WARNING" in line for line in bench.said)


@pytest.mark.parametrize(("lines", "status"), [((), 1), (("what?",), 0), (("[]",), 0)])
async def test_tenants_that_cannot_be_read_are_a_warning(
    bench: Bench, lines: tuple[str, ...], status: int
) -> None:
    bench.tenants(*lines, status=status)
    await bench.roll_out()
    [warning] = [line for line in bench.said if "WARNING" in line]
    assert warning.startswith("WARNING: the zones of the tenants were not checked for a second Machine: ")


async def test_tenants_in_a_database_that_is_not_set_up_here_are_a_warning(bench: Bench) -> None:
    await bench.roll_out(tenants_here=False)
    [warning] = [line for line in bench.said if "WARNING" in line]
    assert warning.startswith("WARNING: TURSO_URL is not set here, so the zones of the tenants")


@pytest.mark.parametrize("before", ['strategy = "immediate"', "max_unavailable = 0.5", "max_unavailable = 7"])
async def test_two_machines_of_a_zone_are_never_replaced_at_once(bench: Bench, before: str) -> None:
    """Neither by the new version nor by the rollback, whatever the configuration that ran before says."""
    regions = (*REGIONS, "ams", "cdg")
    bench.set(
        machines=[machine(region, "v2") for region in regions],
        config=f'app = "what-ran-before"\n[deploy]\n{before}\n',
        fail={LAST + "scale": "no capacity"},
    )
    assert (await bench.fails(regions=regions)).endswith(f"Rolled back to {IMAGE}.")
    forward, back = bench.state["batches"]
    assert sorted(chain(*forward)) == sorted(chain(*back)) == sorted(regions)
    assert all(sum(EU.allows(region) for region in batch) <= 1 for batch in [*forward, *back])


# --- The command line --------------------------------------------------------------------------------


async def test_dry_run_says_every_command_in_its_order_and_runs_none(bench: Bench) -> None:
    await bench.roll_out(dry_run=True)
    assert bench.told == []
    assert bench.edge.asked == []
    commands = [shlex.split(line)[1:] for line in bench.said if line.startswith("$ ")]
    flys = [short(command[1:]) for command in commands if command[0] == "fly"]
    assert flys == [*LOOK, *KNOW_THE_WAY_BACK, *CHANGE, "deploy --image"]
    assert f"$ fly scale count 6 --max-per-region 1 --region {SIX} --yes" in bench.said
    assert [command[2] for command in commands if command[0] == "curl"] == [
        f"fly-force-region: {region}" for region in REGIONS
    ]
    assert [command[1:] for command in commands if command[1] == "tenants"] == [["tenants", "list", "--json"]]
    calls = [command for command in commands if command[1] == "call"]
    assert [command[4] for command in calls] == list(REGIONS)
    assert all("--greeting-optional" in command for command in calls)


def settings(monkeypatch: pytest.MonkeyPatch, **values: str) -> None:
    """The environment, with these settings and no `.env`."""
    for name in ("NEARCALL_PUBLIC_URL", "TWILIO_ACCOUNT_SID", "TWILIO_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)


def test_dry_run_needs_neither_fly_nor_settings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(monkeypatch, PATH=str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["--dry-run"]) == 0
    assert (
        f"$ fly deploy --config fly.toml --env NEARCALL_REGIONS={SIX} {ONE_AT_A_TIME} --ha=false --yes\n"
        in capsys.readouterr().out
    )


def test_other_configuration_names_its_app_in_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """By itself fly would take the app of the fly.toml that lies beside it, for all but the deploy."""
    settings(monkeypatch, PATH=str(tmp_path))
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "fly.toml").read_text()
    (tmp_path / "eu.toml").write_text(
        text.replace('app = "nearcall"', 'app = "nearcall-eu"').replace('"iad"', '"fra"')
    )
    assert main(["--dry-run", "--config", "eu.toml", "--regions", "fra,ams"]) == 0
    flys = [line for line in capsys.readouterr().out.splitlines() if line.startswith("$ fly ")]
    assert [line for line in flys if not line.endswith(" --app nearcall-eu")] == ["$ fly auth whoami"]
    assert any(line.startswith(f"$ fly deploy --config {tmp_path / 'eu.toml'} ") for line in flys)


def eu_configuration(directory: Path, regions: str) -> Path:
    """Of an app for zone eu alone."""
    text = (ROOT / "fly.toml").read_text().replace('app = "nearcall"', 'app = "nearcall-eu"')
    text = text.replace('"iad"', '"fra"').replace(
        'PORT = "8080"', f'PORT = "8080"\n  NEARCALL_REGIONS = "{regions}"'
    )
    (directory / "eu.toml").write_text(text)
    return directory / "eu.toml"


def test_configuration_with_regions_is_rolled_out_there_and_nowhere_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Who forgets --regions does not put a zone's key and token on Machines outside it."""
    settings(monkeypatch, PATH=str(tmp_path))
    config = str(eu_configuration(tmp_path, "fra, ams"))
    assert main(["--dry-run", "--config", config]) == 0
    printed = capsys.readouterr().out
    assert "--env NEARCALL_REGIONS=fra,ams " in printed
    assert "--region fra,ams --yes" in printed
    assert "nrt" not in printed
    assert main(["--dry-run", "--config", config, "--regions", "fra,nrt"]) == 1
    assert capsys.readouterr().err == (
        "rollout: eu.toml: env.NEARCALL_REGIONS: is fra, ams, but --regions is fra,nrt: leave one of them out\n"
    )


def test_configuration_with_a_region_that_is_none_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(monkeypatch, PATH=str(tmp_path))
    assert main(["--dry-run", "--config", str(eu_configuration(tmp_path, "fra,ham"))]) == 1
    (complaint,) = capsys.readouterr().err.splitlines()
    assert complaint.startswith("rollout: env.NEARCALL_REGIONS of the configuration should be region codes with")


def test_other_configuration_that_cannot_be_read_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings(monkeypatch, PATH=str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert main(["--dry-run", "--config", "eu.toml"]) == 1
    assert capsys.readouterr().err == "rollout: eu.toml: No such file or directory.\n"


@pytest.mark.parametrize(
    ("values", "arguments", "lines"),
    [
        (
            {"NEARCALL_PUBLIC_URL": "https://h"},
            ["--yes"],
            ["rollout: TWILIO_ACCOUNT_SID is missing.", "rollout: TWILIO_AUTH_TOKEN is missing."],
        ),
        (
            {},
            ["--yes", "--skip-calls"],
            ["rollout: NEARCALL_PUBLIC_URL should be the URL that Twilio calls, such as"],
        ),
        (
            {"NEARCALL_PUBLIC_URL": "calls.example.com"},
            ["--skip-calls"],
            ["rollout: NEARCALL_PUBLIC_URL should be"],
        ),
        (
            {"NEARCALL_PUBLIC_URL": "https://calls.example.com"},
            ["--skip-calls"],
            ["rollout: NEARCALL_PUBLIC_URL still has the placeholder of the documentation."],
        ),
        ({"NEARCALL_PUBLIC_URL": "https://h"}, ["--skip-calls"], ["rollout: fly is not on the PATH: "]),
    ],
)
def test_what_is_missing_here_is_status_1_and_a_line(
    values: dict[str, str],
    arguments: list[str],
    lines: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    settings(monkeypatch, PATH=str(tmp_path), **values)
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    complaints = capsys.readouterr().err.splitlines()
    assert [complaint[: len(line)] for complaint, line in zip(complaints, lines, strict=True)] == lines


@pytest.mark.parametrize(
    ("fail", "code", "last", "kept"),
    [
        ({}, 0, "Rolled out to iad, fra.", 0),
        ({LAST + "deploy --config": "no"}, 1, "No Machine was changed; the previous version runs.", 0),
        ({LAST + "(?:scale|deploy --image)": "no"}, 1, "--ha=false --skip-release-command --yes", 1),
    ],
)
async def test_last_line_says_how_it_ended_and_the_way_back_is_kept(
    fail: dict[str, str],
    code: int,
    last: str,
    kept: int,
    bench: Bench,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    settings(
        monkeypatch,
        NEARCALL_PUBLIC_URL=bench.edge.url,
        TWILIO_ACCOUNT_SID=f"AC{'0' * 32}",
        TWILIO_AUTH_TOKEN="f" * 32,
    )
    (bench.directory / "tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(bench.directory / "tmp"))
    bench.set(fail=fail)
    nearcall = bench.plan().nearcall
    assert await asyncio.to_thread(main, ["--yes", "--regions", "iad,fra"], nearcall=nearcall) == code
    printed = capfd.readouterr()
    assert (printed.err or printed.out).splitlines()[-1].endswith(last)
    assert len(list((bench.directory / "tmp").glob("*/fly.before.toml"))) == kept


@pytest.mark.parametrize(
    "arguments",
    [["--regions", "fra,fra"], ["--regions", ""], ["--regions", "FRA"], ["--regions", "iad,ham"], ["now"]],
)
def test_wrong_command_line_is_status_2(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
