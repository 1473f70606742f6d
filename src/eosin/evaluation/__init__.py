"""Evaluation of frozen models on tasks: datasets, embeddings, heads, and one record a model and task."""

# The configuration imports the kinds of task below; it must have begun before any of them is read.
import eosin.config  # noqa: F401
