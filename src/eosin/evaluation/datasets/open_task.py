"""The dataset that a task names."""

from __future__ import annotations

from eosin.config.evaluate import (
    KnnTask,
    LinearProbeTask,
    RobustnessTask,
    SegmentationTask,
    SlideTask,
    TaskConfig,
    UnsupervisedTask,
)
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.datasets.mask_folder import MaskedDataset, open_mask_folder
from eosin.evaluation.datasets.open_dataset import open_dataset
from eosin.evaluation.datasets.public.registry import MASKS
from eosin.layout import RunLayout
from eosin.storage import join_uri


def dataset_uri(task: TaskConfig, run_uri: str) -> str:
    """Where the task's data lie: a URI of its own, or a patch set of the run."""
    if not isinstance(task, UnsupervisedTask | RobustnessTask):
        return task.dataset
    name = task.patch_set
    return name if "/" in name else join_uri(run_uri, RunLayout.patch_set(name))


def open_task(task: TaskConfig, run_uri: str) -> Dataset:
    """The dataset of `task`; no image is read. Raises `UserError` where nothing usable is there."""
    uri = dataset_uri(task, run_uri)
    if isinstance(task, SegmentationTask):
        return open_masked(uri, task)
    if isinstance(task, SlideTask):
        from eosin.evaluation.datasets.slide_dataset import open_slides

        return open_slides(task)
    if isinstance(task, KnnTask | LinearProbeTask):
        return open_dataset(uri, task.layout, allow_subset=task.allow_subset)
    return open_dataset(uri)


def open_masked(uri: str, task: SegmentationTask) -> MaskedDataset:
    """Images with masks: a public dataset where the task names its layout, else a folder of pairs."""
    if task.layout is not None:
        return MASKS[task.layout].open(uri, allow_subset=task.allow_subset)
    return open_mask_folder(uri)
