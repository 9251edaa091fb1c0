"""CONTRIBUTING.md walks a newcomer through the code: what it names exists, and each walk is short."""

import importlib.util
import re
from pathlib import Path

import pytest

CONTRIBUTING = (Path(__file__).parent.parent / "CONTRIBUTING.md").read_text(encoding="utf-8")

MODULES_MAX = {"A caller's frame": 7, "An agent's delta": 9, "A turn to the replica": 12}
"""How many modules each walk may enter."""

HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
STEP = re.compile(r"^\d+\. .*(?:\n   .*)*", re.MULTILINE)
NAME = re.compile(r"`((?:app|twiml)(?:\.\w+)+)`")


def section(text: str, title: str) -> str:
    """What is below a heading, up to the next one. Raises KeyError when there is none of this title."""
    parts = HEADING.split(text)
    return dict(zip(parts[1::2], parts[2::2], strict=True))[title]


def steps(text: str) -> list[list[str]]:
    """The functions and classes that each numbered step names."""
    return [NAME.findall(step) for step in STEP.findall(text)]


def module_of(name: str) -> str:
    """The module in which a name is defined. Raises LookupError when there is no such module, or name in it."""
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:count])
        if _exists(module):
            found: object = importlib.import_module(module)
            for each in parts[count:]:
                if not hasattr(found, each):
                    raise LookupError(f"{name}: {module} has no {'.'.join(parts[count:])}")
                found = getattr(found, each)
            if not (callable(found) or isinstance(found, property)):
                raise LookupError(f"{name} is neither a function nor a class nor a property")
            return module
    raise LookupError(f"{name}: no such module")


def _exists(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:
        return False


def modules(text: str) -> set[str]:
    """The modules that a walk enters. Raises LookupError for a step that names nothing that exists."""
    walk = steps(text)
    if not walk or not all(walk):
        raise LookupError("each step of a walk names a function, such as `app.bridge.link.Link.send`")
    return {module_of(name) for names in walk for name in names}


@pytest.mark.parametrize("title", MODULES_MAX)
def test_walk_names_what_exists(title: str) -> None:
    assert modules(section(CONTRIBUTING, title))


@pytest.mark.parametrize("title", MODULES_MAX)
def test_walk_is_short_enough_to_follow(title: str) -> None:
    found = modules(section(CONTRIBUTING, title))
    assert len(found) <= MODULES_MAX[title], sorted(found)


WALK = """
### One

1. `app.bridge.link.Link.send` sends, and
   `app.bridge.link.Link.close` closes.
2. `app.wire.twilio.parse` reads.

### Two

1. `app.call.call.Call` decides.
"""


def test_walk_ends_at_the_next_heading() -> None:
    assert modules(section(WALK, "One")) == {"app.bridge.link", "app.wire.twilio"}
    assert modules(section(WALK, "Two")) == {"app.call.call"}
    with pytest.raises(KeyError):
        section(WALK, "Three")


@pytest.mark.parametrize(
    "step",
    [
        "`app.bridge.link.Link.sends` sends.",
        "`app.bridge.links.Link` sends.",
        "`app.nowhere.link.Link` sends.",
        "`app.bridge.link` sends.",
        "`app.bridge.link.NO_CODE` is a number.",
        "The link sends.",
    ],
)
def test_step_that_names_nothing_that_exists_is_found(step: str) -> None:
    with pytest.raises(LookupError):
        modules(f"1. `app.wire.twilio.parse` reads.\n2. {step}\n")
