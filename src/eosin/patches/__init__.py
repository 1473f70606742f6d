"""Patches: which ones (`sampler`), read from slides ahead of need (`stream`), augmented, or kept as sets."""
