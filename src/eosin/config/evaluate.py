"""Which checkpoints are judged, and by what."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from eosin.config.base import Section

TaskName = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
ClassName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9 _-]{0,40}$")]


class ProbeConfig(Section):
    """The linear head: eva's protocol unless changed (facts and source in docs/reference)."""

    num_steps: int = Field(default=12_500, ge=1)
    batch_size: int = Field(default=256, ge=1)
    lr: float = Field(default=3e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    num_runs: int = Field(default=5, ge=1)
    patience_epochs: int | None = Field(default=None, ge=1)
    """Stop a run after so many epochs without a better validation score; None: never."""
    num_shots: int | None = Field(default=None, ge=1)
    """Train on so many images of each class, drawn anew for each run; None: on all of them."""


class DecoderConfig(Section):
    """The decoder of a segmentation task: steps, batch, LR and runs are eva's unless changed."""

    num_steps: int = Field(default=2_000, ge=1)
    batch_size: int = Field(default=64, ge=1)
    """Tiles a step."""
    lr: float = Field(default=2e-3, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    num_runs: int = Field(default=5, ge=1)
    hidden_dim: int = Field(default=64, ge=8, multiple_of=8)
    """Channels after the first layer; half as many after the last."""
    num_validations: int = Field(default=20, ge=1)
    """How often a run is judged on validation; the best of them is kept."""


class UnsupervisedTask(Section):
    """RankMe and ODCorr of the held-out patch set: no labels needed."""

    kind: Literal["unsupervised"] = "unsupervised"
    name: TaskName = "heldout"
    patch_set: str = "heldout"
    """Name of a patch set of the run, or the URI of any dataset."""


class KnnTask(Section):
    kind: Literal["knn"]
    name: TaskName
    dataset: str
    """URI of labelled images: a folder a class (perhaps under train/ val/ test/), or a patch set."""
    k: int = Field(default=20, ge=1)
    temperature: float = Field(default=0.07, gt=0)


class LinearProbeTask(Section):
    kind: Literal["linear-probe"]
    name: TaskName
    dataset: str
    probe: ProbeConfig = ProbeConfig()


class RobustnessTask(Section):
    """Agreement of embeddings under rotation, flip, change of stain and blur: no labels needed."""

    kind: Literal["robustness"]
    name: TaskName
    patch_set: str = "heldout"


class SegmentationTask(Section):
    """Dice of a small convolutional decoder on frozen patch tokens."""

    kind: Literal["segmentation"]
    name: TaskName
    dataset: str
    """URI of a folder with images/ and masks/ (perhaps each under train/ val/ test/), paired by name."""
    classes: tuple[ClassName, ...] | None = Field(default=None, min_length=2, max_length=64)
    """Name of each mask value from 0 on; None: as many classes as the masks have."""
    background: int | None = Field(default=0, ge=0)
    """Class left out of the mean Dice; None: every class counts."""
    ignore_value: int | None = Field(default=None, ge=0, le=65_535)
    """Mask value of pixels that are neither learned nor judged."""
    max_tiles: int = Field(default=4_096, ge=4)
    """Tiles over all splits; where the images give more, a stable draw is taken."""
    max_tokens_gib: float = Field(default=8.0, gt=0)
    """Most memory for tokens; a task that needs more is refused, since other tiles give other figures."""
    decoder: DecoderConfig = DecoderConfig()


TaskConfig = Annotated[
    UnsupervisedTask | KnnTask | LinearProbeTask | RobustnessTask | SegmentationTask,
    Field(discriminator="kind"),
]


class EvaluateConfig(Section):
    tasks: tuple[TaskConfig, ...] = (UnsupervisedTask(),)
    checkpoints: Literal["all", "last"] = "all"
    baselines: tuple[str, ...] = ("random-init",)
    """Judged beside the run's own teachers: random-init, timm:NAME, or the URI of a teacher's folder."""
    img_px: int | None = Field(default=None, ge=1)
    """Side to which images are resized for every model; None: each model's own. A teacher trained on
    crops well inside the patch sees the whole patch at the same scale where this is larger."""
    batch_size: int = Field(default=256, ge=1)

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two tasks share a name: {', '.join(twice)}")
        return self
