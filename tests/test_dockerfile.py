"""The Dockerfile, read and held against its rules: there is no Docker in the tests to build it with."""

import json
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
IGNORE = (ROOT / ".dockerignore").read_text(encoding="utf-8")
FLY = tomllib.loads((ROOT / "fly.toml").read_text(encoding="utf-8"))

PLATFORM = "linux/amd64"
"""Of Fly's Machines. libsql-experimental has no wheel for Linux on arm64, and its source does not build there."""

Instruction = tuple[str, str]
SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|KEY|_SID", re.ASCII)


def stages(text: str) -> list[list[Instruction]]:
    """The instructions, joined over their lines, without comments; a list for each FROM."""
    lines = "\n".join(line for line in text.splitlines() if not line.lstrip().startswith("#"))
    found: list[list[Instruction]] = [[]]  # what is above the first FROM
    for line in filter(None, lines.replace("\\\n", " ").splitlines()):
        name, _, rest = line.partition(" ")
        if name == "FROM":
            found.append([])
        found[-1].append((name, rest.strip()))
    return found


def every(text: str, name: str) -> list[str]:
    return [rest for stage in stages(text) for instruction, rest in stage if instruction == name]


def copied(text: str) -> list[str]:
    """What is copied from the repository."""
    lines = [rest for rest in every(text, "COPY") if not rest.startswith("--from=")]
    return [source for rest in lines for source in rest.split()[:-1]]


def environment(text: str) -> dict[str, str]:
    """Of the image that runs."""
    pairs = [pair for name, rest in stages(text)[-1] if name == "ENV" for pair in shlex.split(rest)]
    return dict(pair.split("=", 1) for pair in pairs)


def problems(text: str) -> list[str]:
    """What is wrong with a Dockerfile of ours."""
    return [*_base(text), *_contents(text), *_user(text), *_start(text)]


def _base(text: str) -> Iterator[str]:
    froms = [rest.split(" AS ")[0].split() for rest in every(text, "FROM")]
    bases = {each[-1] for each in froms}
    if bases != {"${PYTHON}"}:
        yield "FROM: what is built for one Python runs on that one, the ARG PYTHON"
    if not any(re.fullmatch(r"PYTHON=python:3\.1[123]-slim-\w+", rest) for rest in every(text, "ARG")):
        yield "ARG: PYTHON is a slim Python that pyproject.toml allows, by its version"
    if any(each[0] != f"--platform={PLATFORM}" for each in froms):
        yield f"FROM: not for {PLATFORM}, the only one for which every package of the lock has a wheel"


def _contents(text: str) -> Iterator[str]:
    if every(text, "ADD"):
        yield "ADD: fetches and unpacks; COPY is enough"
    for source in copied(text):
        if not (ROOT / source).exists():
            yield f"COPY: there is no {source}"
        if f"!{source}" not in IGNORE.split():
            yield f"COPY: .dockerignore leaves {source} out"
    commands = [command.strip() for rest in every(text, "RUN") for command in rest.split("&&")]
    for line in (command for command in commands if " install " in command):
        if "--require-hashes -r requirements.lock" not in line and "--no-deps --no-build-isolation ." not in line:
            yield f"RUN: {line} installs what the lock does not pin"
        if "--only-binary :all:" not in line and "-r requirements.lock" in line:
            yield "RUN: pip may build a source package, and run its code"
        if "--no-cache-dir" not in line:
            yield "RUN: pip keeps its cache in the image"
    names = [pair.split("=")[0] for rest in every(text, "ENV") + every(text, "ARG") for pair in rest.split()]
    for name in filter(SECRET.search, names):
        yield f"ENV, ARG: {name} stays in the image for everybody who has it"


def _user(text: str) -> Iterator[str]:
    last = stages(text)[-1]
    order = [name for name, _ in last]
    if "USER" not in order or order.index("USER") > order.index("CMD"):
        yield "USER: none before CMD, the server would be root"
        return
    user = dict(last)["USER"]
    made = " ".join(rest for name, rest in last if name == "RUN")
    if not re.search(rf"useradd .*--uid [1-9]\d+ .*\b{user}\b", made):
        yield f"USER: {user} has no fixed number; the files on the volume would be another's"
    data_dir = environment(text).get("NEARCALL_DATA_DIR")
    if f"chown {user}:{user} {data_dir}" not in made:
        yield f"USER: {user} does not own {data_dir}"


def _start(text: str) -> Iterator[str]:
    try:
        command = json.loads(every(text, "CMD")[-1])
    except json.JSONDecodeError:
        yield "CMD: has to be a list; a shell would keep SIGTERM to itself"
        return
    if command[:2] != ["nearcall", "serve"] or command[-2:] != ["--host", "0.0.0.0"]:
        yield "CMD: Fly's proxy comes by the private IPv4 address, which 0.0.0.0 has"
    if every(text, "ENTRYPOINT"):
        yield "ENTRYPOINT: Fly's release_command takes the place of CMD only"
    port = environment(text).get("PORT")
    if every(text, "EXPOSE") != [port] or str(FLY["http_service"]["internal_port"]) != port:
        yield "PORT: EXPOSE, PORT and fly.toml's internal_port differ"
    if environment(text).get("NEARCALL_DATA_DIR") != FLY["mounts"]["destination"]:
        yield "NEARCALL_DATA_DIR: is not where fly.toml mounts the volume"


def test_our_dockerfile_has_no_problem() -> None:
    assert problems(DOCKERFILE) == []


def test_image_gets_what_it_needs_and_nothing_else() -> None:
    """Everything is left out, `.env` and `data` too, and what is copied is let in again."""
    rules = IGNORE.split()
    assert rules[0] == "*"
    assert [rule for rule in rules[1:] if not rule.startswith("!")] == ["**/__pycache__"]
    assert sorted(rule[1:] for rule in rules if rule.startswith("!")) == sorted(copied(DOCKERFILE))


def test_image_has_the_lock_that_scripts_run_installs() -> None:
    assert "scripts/setup requirements.lock" in (ROOT / "scripts" / "run").read_text()
    assert "requirements.lock" in copied(DOCKERFILE)


BROKEN = [
    ("ARG PYTHON=python:3.11-slim-bookworm", "ARG PYTHON=python:latest", "ARG: PYTHON is a slim Python"),
    ("${PYTHON} AS build", "python:3.12-slim-bookworm AS build", "FROM: what is built for one"),
    ("--platform=linux/amd64 ${PYTHON} AS build", "${PYTHON} AS build", "FROM: not for linux/amd64"),
    ("FROM --platform=linux/amd64 ${PYTHON}\n", "FROM ${PYTHON}\n", "FROM: not for linux/amd64"),
    ("--only-binary :all: ", "", "RUN: pip may build a source package"),
    ("COPY twiml twiml", "ADD twiml twiml", "ADD: "),
    ("COPY twiml twiml", "COPY twinl twinl", "COPY: there is no twinl"),
    ("COPY twiml twiml", "COPY tests tests", "COPY: .dockerignore leaves tests out"),
    ("--require-hashes ", "", "RUN: pip --python /venv/bin/python install"),
    ("--no-deps --no-build-isolation .", ".", "RUN: pip --python /venv/bin/python install"),
    ("--no-cache-dir --no-deps", "--no-deps", "RUN: pip keeps its cache"),
    ("PORT=8080", "PORT=8080 OPENAI_API_KEY=sk", "ENV, ARG: OPENAI_API_KEY stays"),
    ("WORKDIR /src", "ARG TURSO_TOKEN", "ENV, ARG: TURSO_TOKEN stays"),
    ("USER nearcall\n", "", "USER: none before CMD"),
    ("USER nearcall", "USER root", "USER: root has no fixed number"),
    ("--uid 10001 ", "", "USER: nearcall has no fixed number"),
    ("chown nearcall:nearcall /data", "true", "USER: nearcall does not own /data"),
    ('CMD ["nearcall", "serve", "--host", "0.0.0.0"]', "CMD nearcall serve", "CMD: has to be a list"),
    ('"0.0.0.0"', '"127.0.0.1"', "CMD: Fly's proxy"),
    ("EXPOSE 8080", "EXPOSE 80", "PORT: "),
    ("CMD [", 'ENTRYPOINT ["nearcall"]\nCMD [', "ENTRYPOINT: "),
]


@pytest.mark.parametrize(("ours", "broken", "complaint"), BROKEN)
def test_broken_dockerfile_is_found_out(ours: str, broken: str, complaint: str) -> None:
    assert ours in DOCKERFILE, "the sample does not fit the Dockerfile any more"
    found = problems(DOCKERFILE.replace(ours, broken, 1))
    assert [line[: len(complaint)] for line in found if line.startswith(complaint)] == [complaint]
