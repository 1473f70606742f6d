"""Reading of requested patches: which tiles, from where, each fetched and decoded once."""
