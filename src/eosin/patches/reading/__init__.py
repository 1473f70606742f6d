"""From requests to pixels: which tiles, from where, each fetched and decoded once."""
