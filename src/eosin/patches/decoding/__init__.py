"""From a tile's bytes, or a staged slide's region, to pixels, in another process where that may crash."""
