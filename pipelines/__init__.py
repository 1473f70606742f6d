"""Kubeflow pipelines and, beside each, what it compiles to."""
