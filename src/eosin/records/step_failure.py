"""Record of a step's last error, in the run, for people who come after its pod is gone."""

from __future__ import annotations

from eosin.records.base import Record


class StepFailure(Record):
    """Published when a step ends with an error; deleted when the same step succeeds."""

    step: str
    """Such as train, index-shard-00003 or evaluate-step-00000100-camelyon."""
    message: str
    """What is wrong."""
    hint: str = ""
    """What to do about it."""
    kind: str = ""
    """UserError, TransientError, PermanentError, or the name of what was not expected."""
    exit_code: int
    """0 where the step's process ended without a word."""
    time: str
    """RFC 3339, UTC."""
    attempt: int = 1
    """Counts the failures of this step in this run."""
    pod: str = ""
    """Name of the pod; empty outside a cluster."""
