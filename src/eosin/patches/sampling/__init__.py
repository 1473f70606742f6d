"""Which patch is sample i of step t: arithmetic on hashes, before any pixel is read."""
