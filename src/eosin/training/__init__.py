"""Self-supervised training of a model: the loop over ranks, its losses, checkpoints and resumption."""
