"""Judging exported teachers: datasets, frozen embeddings, tasks, and one record for each."""
