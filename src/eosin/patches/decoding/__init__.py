"""Decoding of tiles and of staged slides' regions, in another process where that may crash."""
