"""Whole-slide images in object storage: their formats, levels and tiles, read by byte range."""
