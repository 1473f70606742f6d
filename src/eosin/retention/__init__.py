"""Retention: what no run and no snapshot needs, listed or deleted."""

from eosin.retention.collection import collect
from eosin.retention.spare import Doomed, GcResult

__all__ = ["Doomed", "GcResult", "collect"]
