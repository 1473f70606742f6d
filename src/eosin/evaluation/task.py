"""Task: what every kind of evaluation task does, and the dataset keys of those on labelled images."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from pydantic import Field

from eosin.config.presets import ImageLayout
from eosin.config.task import TaskConfig
from eosin.layout import RunLayout
from eosin.records import MetricValue
from eosin.records.details import Details
from eosin.storage import Store, join_uri

if TYPE_CHECKING:
    from eosin.config import RunConfig
    from eosin.evaluation.datasets.dataset import Dataset
    from eosin.evaluation.embeddings.embed import Embeddings
    from eosin.evaluation.judged_model import JudgedModel
    from eosin.evaluation.pictures import Example
    from eosin.observability import RunLog


@dataclass(frozen=True)
class TaskProtocol:
    """By what rules a figure is taken: figures of one protocol, name and version, compare."""

    name: str
    version: int
    """Changes whenever a figure could."""
    changes: tuple[str, ...] = ()
    """Each hyperparameter that is not the published protocol's: `num_steps 150 (eva: 12500)`."""
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class TaskResult:
    """What a task hands back of one model."""

    metrics: dict[str, MetricValue]
    details: Details
    num_items: int
    """Images, tiles or patches that the model saw."""
    examples: "tuple[Example, ...]" = ()


@dataclass
class TaskContext:
    """What a task may use besides its dataset."""

    run_uri: str
    config: "RunConfig"
    model: "JudgedModel"
    store: Store
    log: "RunLog"
    told: dict[str, Any] = field(default_factory=dict)
    """Fields of `Details` known so far, which a failed record keeps: what was left out, and why."""
    _embedded: "dict[str, Embeddings]" = field(default_factory=dict)

    def embed(self, dataset: "Dataset", change: str = "") -> "Embeddings":
        """Embeddings of every readable image of `dataset`, changed as `change` says; computed once.

        Raises as `eosin.evaluation.embeddings.embed.embed` does.
        """
        from eosin.evaluation.embeddings.embed import UnreadableImages, embed

        if change not in self._embedded:
            try:
                found = embed(
                    self.model, dataset, store=self.store, batch_size=self.config.evaluate.batch_size,
                    log=self.log, change=change,
                )  # fmt: skip
            except UnreadableImages as error:
                self.told = {"num_dropped": error.num_dropped, "dropped": error.dropped}
                raise
            self._embedded[change], self.told = found, found.told()
        return self._embedded[change]


class Task(TaskConfig):
    """A kind of task. Its fields are its configuration; `open`, `run` and `protocol` are what it is."""

    def dataset_uri(self, run_uri: str) -> str:
        """Where the data lie: a URI of their own, or a patch set of the run by its name."""
        name = getattr(self, "patch_set", None)
        if name is None or "/" in name:
            return str(name or getattr(self, "dataset", ""))
        return join_uri(run_uri, RunLayout.patch_set(name))

    def open(self, run_uri: str) -> "Dataset":
        """The dataset; no image is read. Raises `UserError` where nothing usable is there."""
        from eosin.evaluation.datasets.open_dataset import open_dataset

        return open_dataset(self.dataset_uri(run_uri))

    def run(self, dataset: "Dataset", context: TaskContext) -> TaskResult:
        """The figures of `context.model` on what `open` gave.

        Raises `UserError` or `PermanentError` where there is nothing to measure.
        """
        raise NotImplementedError

    def protocol(self) -> TaskProtocol:
        """Name and version of the protocol, and where this task departs from it."""
        raise NotImplementedError

    def examples(self, dataset: "Dataset", context: TaskContext) -> "list[Example]":
        """Pictures to show beside the figures."""
        return []


def changes_from(
    usual: Mapping[str, Any], values: Mapping[str, Any], *, source: str = "eva"
) -> tuple[str, ...]:
    """`NAME VALUE (SOURCE: USUAL)` for each of `usual` that differs in `values`."""
    return tuple(
        f"{name} {values[name]} ({source}: {usual[name]})" for name in usual if values[name] != usual[name]
    )


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

    def open(self, run_uri: str) -> "Dataset":
        """As `Task.open`, in the layout of a public dataset where one is named."""
        from eosin.evaluation.datasets.open_dataset import open_dataset
        from eosin.evaluation.datasets.splits import with_folds

        found = open_dataset(self.dataset, self.layout, allow_subset=self.allow_subset)
        return with_folds(found, self.folds) if self.folds else found
