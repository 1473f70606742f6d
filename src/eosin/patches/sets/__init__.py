"""Patch sets: drawn once, published as immutable shards, read back by training and evaluation."""
