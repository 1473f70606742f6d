"""Models: architectures, weights, frozen teachers, export and the hand-over from training."""
