"""A `fly` for tests: writes down what it was told, keeps Machines in a file, and fails where it was told to.

Run as `fly` from the PATH (outside.py). In the state file, `fail` has patterns of all that was told
so far, a command a line, and what is said when one of them fits; a command with a word of `hang` never ends. What
is printed, and its JSON's spelling, is flyctl's: internal/command/{secrets,machine,apps,config}, fly-go's types.
"""

import json
import math
import os
import re
import signal
import sys
from binascii import b2a_base64

TYPE_CHECKING = False  # typing and pathlib take longer to import than all the rest, and this runs a thousand times
if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any


def machine(
    region: str,
    version: str,
    group: str = "app",
    state: str = "started",
    *,
    image: str = "",
    file: str | None = None,
) -> "dict[str, Any]":
    """A Machine as `fly machine list --json` has it, as far as anybody reads it. `file`: nearcall.toml in it."""
    config: dict[str, Any] = {"image": image, "metadata": {"fly_process_group": group}}
    if file is not None:
        raw_value = b2a_base64(file.encode(), newline=False).decode()
        config["files"] = [{"guest_path": "/etc/nearcall.toml", "raw_value": raw_value}]
    return {
        "id": f"{group}-{region}",
        "region": region,
        "state": state,
        "instance_id": version,
        "config": config,
    }


def main(state_file: "str | Path", arguments: list[str]) -> int:
    """Obey; the exit status."""
    state = json.loads(read(state_file))
    state["told"].append(arguments)
    told = "\n".join(" ".join(each) for each in state["told"])
    failure = next((text for pattern, text in state["fail"].items() if re.search(pattern, told)), None)
    if failure is None or failure in state["halfway"]:
        obey(state, arguments)
    whole = f"{state_file}.{os.getpid()}"
    with open(whole, "w") as file:  # noqa: PTH123  see above
        file.write(json.dumps(state))
    os.rename(whole, state_file)  # noqa: PTH104  who reads it meanwhile sees it before or after
    if set(arguments) & set(state["hang"]):
        signal.pause()
    if failure is not None:
        print(f"Error: {failure}", file=sys.stderr)
        return 1
    return 0


def read(path: "str | Path") -> str:
    with open(path) as file:  # noqa: PTH123  see above
        return file.read()


def batches(machines: "list[dict[str, Any]]", config: "dict[str, Any]", arguments: list[str]) -> list[list[str]]:
    """The regions whose Machines are replaced at the same time, one batch after the other (fly.md 9).

    `config`: [deploy] of the configuration, which options override.
    """
    options = {name: arguments[at + 1] for at, name in enumerate(arguments[:-1]) if name.startswith("--")}
    regions = [each["region"] for each in sorted(machines, key=lambda each: str(each["id"]))]
    if options.get("--strategy", config.get("strategy", "rolling")) == "immediate":
        return [regions]
    most = float(options.get("--max-unavailable", config.get("max_unavailable", 0.33)))
    size = int(most) if most >= 1 else math.ceil(len(regions) * most)
    return [regions[:1], *(regions[at : at + size] for at in range(1, len(regions), size))]


def obey(state: "dict[str, Any]", arguments: list[str]) -> None:
    match arguments:
        case ["secrets", "list", *_]:
            print(json.dumps([{state["name"]: name, "digest": "d"} for name in state["secrets"]]))
        case ["machine", "list", *_]:
            print(json.dumps(state["machines"] or None))
        case ["releases", *_]:
            print(json.dumps(state["releases"]))
        case ["config", "show", *_]:
            print(state["config"])
        case ["deploy", *_]:
            version = state["version"] = state["version"] + 1
            import tomllib  # noqa: PLC0415  see above

            config = read(arguments[arguments.index("--config") + 1])
            table = tomllib.loads(config)
            state["batches"].append(batches(state["machines"], table.get("deploy", {}), arguments))
            state["machines"] = [each | {"instance_id": f"v{version}"} for each in state["machines"]]
            if not state["machines"]:
                state["machines"] = [machine("iad", f"v{version}")]
            # As flyctl does: at the time of the deploy, from the path that the configuration names.
            state["files"] = {file["guest_path"]: read(file["local_path"]) for file in table.get("files", [])}
            if "--image" in arguments:
                state["config_of_rollback"] = config
        case ["scale", "count", _, "--max-per-region", "1", "--region", regions, *_]:
            there = {each["region"] for each in state["machines"]}
            short = state["short_of_capacity"]
            state["machines"] += [
                machine(region, f"v{state['version']}")
                for region in regions.split(",")
                if region not in there and region not in short
            ]
        case _:
            print("fine")
