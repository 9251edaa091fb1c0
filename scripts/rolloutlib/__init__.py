"""What scripts/rollout is made of. The server knows nothing of it."""
