"""Metric record: one model judged on one task."""

import math
import statistics
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, SerializeAsAny, ValidationInfo, field_validator

from eosin.records.base import Record, RecordPart
from eosin.records.details import DETAILS, Details


class MetricValue(RecordPart):
    """A metric over its runs (seeds)."""

    mean: float
    """Over `values`."""
    std: float
    """Sample standard deviation over the runs; 0 for one run."""
    values: tuple[float, ...]
    """One a run (seed), in order."""
    higher_is_better: bool = True
    """False where lower is better, as for ODCorr."""

    @property
    def num_runs(self) -> int:
        """How many values it is the mean of."""
        return len(self.values)

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
    """Name of a teacher of the run, of a baseline, or the URI of a teacher's folder."""
    step: int | None
    """Training step; 0 for random-init; None for a foreign baseline."""
    task: str
    """Name of the task."""
    kind: str
    """Of the task: knn, linear-probe, …"""
    status: Literal["ok", "failed"]
    """ok: the figures stand; failed: there are none, and `reason` says why."""
    reason: str = ""
    """Why it failed, in a sentence; empty where it is ok."""
    inputs_digest: str = ""
    """Of model, dataset and protocol together: an `ok` record with the same digest makes a re-run a no-op."""
    model_digest: str = ""
    """SHA-256 of all of the model that decides its embeddings."""
    weights_sha256: str = ""
    """Of a teacher: its model.safetensors, as its card had it when it was judged."""
    dataset: str = ""
    """What it was judged on, as the task names it."""
    dataset_digest: str = ""
    """Of the images, labels and split."""
    protocol: str = ""
    """Name of how it was judged."""
    protocol_version: int = 1
    """Rises when the same name would give other figures."""
    metrics: dict[str, MetricValue] = {}
    """Figures by name."""
    details: SerializeAsAny[Details] = Field(default_factory=dict, validate_default=True)
    """What the report shows beside the figures; of the model that `DETAILS` has for the kind of task."""
    wall_s: float = 0.0
    """How long it took, seconds."""
    num_patches: int = 0
    """Images (or patches of slides) that went through the model."""
    eosin_version: str = ""
    """Of the eosin that judged."""

    @field_validator("details", mode="before")
    @classmethod
    def _of_kind(cls, value: Any, info: ValidationInfo) -> Any:
        model = DETAILS.get(info.data.get("kind", ""), Details)
        if isinstance(value, model) and type(value) is not Details:
            return value
        return model.model_validate(value.model_dump() if isinstance(value, Details) else value)

    @classmethod
    def model_json_schema(cls, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """JSON schema of a metric record, with the details of each kind of task."""
        schema = super().model_json_schema(*args, **kwargs)
        definitions = schema.setdefault("$defs", {})
        cases = []
        for kind, model in DETAILS.items():
            own = model.model_json_schema(ref_template="#/$defs/{model}")
            definitions |= own.pop("$defs", {}) | {model.__name__: own}
            details = {"properties": {"details": {"$ref": f"#/$defs/{model.__name__}"}}}
            cases.append({"if": {"properties": {"kind": {"const": kind}}}, "then": details})
        return schema | {"allOf": cases}
