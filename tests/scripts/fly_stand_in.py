"""A `fly` for tests: writes down what it was told, keeps Machines in a file, and fails where it was told to.

Run as `fly` from the PATH; the first argument names the state file. Its `fail` has patterns of all that was told
so far, a command a line, and what is said when one of them fits; a command with a word of `hang` never ends. What
is printed, and its JSON's spelling, is flyctl's: internal/command/{secrets,machine,apps,config}, fly-go's types.
"""

import base64
import json
import os
import re
import signal
import sys
import tomllib
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
) -> dict[str, Any]:
    """A Machine as `fly machine list --json` has it, as far as anybody reads it. `file`: nearcall.toml in it."""
    config: dict[str, Any] = {"image": image, "metadata": {"fly_process_group": group}}
    if file is not None:
        raw_value = base64.b64encode(file.encode()).decode()
        config["files"] = [{"guest_path": "/etc/nearcall.toml", "raw_value": raw_value}]
    return {
        "id": f"{group}-{region}",
        "region": region,
        "state": state,
        "instance_id": version,
        "config": config,
    }


def main(state_file: Path, arguments: list[str]) -> int:
    """Obey; the exit status."""
    state = json.loads(state_file.read_text())
    state["told"].append(arguments)
    told = "\n".join(" ".join(each) for each in state["told"])
    failure = next((text for pattern, text in state["fail"].items() if re.search(pattern, told)), None)
    if failure is None or failure in state["halfway"]:
        obey(state, arguments)
    whole = state_file.with_suffix(f".{os.getpid()}")
    whole.write_text(json.dumps(state))
    whole.rename(state_file)  # who reads it meanwhile sees it before or after
    if set(arguments) & set(state["hang"]):
        signal.pause()
    if failure is not None:
        print(f"Error: {failure}", file=sys.stderr)
        return 1
    return 0


def obey(state: dict[str, Any], arguments: list[str]) -> None:
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
            state["machines"] = [each | {"instance_id": f"v{version}"} for each in state["machines"]]
            if not state["machines"]:
                state["machines"] = [machine("iad", f"v{version}")]
            config = Path(arguments[arguments.index("--config") + 1]).read_text()
            # As flyctl does: at the time of the deploy, from the path that the configuration names.
            state["files"] = {
                file["guest_path"]: Path(file["local_path"]).read_text()
                for file in tomllib.loads(config).get("files", [])
            }
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


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
