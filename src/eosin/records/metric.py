"""One evaluation: a model judged on a task."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict

from eosin.records.base import Record


class MetricValue(BaseModel):
    """A metric over its runs (seeds)."""

    model_config = ConfigDict(frozen=True)

    mean: float
    std: float
    """Sample standard deviation over the runs; 0 for one run."""
    values: tuple[float, ...]
    higher_is_better: bool = True

    @classmethod
    def of(cls, values: Sequence[float], *, higher_is_better: bool = True) -> Self:
        """Raises ValueError on no value or one that is not finite."""
        numbers = tuple(float(value) for value in values)
        if not numbers or not all(math.isfinite(number) for number in numbers):
            raise ValueError(f"a metric needs finite values, not {numbers}")
        std = statistics.stdev(numbers) if len(numbers) > 1 else 0.0
        return cls(mean=statistics.fmean(numbers), std=std, values=numbers, higher_is_better=higher_is_better)


class MetricRecord(Record):
    """Published at `RunLayout.metric(model, task)`. Only status `ok` is final."""

    model: str
    step: int | None
    """Training step; 0 for random-init; None for a foreign baseline."""
    task: str
    kind: str
    status: Literal["ok", "failed"]
    reason: str = ""
    inputs_digest: str = ""
    """Of model, dataset and protocol together: an `ok` record with the same digest makes a re-run a no-op."""
    model_digest: str = ""
    dataset: str = ""
    dataset_digest: str = ""
    protocol: str = ""
    protocol_version: int = 1
    metrics: dict[str, MetricValue] = {}
    details: dict[str, Any] = {}
    """What the report shows beside the figures: per-class values, spectra, class names."""
    wall_s: float = 0.0
    num_patches: int = 0
    eosin_version: str = ""
