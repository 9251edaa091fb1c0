"""A `nearcall call` for tests: prints the report that a file has for the region and the number it is asked for."""

import json
import sys
from pathlib import Path


def main(reports_file: Path, arguments: list[str]) -> int:
    """The exit status, as `nearcall call` has it."""
    region = arguments[arguments.index("--region") + 1]
    said = Path(arguments[arguments.index("--say") + 1])
    assert said.is_file(), said
    reports = json.loads(reports_file.read_text())
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


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
