"""A `nearcall` for tests: prints what a file has for it.

Of `nearcall call` it has the report, for a region and a number; of `nearcall tenants list` the lines.
"""

import json
import os
import sys


def main(reports_file: str, arguments: list[str]) -> int:
    """The exit status, as `nearcall call` and `nearcall tenants list` have it."""
    with open(reports_file) as file:  # noqa: PTH123  pathlib takes longer to import than all the rest
        reports = json.load(file)
    if arguments == ["tenants", "list", "--json"]:
        for line in reports["tenants"]:
            print(line if isinstance(line, str) else json.dumps(line))
        return int(reports["tenants_status"])
    region = arguments[arguments.index("--region") + 1]
    said = arguments[arguments.index("--say") + 1]
    assert os.path.isfile(said), said  # noqa: PTH113
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
