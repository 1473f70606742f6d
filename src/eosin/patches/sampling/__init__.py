"""Sampling: which patch is sample i of step t, by arithmetic on hashes, before any pixel is read."""
