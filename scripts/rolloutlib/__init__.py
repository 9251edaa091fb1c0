"""The parts of scripts/rollout. The server does not use them."""
