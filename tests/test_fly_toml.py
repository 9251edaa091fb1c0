"""fly.toml against what Fly.io makes of it, and each rule against a file that breaks it."""

import random
import tomllib
from pathlib import Path

import pytest

from app.http.health_policy import assess
from app.regions.routing import Here
from app.sim.fly.edge import Machine, RoutingPreference, choose
from app.variables import CALLS_MAX
from scripts.rolloutlib.fly_schema import seconds
from scripts.rolloutlib.fly_toml import REGIONS, problems, unknown_keys

ROOT = Path(__file__).parent.parent
OURS = (ROOT / "fly.toml").read_text(encoding="utf-8")


def test_our_file_has_no_problem() -> None:
    assert problems(OURS) == []


def test_regions_are_the_six() -> None:
    assert REGIONS == ("nrt", "fra", "gru", "syd", "iad", "lax")


BROKEN = [
    # What flyctl would ignore or misread
    ("[[http_service.checks]]", "[http_service.checks]", "write [[http_service.checks]] with two brackets"),
    ("[[restart]]", "[restart]", "write [[restart]] with two brackets"),
    ("[[vm]]", "[vm]", "write [[vm]] with two brackets"),
    ("[deploy]", "[[deploy]]", "deploy: should be a table, written [deploy]"),
    ('kill_timeout = "300s"', "kill_timeout = 300", "kill_timeout: should be a duration with its unit"),
    ('interval = "10s"', "interval = 10000", "http_service.checks.interval: should be a duration with its unit"),
    ('wait_timeout = "10m"', 'wait_timeout = "600"', "deploy.wait_timeout: should be a duration with its unit"),
    ('timeout = "5s"', 'timeout = "5 s"', "http_service.checks.timeout: should be a duration with its unit"),
    ('PORT = "8080"', "PORT = 8080", "env.PORT: should be a text in quotes"),
    ("hard_limit = 300", 'hard_limit = "300"', "concurrency.hard_limit: should be a whole number"),
    ("force_https = true", 'force_https = "true"', "http_service.force_https: should be true or false"),
    ('app = "nearcall"', "app = nearcall", "not TOML: "),
    # Where
    ('app = "nearcall"', "", "app: is missing"),
    ('primary_region = "iad"', 'primary_region = "ams"', "primary_region: should be one of nrt, fra"),
    ('primary_region = "iad"', "", "primary_region: should be one of"),
    (
        'PORT = "8080"',
        'PORT = "8080"\nNEARCALL_REGIONS = "iad,fra"',
        "env.NEARCALL_REGIONS: is iad,fra, but --regions is nrt,fra,gru,syd,iad,lax: leave one of them out",
    ),
    # How it is stopped and replaced
    ('"SIGTERM"', '"SIGINT"', 'kill_signal: should be "SIGTERM"'),
    ('kill_signal = "SIGTERM"', "", 'kill_signal: should be "SIGTERM"'),
    ('kill_timeout = "300s"', 'kill_timeout = "301s"', "kill_timeout: Fly allows at most 300s"),
    ('kill_timeout = "300s"', 'kill_timeout = "5s"', "kill_timeout: should be 300s or more"),
    ('kill_timeout = "300s"', "", "kill_timeout: should be 300s or more"),
    ('PORT = "8080"', 'PORT = "8080"\nNEARCALL_DRAIN_S = "290"', "kill_timeout: should be 310s or more"),
    ('PORT = "8080"', 'PORT = "8080"\nNEARCALL_DRAIN_S = "5m"', "env.NEARCALL_DRAIN_S: should be a number"),
    ('"rolling"', '"bluegreen"', "deploy.strategy: bluegreen does not go with a volume"),
    ('"rolling"', '"canary"', "deploy.strategy: canary does not go with a volume"),
    ('"rolling"', '"immediate"', "deploy.strategy: immediate stops all regions"),
    ('"rolling"', '"roling"', "deploy.strategy: flyctl knows no roling"),
    ("max_unavailable = 1", "max_unavailable = 0.33", "deploy.max_unavailable: should be 1"),
    ("max_unavailable = 1", "", "deploy.max_unavailable: should be 1"),
    ('wait_timeout = "10m"', 'wait_timeout = "6m"', "deploy.wait_timeout: should be above 360s"),
    ('wait_timeout = "10m"', "", "deploy.wait_timeout: should be above 360s"),
    ('"nearcall migrate"', '"nearcall migrat"', "deploy.release_command: should be"),
    ('release_command = "nearcall migrate"', "", "deploy.release_command: should be"),
    # Environment
    ('PORT = "8080"', 'PORT = "8080"\nREGION = "$FLY_REGION"', "env.REGION: Fly expands nothing"),
    ('PORT = "8080"', 'PORT = "8080"\nFLY_REGION = "fra"', "env.FLY_REGION: Fly sets it itself"),
    ('PORT = "8080"', 'PORT = "8080"\nPRIMARY_REGION = "fra"', "env.PRIMARY_REGION: Fly sets it itself"),
    ('PORT = "8080"', 'PORT = "8080"\nTURSO_URL = "libsql://x"', "env.TURSO_URL: is readable by everybody"),
    (
        'PORT = "8080"',
        'PORT = "8080"\nTWILIO_AUTH_TOKEN_IE1 = "x"',
        "env.TWILIO_AUTH_TOKEN_IE1: is readable by",
    ),
    # The service
    ("internal_port = 8080", "internal_port = 8081", "http_service.internal_port: should be 8080"),
    ('PORT = "8080"', 'PORT = "9000"', "http_service.internal_port: should be 9000"),
    ("internal_port = 8080", "", "http_service.internal_port: should be 8080"),
    ("force_https = true", "force_https = false", "http_service.force_https: should be true"),
    (
        'auto_stop_machines = "off"',
        'auto_stop_machines = "stop"',
        'http_service.auto_stop_machines: should be "off"',
    ),
    ('auto_stop_machines = "off"', "", 'http_service.auto_stop_machines: should be "off"'),
    (
        "force_https = true",
        "force_https = true\nmin_machines_running = 6",
        "http_service.min_machines_running: does",
    ),
    ("[[vm]]", "[processes]\nweb = 'x'\n[[vm]]", "http_service.processes: is required"),
    (
        "[[vm]]",
        "[[services]]\n[[services.ports]]\nport = 443\n[[vm]]",
        "services.ports: http_service has 80 and 443",
    ),
    ('"connections"', '"connection"', 'http_service.concurrency.type: should be "connections"'),
    ("hard_limit = 300", "hard_limit = 249", "concurrency.hard_limit: should be 250 or more, for 200 calls"),
    ("hard_limit = 300", "", "concurrency.hard_limit: should be 250 or more"),
    ("hard_limit = 300", f"hard_limit = {CALLS_MAX}", "concurrency.hard_limit: should be 250 or more"),
    ('PORT = "8080"', 'PORT = "8080"\nNEARCALL_CALLS_MAX = "241"', "hard_limit: should be 302 or more, for 241"),
    ('PORT = "8080"', 'PORT = "8080"\nNEARCALL_CALLS_MAX = "0"', "env.NEARCALL_CALLS_MAX: should be a number"),
    ("soft_limit = 180", "soft_limit = 20", "concurrency.soft_limit: should be from 100 to the hard limit"),
    ("soft_limit = 180", "soft_limit = 301", "concurrency.soft_limit: should be from 100 to the hard limit"),
    ("soft_limit = 180", "", "concurrency.soft_limit: should be from 100 to the hard limit"),
    ('path = "/healthz"', 'path = "/livez"', "http_service.checks: no check requests /healthz"),
    ('interval = "10s"', 'interval = "61s"', "http_service.checks.interval: Fly takes 1s to 60s"),
    ('interval = "10s"', 'interval = "500ms"', "http_service.checks.interval: Fly takes 1s to 60s"),
    ('grace_period = "15s"', 'grace_period = "2m"', "http_service.checks.grace_period: Fly takes 1s to 60s"),
    ('grace_period = "15s"', "", "http_service.checks.grace_period: is missing"),
    ('timeout = "5s"', 'timeout = "2s"', "http_service.checks.timeout: below 5s"),
    (
        "[[vm]]",
        "[checks.x]\ninterval = '1h'\ntimeout = '5s'\ngrace_period = '9s'\n[[vm]]",
        "checks.x.interval: Fly takes 1s to 60s",
    ),
    # The Machine and its volume
    ('policy = "always"', 'policy = "on-failure"', 'restart.policy: should be "always"'),
    ('[[restart]]\n  policy = "always"', "", 'restart.policy: should be "always"'),
    ('"performance-1x"', '"shared-cpu-1x"', "vm.size: should be a performance size"),
    ('size = "performance-1x"', "", "vm.size: should be a performance size"),
    ('NEARCALL_DATA_DIR = "/data"', "", "env.NEARCALL_DATA_DIR: should be on the volume"),
    ('NEARCALL_DATA_DIR = "/data"', 'NEARCALL_DATA_DIR = "/database"', "env.NEARCALL_DATA_DIR: should be on the"),
    ('destination = "/data"', 'destination = "/other"', "env.NEARCALL_DATA_DIR: should be on the volume"),
    ('initial_size = "1gb"', "", "mounts: source and initial_size should both be set"),
    ('source = "nearcall_data"', "", "mounts: source and initial_size should both be set"),
    ("snapshot_retention = 5", "snapshot_retention = 61", "mounts.snapshot_retention: Fly takes 1 to 60"),
    ("size_threshold = 80", "size_threshold = 100", "mounts.auto_extend_size_threshold: Fly takes 50 to 99"),
]


@pytest.mark.parametrize(("ours", "broken", "complaint"), BROKEN)
def test_broken_file_is_one_line_that_names_the_key(ours: str, broken: str, complaint: str) -> None:
    assert OURS.count(ours) >= 1, "the sample does not fit fly.toml any more"
    (found,) = problems(OURS.replace(ours, broken, 1))
    assert complaint in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("ours", "misspelt", "told"),
    [
        (
            "kill_timeout =",
            "kill_time_out =",
            "kill_time_out: is not a key that is known of flyctl, which ignores",
        ),
        ("[http_service]\n", "[http_services]\n", "http_services: is not a key that is known of flyctl"),
        ("grace_period =", "grace =", "http_service.checks.grace: is not a key that is known of flyctl"),
        ('app = "nearcall"', 'app = "nearcall"\nkey_of_2027 = 1', "key_of_2027: is not a key that is known of"),
    ],
)
def test_unknown_key_is_told_and_does_not_refuse_a_file_by_itself(ours: str, misspelt: str, told: str) -> None:
    assert unknown_keys(OURS) == []
    (line,) = unknown_keys(OURS.replace(ours, misspelt, 1))
    assert line.startswith(told)
    assert not any(
        each.startswith(told.partition(":")[0] + ":") for each in problems(OURS.replace(ours, misspelt))
    )


def test_misspelt_key_is_told_with_the_one_that_was_meant() -> None:
    (line,) = unknown_keys(OURS.replace("kill_timeout =", "kill_time_out ="))
    assert "kill_timeout" in line


def test_keys_that_fly_documents_are_known() -> None:
    more = """
[build]
builder = "paketobuildpacks/builder:base"
buildpacks = ["gcr.io/paketo-buildpacks/python"]
compression = "zstd"
compression_level = 3
[build.settings]
pythonbase = "3.11-slim"
[experimental]
auto_rollback = true
lazy_load_images = true
"""
    text = OURS.replace('size = "performance-1x"', 'size = "performance-1x"\nmax_memory_mb = 4096') + more
    assert (unknown_keys(text), problems(text)) == ([], [])


def test_limits_follow_the_calls_that_a_machine_takes() -> None:
    more = OURS.replace('PORT = "8080"', 'PORT = "8080"\nNEARCALL_CALLS_MAX = "400"')
    assert problems(more.replace("hard_limit = 300", "hard_limit = 500").replace("= 180", "= 360")) == []


@pytest.mark.parametrize("callbacks", [0, CALLS_MAX // 4 - 1])
def test_full_machine_still_gets_requests_from_the_edge(callbacks: int) -> None:
    """It has to answer the callbacks of its own calls, and to send new calls on itself."""
    config = tomllib.loads(OURS)
    calls = int(config["env"].get("NEARCALL_CALLS_MAX", CALLS_MAX))
    limits = config["http_service"]["concurrency"]
    full = Machine(
        "m", "fra", 8080, soft_limit=limits["soft_limit"], hard_limit=limits["hard_limit"], checks_ok=True
    )
    here = Here("fra", ("fra",), frozenset({"global"}), full=True)
    assert assess(here, up_s=3_600.0, troubles=()) == (None, "full")  # not "down": Fly's check passes
    busy = {"m": calls + callbacks}
    chosen = choose([full], busy, "fra", lambda _a, _b: 0.0, RoutingPreference(), random.Random(0))
    assert chosen is full


def test_empty_file_is_told_everything_at_once() -> None:
    assert len(problems("")) > len(REGIONS)


def test_primary_region_is_one_of_those_that_are_rolled_out_to() -> None:
    assert problems(OURS, ("iad", "ams")) == []
    (found,) = problems(OURS, ("ams", "fra"))
    assert found.startswith("primary_region: should be one of ams, fra")


def test_data_directory_may_be_below_the_volume() -> None:
    assert problems(OURS.replace('NEARCALL_DATA_DIR = "/data"', 'NEARCALL_DATA_DIR = "/data/nearcall"')) == []


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("15s", 15),
        ("1m30s", 90),
        ("500ms", 0.5),
        ("1.5h", 5_400),
        ("", None),
        ("15", None),
        ("s", None),
        (15, None),
    ],
)
def test_duration_is_numbers_with_units(text: object, value: float | None) -> None:
    assert seconds(text) == value
