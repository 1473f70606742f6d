"""One figure of the report."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

Status = Literal["ok", "failed", "missing", "disagreeing"]


class Result(BaseModel):
    """One figure of one model on one task; without figures, one line that says why."""

    model_config = ConfigDict(frozen=True)

    model: str
    step: int | None
    """Training step; 0 for random-init; None for a foreign baseline."""
    task: str
    kind: str
    metric: str | None
    mean: float | None
    std: float | None
    num_runs: int
    status: Status
    higher_is_better: bool | None = None
    interval: tuple[float, float] | None = None
    """At 95 %, over patients or images, where one was computed."""
    reason: str = ""
    dataset_digest: str = ""
    protocol: str = ""
    """Name, version and every departure from it; figures compare where this and the data are equal."""
    preset: str = ""
    """The preset that was followed unchanged on the whole of its dataset; empty: none."""
