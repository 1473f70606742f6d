"""One training step, the same whatever the number of ranks that share it."""
