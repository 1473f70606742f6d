"""Retention: what no run and no snapshot needs, listed or deleted."""

from eosin.retention.collection import Doomed, GcResult, collect

__all__ = ["Doomed", "GcResult", "collect"]
