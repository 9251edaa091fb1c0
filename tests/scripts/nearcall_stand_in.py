"""A `nearcall call` for tests: prints the report that a file has for the region and the number it is asked for."""

import json
import os
import sys


def main(reports_file: str, arguments: list[str]) -> int:
    """The exit status, as `nearcall call` has it."""
    region = arguments[arguments.index("--region") + 1]
    said = arguments[arguments.index("--say") + 1]
    assert os.path.isfile(said), said  # noqa: PTH113  pathlib takes longer to import than all the rest
    with open(reports_file) as file:  # noqa: PTH123
        reports = json.load(file)
    report = reports.get(f"{region} {arguments[arguments.index('--to') + 1]}", reports.get(region, {}))
    if "error" in report:
        print(f"nearcall: {report['error']}", file=sys.stderr)
        return 1
    whole = {
        "event": "Report",
        "webhook_region": region,
        "stream_region": region,
        "greeted_after_s": 0.5,
        "violations": 0,
        "ended": "the caller hung up",
        "good": True,
        **report,
    }
    print(json.dumps({"event": "HungUp"}))
    print(json.dumps(whole))
    return 0 if whole["good"] else 1
