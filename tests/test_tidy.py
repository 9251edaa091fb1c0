"""Style as a test: every complaint names the file, the line, what is banned, and what to do instead.

The linter enforces what a linter can (pyproject.toml). Here are the rules that only this repository has.
"""

import ast
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import TypeGuard

import pytest

ROOT = Path(__file__).parent.parent
APP = sorted([*ROOT.glob("app/**/*.py"), *ROOT.glob("twiml/**/*.py")])
TESTS = sorted(ROOT.glob("tests/**/*.py"))
SCRIPTS = sorted(ROOT.glob("scripts/*lib/*.py"))

Complaint = tuple[int, str]
"""A line and what is wrong with it."""
Rule = Callable[[str, ast.Module, str], Iterator[Complaint]]
"""Takes a path below the repository, its syntax tree and its text."""

# --- Which room may import which -------------------------------------------------------------

PURE = {"base64", "bisect", "collections", "collections.abc", "dataclasses", "enum", "math", "types", "typing"}
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
    "app/bridge/": {"app.bridge", "app.call", "app.wire", "app.regions.addresses", "app.regions.routing"},
    "app/backends/opening.py": {
        "app.backends",
        "app.config",
        "app.process",
        "app.sim",
        "app.wire",
    },
    "app/backends/sessions.py": {
        "app.backends",
        "app.bridge.call_memory",
        "app.bridge.epoch_watch",
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
    "app/http/last_drain.py": {"app.storage"},
    "app/http/server.py": {"app.bridge.front", "app.bridge.handover", "app.process"},
    "app/http/machine.py": {
        "app.backends.pool",
        "app.bridge.call_registry",
        "app.bridge.lag",
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
    "app/world/serve.py": {"app.bridge.twilio_rest", "app.cli", "app.config", "app.main"},
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
    if path == "app/config.py" or path.startswith(("tests/", "scripts/")):
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


WAITS_FOR_A_MESSAGE = {"next", "read", "readline", "receive", "recv"}


def spins(path: str, tree: ast.Module, _text: str) -> Iterator[Complaint]:
    """Who looks again and again without a pause takes the processor from whom it waits for."""
    if not path.startswith("tests/"):
        return
    for node in nodes(tree):
        if not (isinstance(node, ast.While) and isinstance(node.body[-1], ast.Pass | ast.Expr)):
            continue
        asked = {
            dotted(each.value.func).rpartition(".")[2]
            for each in ast.walk(node.test)
            if isinstance(each, ast.Await) and isinstance(each.value, ast.Call)
        }
        nothing = isinstance(node.body[0], ast.Pass) and not asked & WAITS_FOR_A_MESSAGE
        if nothing or ast.unparse(node.body[-1]) == "await asyncio.sleep(0)":
            yield node.lineno, "waits without a pause; use tests/waiting.py"


def catches_all(node: ast.AST) -> TypeGuard[ast.ExceptHandler]:
    """True for `except:`, `except Exception:` and `except BaseException:`, alone or among others."""
    if not isinstance(node, ast.ExceptHandler):
        return False
    caught = (
        [] if node.type is None else [dotted(each) for each in ast.walk(node.type) if isinstance(each, ast.expr)]
    )
    return node.type is None or not {"Exception", "BaseException"}.isdisjoint(caught)


def swallows(handler: ast.ExceptHandler) -> bool:
    """True for a handler that neither raises at its end nor gives the exception to the future of one who waits."""
    match handler.body[-1]:
        case ast.Raise():
            return False
        case ast.Expr(ast.Call(ast.Attribute(attr="set_exception"), [ast.Name(id=given)])):
            return given != handler.name
        case _:
            return True


def catch_all(_path: str, tree: ast.Module, text: str) -> Iterator[Complaint]:
    """Catch what you can name. A top-level guard says on its line why it catches all."""
    lines = text.splitlines()
    for node in nodes(tree):
        if not catches_all(node):
            continue
        if isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None:
            continue  # it lets go of something and passes the exception on
        reason = lines[node.lineno - 1].partition("#")[2].replace("noqa: BLE001", "")
        if len(reason.split()) < 3:
            yield node.lineno, "catching everything without a reason on the line; name the exceptions"


# --- Shape -----------------------------------------------------------------------------------

PUBLIC_METHODS_MAX = 16
"""What one class may offer, not counting properties. Of 400 classes ten offer more than nine methods."""

PUBLIC_METHODS_BY: Mapping[str, int] = {
    "app/bridge/call_registry.py": 18,  # what webhooks, streams and operators ask about the calls
    "app/call/conversation.py": 19,  # what can happen in it, and what a new session is told of it
    "app/call/replies.py": 21,  # a method for each thing that can happen to a response
    "app/sim/fly/fly.py": 17,  # what a test does to the edge
    "app/sim/fly/link.py": 17,  # what a test does to a connection
    "app/sim/phone/phone.py": 23,  # what a caller does, and what a test asks about the call
}
"""Modules with a class whose work is to offer many small things, with a limit of their own."""

MODULES_IMPORTED_MAX = 15
"""How many of our modules one may import: with more, nobody can say what it depends on."""

MODULES_IMPORTED_BY: Mapping[str, int] = {
    "app/main.py": 29,  # builds every part of the server and connects them
    "app/world/world.py": 16,  # puts the machines, the edge, Twilio and the backends of a world together
    "app/call/call.py": 19,  # joins the parts of a call
    "app/cli/main.py": 20,  # registers each group of commands
}
"""Modules whose only work is to put others together, with a limit of their own."""


def is_property(function: ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    """True for a getter, a setter and a cached property."""
    return any(dotted(each).endswith(("property", ".setter")) for each in function.decorator_list)


def public_methods(path: str, tree: ast.Module, _text: str) -> Iterator[Complaint]:
    """A class with many methods does several things."""
    if path.startswith("tests/"):
        return
    for node in nodes(tree):
        if isinstance(node, ast.ClassDef):
            functions = [each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef)]
            public = [each for each in functions if not each.name.startswith("_") and not is_property(each)]
            most = PUBLIC_METHODS_BY.get(path, PUBLIC_METHODS_MAX)
            if len(public) > most:
                yield node.lineno, f"{node.name} has {len(public)} public methods; split it, {most} are allowed"


def module_named(name: str) -> str:
    """The module that an imported name is or is in."""
    return name if (ROOT / name.replace(".", "/")).with_suffix(".py").exists() else name.rpartition(".")[0]


def modules_imported(path: str, tree: ast.Module, _text: str) -> Iterator[Complaint]:
    """A module that imports many others knows too much."""
    if path.startswith("tests/"):
        return
    ours = {module_named(name) for _, name in imports(tree) if name.split(".")[0] in OURS}
    limit = MODULES_IMPORTED_BY.get(path, MODULES_IMPORTED_MAX)
    if len(ours) > limit:
        yield 1, f"imports {len(ours)} of our modules, and {limit} are allowed; split it, or take what it needs"


# --- Private names ---------------------------------------------------------------------------

PRIVATE = re.compile(r"_(?!_)\w+")

DOCUMENTED = {"_asdict", "_exit", "_field_defaults", "_fields", "_make", "_replace"}
"""The standard library's public names that begin with an underscore: of named tuples, and os._exit."""

VENDORS_OWN = {
    # The checks of an upgrade that picows' server makes; it exports them under no other name. Pinned exactly.
    ("app/bridge/sockets.py", "_validate_upgrade_request"),
    # azure-identity opens its own connections, and aiohttp gives them this context, which it makes when imported.
    ("tests/bridge/azure.py", "_SSL_CONTEXT_VERIFIED"),
    # Frames as a peer of picows writes them, and made by picows.
    ("tests/bridge/test_link.py", "_make_test_ws_frame"),
    # The SDK's own description of its types; it publishes no schema.
    ("tests/voicelive_types.py", "_attr_to_rest_field"),
    ("tests/voicelive_types.py", "_deserialize"),
    ("tests/voicelive_types.py", "_rest_name"),
    ("tests/voicelive_types.py", "_unions"),
}
"""Private names of pinned libraries, which have no public way to the same thing."""


def own_names(tree: ast.Module) -> set[str]:
    """All that a file defines itself: functions, classes, variables, and attributes of `self` and `cls`."""
    found: set[str] = set()
    for node in nodes(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                found.add(name)
            case ast.Attribute(value=ast.Name(id="self" | "cls"), attr=name, ctx=ast.Store()):
                found.add(name)
            case ast.Name(id=name, ctx=ast.Store()):
                found.add(name)
    return found


def private_access(path: str, tree: ast.Module, _text: str) -> Iterator[Complaint]:
    """What begins with an underscore is its module's own: others use what is public."""
    own = own_names(tree) | DOCUMENTED | {name for file, name in VENDORS_OWN if file == path}
    why = "is private to another module; use what is public there, or give it a public name"
    for node in nodes(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name) if PRIVATE.fullmatch(name) and name not in own:
                yield node.lineno, f"{ast.unparse(node)} {why}"
            case ast.ImportFrom(module=module, names=names):
                for each in names:
                    if PRIVATE.fullmatch(each.name) and each.name not in own:
                        yield node.lineno, f"{module}.{each.name} {why}"
            # By its name: getattr(x, "_y"), monkeypatch.setattr(x, "_y", ...), monkeypatch.setattr("m._y", ...).
            case ast.Call(func, [ast.Constant(str(text)), *_] | [_, ast.Constant(str(text)), *_]):
                name = text.rpartition(".")[2]
                if dotted(func).endswith("attr") and PRIVATE.fullmatch(name) and name not in own:
                    yield node.lineno, f"{text!r} {why}"


# --- Logs ------------------------------------------------------------------------------------

EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)+")
LEVELS = {"debug", "info", "warning", "error", "exception", "critical", "log"}


def log_events(path: str, tree: ast.Module, _text: str) -> Iterator[Complaint]:
    """Log lines are searched by the event's name: it is constant, and all details are fields."""
    if not path.startswith(("app/", "twiml/")) or path == "app/logs.py":  # app/logs.py passes on what others log
        return
    for node in nodes(tree):
        match node:
            case ast.Call(func=ast.Attribute(value=logger, attr=level), args=arguments) if level in LEVELS:
                if not dotted(logger).lower().endswith(("log", "logger", "logging")):
                    continue
                event = arguments[1 if level == "log" else 0] if arguments[level == "log" :] else None
                if len(arguments) > 1 + (level == "log"):
                    yield node.lineno, "the event's details are positional arguments; give them as fields"
                elif not (
                    isinstance(event, ast.Constant)
                    and isinstance(event.value, str)
                    and EVENT.fullmatch(event.value)
                ):
                    what = "nothing" if event is None else ast.unparse(event)
                    yield node.lineno, f"{what} is no event's name; log a constant such as 'backend_recovered'"


def room_of(path: str) -> str:
    """The folder that a module is in, and for one that is in app/ itself the module."""
    parts = path.removesuffix(".py").split("/")
    return parts[0] if parts[0] != "app" else parts[1]


def loggers(path: str, tree: ast.Module, _text: str) -> Iterator[Complaint]:
    """A logger is named for its room, so that an operator can turn one room up. `nearcall.call` is each call's."""
    if path.startswith("tests/"):
        return
    for node in nodes(tree):
        match node:
            case ast.Call(func, [name, *_]) if dotted(func).endswith("CallLog"):
                if not (isinstance(name, ast.Constant) and name.value == "nearcall.call"):
                    yield node.lineno, f"{ast.unparse(name)} is no call's logger; its name is 'nearcall.call'"
            case ast.Assign(value=ast.Call(func, arguments)) | ast.AnnAssign(value=ast.Call(func, arguments)):
                wanted = f"nearcall.{room_of(path)}"
                named = [each.value for each in arguments if isinstance(each, ast.Constant)]
                # Functions get at the loggers of others to set them up; what a module logs to is its constant.
                if dotted(func).endswith("getLogger") and node in tree.body and named != [wanted]:
                    yield node.lineno, f"{ast.unparse(node.value or node)} names another room; use {wanted!r}"


# --- Names of tests --------------------------------------------------------------------------

TEST_NAME_MAX = 70


def names_of_tests(path: str, tree: ast.Module, _text: str) -> Iterator[Complaint]:
    """A test's name is read in a list of names."""
    if not path.startswith("tests/"):
        return
    for node in nodes(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                if name.startswith("test_") and len(name) > TEST_NAME_MAX:
                    yield node.lineno, f"{name} has {len(name)} characters, and {TEST_NAME_MAX} are allowed"


RULES: list[Rule] = [
    rooms,
    pure_core,
    environment,
    clocks,
    sleeps,
    spins,
    catch_all,
    public_methods,
    modules_imported,
    private_access,
    log_events,
    loggers,
    names_of_tests,
]


def complaints(rule: Rule, path: str, text: str) -> list[str]:
    """What a rule has to say about a file."""
    return [f"{path}:{line}: {why}" for line, why in rule(path, parsed(text), text)]


@cache
def parsed(text: str) -> ast.Module:
    """Every file is read by every rule and parsed once."""
    return ast.parse(text)


def all_complaints(rule: Rule) -> dict[str, list[str]]:
    """The complaints of a rule by file."""
    paths = {file.relative_to(ROOT).as_posix(): file for file in [*APP, *SCRIPTS, *TESTS]}
    found = {path: complaints(rule, path, file.read_text()) for path, file in paths.items()}
    return {path: each for path, each in found.items() if each}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_every_file_keeps_the_rule(rule: Rule) -> None:
    assert [line for lines in all_complaints(rule).values() for line in lines] == []


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
    (spins, "tests/test_x.py", "while not path.exists():\n    pass"),
    (spins, "tests/test_x.py", "while (await client.get('/healthz')).json()['ledger_depth']:\n    pass"),
    (spins, "tests/test_x.py", "while True:\n    if done():\n        break\n    await asyncio.sleep(0)"),
    (catch_all, "app/x.py", "try:\n    f()\nexcept Exception:\n    pass"),
    (catch_all, "app/x.py", "try:\n    f()\nexcept:\n    pass"),
    (catch_all, "app/x.py", "try:\n    f()\nexcept (ValueError, BaseException):  # noqa: BLE001\n    pass"),
    (
        public_methods,
        "app/x.py",
        "class Everything:\n" + "".join(f"    def do_{n}(self): ...\n" for n in range(17)),
    ),
    (modules_imported, "app/x.py", "".join(f"from app.room_{n} import name\n" for n in range(16))),
    (modules_imported, "app/x.py", "".join(f"import app.room_{n}.part\n" for n in range(16))),
    (private_access, "tests/test_x.py", "assert call.session._timer is None"),
    (private_access, "tests/test_x.py", "assert self.session._timer is None"),
    (private_access, "tests/test_x.py", "from app.ledger.queries import _RECENT"),
    (
        private_access,
        "tests/test_x.py",
        "class Odd(Phone):\n    def _once(self):\n        pass\n    x = link._code",
    ),
    (private_access, "tests/test_x.py", "monkeypatch.setattr(module, '_now_ms', now)"),
    (private_access, "tests/test_x.py", "monkeypatch.setattr('app.tenants.directory._newer', newer)"),
    (private_access, "app/x.py", "left = getattr(session, '_tasks')"),
    (private_access, "app/x.py", "from picows.picows import _validate_upgrade_request"),
    (log_events, "app/x.py", "log.info('backend recovered')"),
    (log_events, "app/x.py", "log.info(f'backend_{name}_recovered')"),
    (log_events, "app/x.py", "self._log.warning(record.kind, zone=zone)"),
    (log_events, "twiml/x.py", "_log.log(level, 'replica stopped')"),
    (log_events, "twiml/x.py", "log.error('backend_lost after %d ms', waited)"),
    (log_events, "twiml/x.py", "logging.error('Lost')"),
    (log_events, "twiml/x.py", "log.error()"),
    (loggers, "app/ledger/x.py", "_log = logging.getLogger(__name__)"),
    (loggers, "app/ledger/x.py", "_LOG: Final = logging.getLogger('nearcall.storage')"),
    (loggers, "twiml/x.py", "log = logging.getLogger('nearcall')"),
    (loggers, "app/main.py", "log = CallLog('call', sid, tenant, region)"),
    (names_of_tests, "tests/test_x.py", f"async def test_{'a' * 66}():\n    pass"),
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
    (spins, "tests/test_x.py", "while not path.exists():\n    await a_moment()"),
    (spins, "tests/test_x.py", "while (event := await self.next())['type'] != kind:\n    pass"),
    (spins, "tests/test_x.py", "for _ in range(5):\n    await asyncio.sleep(0)"),
    (catch_all, "app/x.py", "try:\n    f()\nexcept ValueError:\n    pass"),
    (catch_all, "app/x.py", "try:\n    f()\nexcept Exception:  # noqa: BLE001  top of the thread\n    pass"),
    (catch_all, "app/x.py", "try:\n    f()\nexcept BaseException:\n    close()\n    raise"),
    (
        public_methods,
        "app/x.py",
        "class Enough:\n"
        + "".join(f"    def do_{n}(self): ...\n    def _do_{n}(self): ...\n" for n in range(16))
        + "    @property\n    def done(self): ...\n    @done.setter\n    def done(self, value): ...\n",
    ),
    (modules_imported, "app/x.py", "".join(f"from app.room import name_{n}\n" for n in range(16))),
    (modules_imported, "app/x.py", "".join(f"import vendor_{n}\n" for n in range(16))),
    (
        private_access,
        "app/x.py",
        "def _of(self): ...\nclass A:\n    def __init__(self):\n        self._x = _of(self)",
    ),
    (
        private_access,
        "app/x.py",
        "class A:\n    def __eq__(self, other):\n        return self._x == other.__class__",
    ),
    (
        private_access,
        "app/x.py",
        "class A:\n    def __init__(self): self._x = 1\n    def of(self, a): return a._x",
    ),
    (private_access, "app/x.py", "os._exit(1)\nurl._replace(path='')\nlocale.gettext._('x')"),
    (private_access, "app/bridge/sockets.py", "from picows.picows import _validate_upgrade_request"),
    (log_events, "app/x.py", "log.info('backend_recovered', extra={'backend': name})"),
    (log_events, "app/x.py", "self._log.log(level, 'replica_stopped', exc_info=error)"),
    (log_events, "app/x.py", "math.log(2)\nconsole.log('Hello')\nparser.error('no such file')"),
    (loggers, "app/ledger/x.py", "_log = logging.getLogger('nearcall.ledger')"),
    (loggers, "twiml/x.py", "log = logging.getLogger('nearcall.twiml')"),
    (loggers, "app/x.py", "def quiet():\n    logger = logging.getLogger('azure')"),
    (loggers, "app/main.py", "log = CallLog('nearcall.call', sid, tenant, region)"),
    (names_of_tests, "tests/test_x.py", f"def test_{'a' * 65}():\n    pass\ndef {'b' * 80}():\n    pass"),
]


@pytest.mark.parametrize(("rule", "path", "text"), KEPT, ids=lambda value: getattr(value, "__name__", None))
def test_rule_lets_pass_what_is_meant_to(rule: Rule, path: str, text: str) -> None:
    assert complaints(rule, path, text) == []


# --- Catch-alls in all -----------------------------------------------------------------------

SWALLOWED_MAX = 8
SWALLOWED_MAX_BY: Mapping[str, int] = {"app/bridge/session.py": 2}
"""How many catch-alls do not raise, in everything that runs and in one module. Lower these, never raise them."""


def test_few_catch_alls_swallow_what_they_catch() -> None:
    found = [
        (file.relative_to(ROOT).as_posix(), node.lineno)
        for file in APP
        for node in nodes(parsed(file.read_text()))
        if catches_all(node) and swallows(node)
    ]
    assert len(found) <= SWALLOWED_MAX, found
    for path, limit in SWALLOWED_MAX_BY.items():
        assert len([each for each, _ in found if each == path]) <= limit, path


@pytest.mark.parametrize(
    ("handler", "swallowed"),
    [
        ("except Exception:\n    log.exception('call_failed')", True),
        ("except:\n    pass", True),
        ("except (OSError, BaseException) as error:\n    if fatal(error):\n        raise\n    retry()", True),
        ("except BaseException:\n    close()\n    raise", False),
        ("except Exception as error:\n    raise LedgerError(path) from error", False),
        ("except BaseException as error:\n    answer.set_exception(error)", False),
        ("except BaseException as error:\n    answer.set_exception(error)\n    return", True),
        ("except BaseException as error:\n    answer.set_exception(other)", True),
        ("except OSError:\n    pass", False),
    ],
)
def test_catch_all_that_swallows_is_counted(handler: str, swallowed: bool) -> None:
    tree = ast.parse(f"try:\n    f()\n{handler}")
    assert any(catches_all(node) and swallows(node) for node in nodes(tree)) is swallowed


# --- Dead modules ----------------------------------------------------------------------------

ENTRY_POINTS = {"app.__main__"}
"""Started from outside: by the `nearcall` script of pyproject.toml."""

PROCESSES = {"app.world.serve"}
"""Started by us as processes of their own."""


def module_of(file: Path) -> str:
    """The dotted name of a file."""
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


NOT_YET: set[str] = set()
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
        if file.name != "__init__.py" and module_of(file) not in used | ENTRY_POINTS | PROCESSES | NOT_YET
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
