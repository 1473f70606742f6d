"""Name and version of each protocol, and where a task departs from eva's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from eosin.config.evaluate import LinearProbeTask, SegmentationTask, SlideTask, TaskConfig
from eosin.evaluation.embeddings.changes import CHANGES_VERSION

# A version changes whenever a figure could.
_PROTOCOLS = {
    "unsupervised": ("rankme-odcorr", 1),
    "knn": ("knn-cosine-weighted", 1),
    "linear-probe": ("linear-probe-eva", 1),
    "robustness": ("robustness-orientation-stain-blur", CHANGES_VERSION),
    "segmentation": ("segmentation-conv-decoder", 1),
    "centres": ("centres-neighbours", 1),
    "slide": ("slide-abmil-gated", 1),
}
_CHANGED_PROBE = "linear-probe"

# kaiko-eva 0.4.5, offline: patch classification, and segmentation.
_EVA_PROBE = {"num_steps": 12_500, "batch_size": 256, "lr": 3e-4, "weight_decay": 0.01, "num_runs": 5}
_EVA_SHOTS, _EVA_SHOTS_RUNS = 10, 50
_EVA_ABMIL = {
    "num_epochs": 100, "batch_size": 32, "lr": 1e-3, "weight_decay": 0.01, "num_runs": 20,
    "patience_epochs": 20, "projection_dim": 128, "attention_dim": 128, "hidden_dims": [128, 64],
}  # fmt: skip
_EVA_DECODER = {"num_steps": 2_000, "batch_size": 64, "lr": 2e-3, "weight_decay": 0.01, "num_runs": 5}


@dataclass(frozen=True)
class TaskProtocol:
    name: str
    version: int
    changes: tuple[str, ...] = ()
    """Each hyperparameter that is not eva's: `num_steps 150 (eva: 12500)`."""
    hyperparameters: dict[str, Any] | None = None
    """All of them, where the task trains a head."""


def protocol_of(task: TaskConfig) -> TaskProtocol:
    """The protocol that `task` follows; a linear probe is called eva's only where nothing is changed."""
    name, version = _PROTOCOLS[task.kind]
    if isinstance(task, LinearProbeTask):
        values = task.probe.model_dump(mode="json")
        changes = _probe_changes(values)
        return TaskProtocol(_CHANGED_PROBE if changes else name, version, changes, values)
    if isinstance(task, SegmentationTask):
        values = task.decoder.model_dump(mode="json")
        return TaskProtocol(name, version, _changes(values, _EVA_DECODER), values)
    if isinstance(task, SlideTask):
        values = task.abmil.model_dump(mode="json", exclude={"max_step_gib"})
        sampling = task.model_dump(mode="json", include={"mpp", "patch_px", "num_patches", "min_foreground"})
        return TaskProtocol(name, version, _changes(values, _EVA_ABMIL), {**sampling, **values})
    return TaskProtocol(name, version)


# Keys that tasks did not always have, with the value that stands for what was done before.
_LATER_KEYS = {"layout": None, "allow_subset": False, "validate_every_epochs": 1}


def task_identity(task: TaskConfig) -> dict[str, Any]:
    """What decides a figure of `task`, so that a key it did not always have changes no record's digest."""
    return _without_later(task.model_dump(mode="json"))


def _without_later(values: dict[str, Any]) -> dict[str, Any]:
    return {
        key: _without_later(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in _LATER_KEYS or value != _LATER_KEYS[key]
    }


def _probe_changes(values: dict[str, Any]) -> tuple[str, ...]:
    shots = values["num_shots"]
    if shots is None:
        return _changes(values, _EVA_PROBE)
    changes = _changes(values, {**_EVA_PROBE, "num_runs": _EVA_SHOTS_RUNS})
    return changes if shots == _EVA_SHOTS else (*changes, f"num_shots {shots} (eva: all, or {_EVA_SHOTS})")


def _changes(values: dict[str, Any], usual: dict[str, Any]) -> tuple[str, ...]:
    return tuple(
        f"{name} {values[name]} (eva: {usual[name]})" for name in usual if values[name] != usual[name]
    )
