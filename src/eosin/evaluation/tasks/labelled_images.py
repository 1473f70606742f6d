"""Tasks on labelled images: their dataset keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from eosin.config.presets import ImageLayout
from eosin.evaluation.task import Task

if TYPE_CHECKING:
    from eosin.evaluation.datasets.dataset import Dataset


class LabelledImagesTask(Task):
    """Images with a class each, split into train, validation and test."""

    dataset: str
    """URI of labelled images: a folder a class (perhaps under train/ val/ test/), a table, or a patch set."""
    layout: ImageLayout | None = None
    """Read `dataset` as this public dataset is published, with its split and counts; None: as above."""
    allow_subset: bool = False
    """Take fewer images than the public dataset has; the record says so."""
    folds: int | None = Field(default=None, ge=2, le=100)
    """Cross-validation over so many parts, whole patients together; None: the columns fold_0, fold_1 … of a
    table where it has them, else one split."""

    def dataset_uri(self, run_uri: str) -> str:
        return self.dataset

    def open(self, run_uri: str) -> Dataset:
        """As `Task.open`, in the layout of a public dataset where one is named."""
        from eosin.evaluation.datasets.open_dataset import open_dataset
        from eosin.evaluation.datasets.splits import with_folds

        found = open_dataset(self.dataset, self.layout, allow_subset=self.allow_subset)
        return with_folds(found, self.folds) if self.folds else found
