"""What scripts/bench and scripts/soak are made of. The server knows nothing of it."""
