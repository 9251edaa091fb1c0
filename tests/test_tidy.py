"""Style as a test: every complaint names file, line, what is banned, and what to do instead.

What a linter can say is the linter's to say (pyproject.toml); here are the rules of this repository alone.
"""

import ast
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
APP = sorted([*ROOT.glob("app/**/*.py"), *ROOT.glob("twiml/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))

Complaint = tuple[int, str]
"""A line and what is wrong with it."""
Rule = Callable[[str, ast.Module, str], Iterator[Complaint]]
"""Takes a path below the repository, its syntax tree and its text."""

# --- Which room may import which -------------------------------------------------------------

PURE = {"collections", "collections.abc", "dataclasses", "enum", "types", "typing"}
"""All that the call core may take from the standard library: nothing that waits, reads a clock or does I/O."""

ROOMS = {
    "app/call/": {"app.call"},
    "app/wire/": {"app.wire", "app.call"},
    "app/storage/": {"app.storage", "migrations"},
    "app/ledger/residency.py": {"app.call", "app.regions.zones"},
    "app/ledger/": {"app.ledger", "app.call", "app.storage", "migrations"},
    # What a tenant's file may say is for the settings too, which know no ledger.
    "app/tenants/document.py": {"app.validation"},
    "app/tenants/fields.py": {"app.call", "app.suggestions", "app.validation"},
    "app/tenants/opening.py": {"app.backends.table", "app.config", "app.ledger", "app.tenants"},
    "app/tenants/": {"app.tenants", "app.call", "app.ledger", "app.storage", "app.validation"},
    "app/regions/": {"app.regions", "app.suggestions", "app.validation"},
    "app/bridge/": {"app.bridge", "app.call", "app.wire", "app.regions.addresses", "app.backends.dial"},
    "app/backends/opening.py": {
        "app.backends",
        "app.config",
        "app.process",
        "app.sim",
        "app.wire",
    },
    "app/backends/sessions.py": {
        "app.backends",
        "app.bridge.session",
        "app.bridge.ticket",
        "app.call",
        "app.logs",
        "app.regions",
    },
    "app/backends/": {
        "app.backends",
        "app.bridge.link",
        "app.bridge.session",
        "app.bridge.sockets",
        "app.call",
        "app.regions",
        "app.urls",
        "app.validation",
        "app.wire",
    },
    "app/http/server.py": {"app.bridge.front", "app.bridge.handover", "app.process"},
    "app/http/machine.py": {
        "app.backends.pool",
        "app.bridge.call_registry",
        "app.ledger.ledger",
        "app.regions",
        "app.tenants.tenancy",
    },
    "app/http/health_policy.py": {
        "app.backends.pool",
        "app.bridge.front",
        "app.http",
        "app.regions",
        "twiml.replay_policy",
    },
    "app/http/": {"app.http"},
    "app/process.py": set(),
    "app/sim/": {"app.sim"},
    "twiml/": {
        "twiml",
        "app.bridge.call_registry",
        "app.bridge.expiring",
        "app.bridge.handover",
        "app.bridge.link",
        "app.bridge.ticket",
        "app.call",
        "app.regions",
    },
    "app/world/": {"app.world", "app.cli", "app.ledger", "app.regions", "app.sim", "app.storage", "app.tenants"},
    "app/cli/": {
        "app.backends",
        "app.call",
        "app.cli",
        "app.config",
        "app.ledger",
        "app.logs",
        "app.main",
        "app.process",
        "app.regions",
        "app.sim",
        "app.storage",
        "app.suggestions",
        "app.tenants",
        "app.validation",
        "app.world",
    },
    "app/urls.py": {"app.validation"},
    "app/validation.py": {"app.suggestions"},
    "app/variables.py": {"app.backends.azure", "app.regions", "app.urls", "app.validation"},
    "app/config.py": {
        "app.backends",
        "app.call",
        "app.config_file",
        "app.regions",
        "app.validation",
        "app.variables",
        "app.wire.tuning",
    },
    "app/config_file.py": {
        "app.backends",
        "app.call",
        "app.regions",
        "app.tenants.document",
        "app.tenants.fields",
        "app.validation",
    },
}
"""What each room may import of ours. main.py, cli.py and demo.py put everything together."""

OURS = ("app", "twiml", "migrations", "tests")


@cache
def nodes(tree: ast.Module) -> tuple[ast.AST, ...]:
    """All of a tree; every rule looks through it."""
    return tuple(ast.walk(tree))


def imports(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Every module a file names in an import, `from a import b` as `a` and as `a.b`."""
    for node in nodes(tree):
        match node:
            case ast.Import(names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module), names=names):
                yield from ((node.lineno, f"{module}.{alias.name}") for alias in names)


def within(name: str, allowed: set[str]) -> bool:
    """True when a name is one of these modules or inside one."""
    return any(name == each or name.startswith(f"{each}.") for each in allowed)


def rooms(path: str, tree: ast.Module, _text: str) -> Iterator[Complaint]:
    """Imports point one way: bridge, twiml, ops to regions, ledger, wire, and those to call."""
    room = next((room for room in ROOMS if path.startswith(room)), None)
    for line, name in imports(tree):
        if room is not None and name.split(".")[0] in OURS and not within(name, ROOMS[room]):
            yield line, f"{name} is not for {room}; allowed: {', '.join(sorted(ROOMS[room]))}"
        if name.split(".")[0] == "tests" and not path.startswith("tests/"):
            yield line, f"{name} is for tests; move what is shared into app/sim"


def pure_core(path: str, tree: ast.Module, _text: str) -> Iterator[Complaint]:
    """The core decides; it does not wait, look or ask."""
    if not path.startswith("app/call/"):
        return
    for line, name in imports(tree):
        if name.split(".")[0] not in OURS and not within(name, PURE):
            yield line, f"{name} is banned in app/call; take what it would give as an argument of an event"


# --- Calls that belong in one place ----------------------------------------------------------


def dotted(node: ast.expr) -> str:
    """`a.b.c` of an expression, as far as it is one."""
    match node:
        case ast.Name(id):
            return id
        case ast.Attribute(value, attr):
            return f"{dotted(value)}.{attr}"
        case _:
            return ""


def environment(path: str, tree: ast.Module, _text: str) -> Iterator[Complaint]:
    """Who reads the environment in two places is configured in two ways."""
    if path == "app/config.py" or path.startswith("tests/"):
        return
    for node in nodes(tree):
        if isinstance(node, ast.Attribute) and dotted(node) in {"os.environ", "os.environb", "os.getenv"}:
            yield node.lineno, f"{dotted(node)} is banned outside app/config.py; take a setting as an argument"
    for line, name in imports(tree):
        if name in {"os.environ", "os.environb", "os.getenv"}:
            yield line, f"{name} is banned outside app/config.py; take a setting as an argument"


def clocks(path: str, tree: ast.Module, _text: str) -> Iterator[Complaint]:
    """Time is an input: else a timer can only be tested by waiting for it."""
    if not path.startswith(("app/call/", "app/wire/")):
        return
    for node in nodes(tree):
        if isinstance(node, ast.Call) and dotted(node.func).split(".")[0] in {"time", "datetime", "asyncio"}:
            yield node.lineno, f"{dotted(node.func)}( is banned here; take `now` as an argument"


def sleeps(path: str, tree: ast.Module, _text: str) -> Iterator[Complaint]:
    """A test that sleeps is slow on a good day and fails on a bad one."""
    if not path.startswith("tests/"):
        return
    for node in nodes(tree):
        match node:
            case ast.Call(func, [ast.Constant(0)]) if dotted(func).endswith("sleep"):
                pass
            case ast.Call(func) if dotted(func).split(".")[-1] in {"sleep", "sleep_ms"}:
                yield (
                    node.lineno,
                    f"{dotted(func)}( is banned in tests; wait for an event, a message or a condition",
                )


def catch_all(_path: str, tree: ast.Module, text: str) -> Iterator[Complaint]:
    """Catch what you can name. A top-level guard says on its line why it catches all."""
    lines = text.splitlines()
    for node in nodes(tree):
        if not isinstance(node, ast.ExceptHandler):
            continue
        caught = (
            []
            if node.type is None
            else [dotted(each) for each in ast.walk(node.type) if isinstance(each, ast.expr)]
        )
        if node.type is not None and not {"Exception", "BaseException"} & set(caught):
            continue
        if isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None:
            continue  # it lets go of something and passes the exception on
        reason = lines[node.lineno - 1].partition("#")[2].replace("noqa: BLE001", "")
        if len(reason.split()) < 3:
            yield node.lineno, "catching everything without a reason on the line; name the exceptions"


RULES: list[Rule] = [rooms, pure_core, environment, clocks, sleeps, catch_all]


def complaints(rule: Rule, path: str, text: str) -> list[str]:
    """What a rule has to say about a file."""
    return [f"{path}:{line}: {why}" for line, why in rule(path, parsed(text), text)]


@cache
def parsed(text: str) -> ast.Module:
    """Every file is read by every rule and parsed once."""
    return ast.parse(text)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    found = [
        complaint
        for file in [*APP, *TESTS]
        for complaint in complaints(rule, file.relative_to(ROOT).as_posix(), file.read_text())
    ]
    assert found == []


BROKEN: list[tuple[Rule, str, str]] = [
    (rooms, "app/call/call.py", "from app.wire import twilio"),
    (rooms, "app/wire/openai.py", "import app.bridge.link"),
    (rooms, "app/sim/phone/phone.py", "from app.call import events"),
    (rooms, "app/storage/database.py", "from twiml.gate import Gate"),
    (rooms, "app/bridge/link.py", "from app.http import health"),
    (rooms, "twiml/voice.py", "from app.bridge.session import Session"),
    (rooms, "app/tenants/document.py", "from app.storage.database import Database"),
    (rooms, "app/config.py", "from app.tenants.store import stored"),
    (rooms, "app/main.py", "from tests.call.script import Script"),
    (pure_core, "app/call/call.py", "import time"),
    (pure_core, "app/call/call.py", "from asyncio import sleep"),
    (pure_core, "app/call/call.py", "import orjson"),
    (environment, "app/main.py", "import os\nregion = os.environ['FLY_REGION']"),
    (environment, "twiml/gate.py", "from os import getenv"),
    (clocks, "app/call/call.py", "now = time.monotonic()"),
    (clocks, "app/wire/audio.py", "now = time.time()"),
    (sleeps, "tests/test_x.py", "await asyncio.sleep(0.1)"),
    (sleeps, "tests/test_x.py", "time.sleep(delay)"),
    (sleeps, "tests/test_x.py", "from anyio import sleep\nsleep(1)"),
    (catch_all, "app/x.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (catch_all, "app/x.py", "try:\n    f()\nexcept:\n    pass"),
    (catch_all, "app/x.py", "try:\n    f()\nexcept (ValueError, BaseException):  # noqa: BLE001\n    pass"),
]


@pytest.mark.parametrize(("rule", "path", "text"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_rule_finds_what_it_bans(rule: Rule, path: str, text: str) -> None:
    assert complaints(rule, path, text) != []


KEPT: list[tuple[Rule, str, str]] = [
    (rooms, "app/main.py", "from app.bridge import session"),
    (rooms, "app/bridge/session.py", "from app.wire import twilio"),
    (pure_core, "app/call/call.py", "from collections.abc import Mapping"),
    (environment, "app/config.py", "import os\nenviron = os.environ"),
    (sleeps, "tests/test_x.py", "await asyncio.sleep(0)"),
    (catch_all, "app/x.py", "try:\n    f()\nexcept ValueError:\n    pass"),
    (catch_all, "app/x.py", "try:\n    f()\nexcept Exception:  # noqa: BLE001  top of the thread\n    pass"),
    (catch_all, "app/x.py", "try:\n    f()\nexcept BaseException:\n    close()\n    raise"),
]


@pytest.mark.parametrize(("rule", "path", "text"), KEPT, ids=lambda value: getattr(value, "__name__", None))
def test_rule_lets_pass_what_is_meant_to(rule: Rule, path: str, text: str) -> None:
    assert complaints(rule, path, text) == []


# --- Dead modules ----------------------------------------------------------------------------

ENTRY_POINTS = {"app.__main__"}
"""Started from outside: by the `nearcall` script of pyproject.toml."""


def module_of(file: Path) -> str:
    """The dotted name of a file."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NOT_YET: set[str] = {"app.ledger.history"}
"""Written and tested, and waiting for its user. Nothing stays here."""


def names_used(files: list[Path]) -> set[str]:
    """Every module that one of these files imports, itself left out."""
    return {
        prefix
        for file in files
        for _, name in imports(parsed(file.read_text()))
        for prefix in (name, name.rpartition(".")[0])
        if prefix != module_of(file)
    }


def test_every_module_is_used_by_another() -> None:
    """Stand-ins are there for tests as well; everything else has to be used by what runs."""
    used, used_by_tests = names_used(APP), names_used(TESTS)
    unused = [
        module_of(file)
        for file in APP
        if file.name != "__init__.py" and module_of(file) not in used | ENTRY_POINTS | NOT_YET
    ]
    dead = [module for module in unused if not (module.startswith("app.sim.") and module in used_by_tests)]
    assert dead == [], f"imported by no other module: {', '.join(dead)}; wire it up or delete it"


def test_nothing_waits_that_is_in_use() -> None:
    assert NOT_YET & names_used(APP) == set()


def test_entry_points_are_those_of_the_package() -> None:
    scripts = (ROOT / "pyproject.toml").read_text()
    assert all(f'"{entry}:' in scripts for entry in ENTRY_POINTS)


def test_rules_know_every_room() -> None:
    rooms_there = {
        f"{folder.relative_to(ROOT).as_posix()}/"
        for folder in (ROOT / "app").iterdir()
        if any(folder.glob("*.py"))
    }
    assert rooms_there <= set(ROOMS)


def test_pure_modules_are_of_the_standard_library() -> None:
    assert {name.split(".")[0] for name in PURE} <= sys.stdlib_module_names
