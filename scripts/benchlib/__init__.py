"""The code of scripts/bench, scripts/soak and scripts/flood. The server does not import it."""
