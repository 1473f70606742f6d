"""Checks of a cluster before training is submitted to it."""
