"""A machine of the world: `python -m app.world.serve URL` is `nearcall serve` with the Twilio of the world.

URL is where Twilio's REST API is; the settings come from the environment, as on a real machine.
"""

import os
import sys
from pathlib import Path

from app.bridge.twilio_rest import API_HOSTS
from app.cli.shared import logs, run
from app.config import Settings, environment
from app.main import serve


def main(rest_url: str) -> None:
    """Serve until SIGTERM."""
    settings = Settings.from_env(environment(Path(os.devnull)))
    with logs("info", settings.region, settings.secrets):
        run(serve(settings, "127.0.0.1", api_hosts=dict.fromkeys(API_HOSTS, rest_url)))


if __name__ == "__main__":
    main(*sys.argv[1:])
