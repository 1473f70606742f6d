"""Frozen embeddings and tokens of images, computed once and shared by tasks."""
