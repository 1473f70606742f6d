"""Which checkpoints are judged, and by what."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from eosin.config.base import CLASS_PATTERN, NAME_PATTERN, Section
from eosin.config.presets import ImageLayout, MaskLayout, SlideLayout, expand_preset

TaskName = Annotated[str, Field(pattern=NAME_PATTERN)]
ClassName = Annotated[str, Field(pattern=CLASS_PATTERN)]


class ProbeConfig(Section):
    """The linear head: eva's protocol unless changed (docs/how-to/evaluate.md has the source)."""

    num_steps: int = Field(default=12_500, ge=1)
    """Steps of AdamW a run, at most."""
    batch_size: int = Field(default=256, ge=1)
    """Images a step."""
    lr: float = Field(default=3e-4, gt=0)
    """Learning rate of AdamW, the same at every step."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    num_runs: int = Field(default=5, ge=1)
    """Heads trained, each from a seed of its own; figures are their mean."""
    patience_epochs: int | None = Field(default=None, ge=1)
    """Stop a run after so many epochs without a better validation score; None: never."""
    validate_every_epochs: int = Field(default=1, ge=1)
    """Look at validation after so many epochs; the last one is always looked at."""
    num_shots: int | None = Field(default=None, ge=1)
    """Train on so many images of each class, drawn anew for each run; None: on all of them."""


class DecoderConfig(Section):
    """The decoder of a segmentation task: steps, batch, LR and runs are eva's unless changed."""

    num_steps: int = Field(default=2_000, ge=1)
    """Steps of AdamW a run."""
    batch_size: int = Field(default=64, ge=1)
    """Tiles a step."""
    lr: float = Field(default=2e-3, gt=0)
    """Learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    num_runs: int = Field(default=5, ge=1)
    """Decoders trained, each from a seed of its own; figures are their mean."""
    hidden_dim: int = Field(default=64, ge=8, multiple_of=8)
    """Channels after the first layer; half as many after the last."""
    num_validations: int = Field(default=20, ge=1)
    """How often a run is judged on validation; the best of them is kept."""


class AbmilConfig(Section):
    """Gated attention over the patches of a slide: eva's sizes and steps unless changed."""

    num_epochs: int = Field(default=100, ge=1)
    """Epochs a run, at most."""
    batch_size: int = Field(default=32, ge=1)
    """Slides a step."""
    lr: float = Field(default=1e-3, gt=0)
    """Learning rate of AdamW."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Of AdamW."""
    num_runs: int = Field(default=20, ge=1)
    """Heads trained, each from a seed of its own; figures are their mean."""
    patience_epochs: int | None = Field(default=20, ge=1)
    """Stop a run after so many epochs without a better validation score; None: never."""
    projection_dim: int = Field(default=128, ge=1)
    """Width to which features are projected first."""
    attention_dim: int = Field(default=128, ge=1)
    """Width of the gated attention."""
    hidden_dims: tuple[Annotated[int, Field(ge=1)], ...] = (128, 64)
    """Widths of the hidden layers after the attention."""
    max_step_gib: float = Field(default=2.0, gt=0)
    """Most memory for the patches of one step; more seeds than fit are trained after one another."""


class UnsupervisedTask(Section):
    """RankMe and ODCorr of the held-out patch set: no labels needed."""

    kind: Literal["unsupervised"] = "unsupervised"
    """RankMe and ODCorr."""
    name: TaskName = "heldout"
    """Of the task, in records and in the report."""
    patch_set: str = "heldout"
    """Name of a patch set of the run, or the URI of any dataset."""


class KnnTask(Section):
    kind: Literal["knn"]
    """Nearest neighbours."""
    name: TaskName
    """Of the task, in records and in the report."""
    dataset: str
    """URI of labelled images: a folder a class (perhaps under train/ val/ test/), or a patch set."""
    layout: ImageLayout | None = None
    """Read `dataset` as this public dataset is published, with its split and counts; None: as above."""
    allow_subset: bool = False
    """Take fewer images than the public dataset has; the record says so."""
    k: int = Field(default=20, ge=1)
    """Neighbours that vote."""
    temperature: float = Field(default=0.07, gt=0)
    """T of the votes' weights exp(cosine / T)."""


class LinearProbeTask(Section):
    kind: Literal["linear-probe"]
    """A linear head on frozen features."""
    name: TaskName
    """Of the task, in records and in the report."""
    dataset: str
    """URI of labelled images: a folder a class (perhaps under train/ val/ test/), a table, or a patch set."""
    layout: ImageLayout | None = None
    """As for kNN."""
    allow_subset: bool = False
    """As for kNN."""
    probe: ProbeConfig = ProbeConfig()
    """How the head is trained."""


class RobustnessTask(Section):
    """Agreement of embeddings under rotation, flip, change of stain and blur: no labels needed."""

    kind: Literal["robustness"]
    """Agreement under changes of a patch."""
    name: TaskName
    """Of the task, in records and in the report."""
    patch_set: str = "heldout"
    """Name of a patch set of the run, or the URI of any dataset."""


class SegmentationTask(Section):
    """Dice of a small convolutional decoder on frozen patch tokens."""

    kind: Literal["segmentation"]
    """Dice of a decoder on patch tokens."""
    name: TaskName
    """Of the task, in records and in the report."""
    dataset: str
    """URI of a folder with images/ and masks/ (perhaps each under train/ val/ test/), paired by name."""
    layout: MaskLayout | None = None
    """Read `dataset` as this public dataset is published, with its split and counts; None: as above."""
    allow_subset: bool = False
    """As for kNN."""
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
    """How the decoder is built and trained."""

    @model_validator(mode="after")
    def _background_is_a_class(self) -> Self:
        if self.classes is not None and self.background is not None and self.background >= len(self.classes):
            raise ValueError(
                f"background {self.background} is none of the {len(self.classes)} classes, counted from 0"
            )
        return self


class CentreTask(Section):
    """Do embeddings group by tissue or by where the slide was made? An index in the manner of PathoROB."""

    kind: Literal["centres"]
    """Whether neighbours share tissue or centre."""
    name: TaskName
    """Of the task, in records and in the report."""
    dataset: str
    """URI of a CSV or Parquet table of images with the columns label (tissue) and centre."""
    k: int = Field(default=10, ge=1)
    """Neighbours that are looked at; those of the same patient are passed over."""


class SlideTask(Section):
    """Slides classified by gated attention over embeddings of patches on a grid in their tissue."""

    kind: Literal["slide"]
    """Labels of whole slides."""
    name: TaskName
    """Of the task, in records and in the report."""
    dataset: str
    """URI of a CSV with the columns slide and label (and split, patient), or of a public dataset's folder."""
    layout: SlideLayout | None = None
    """Read `dataset` as this public dataset is published; None: it is a CSV."""
    allow_subset: bool = False
    """As for kNN."""
    slides: str = ""
    """Folder of the slides that the CSV names; empty: where the CSV lies."""
    overrides: str | None = None
    """As `slides.overrides`: mpp and what else the slides' headers lack."""
    mpp: float = Field(default=0.5, gt=0)
    """Magnification of the patches, µm a pixel."""
    patch_px: int = Field(default=224, ge=16)
    """Side of the square patches, px."""
    num_patches: int = Field(default=1_000, ge=1)
    """Most patches a slide, drawn from the grid by a stable hash."""
    min_foreground: float = Field(default=0.35, ge=0, le=1)
    """Share of a patch whose HSV saturation is above 20."""
    abmil: AbmilConfig = AbmilConfig()
    """How the head is trained."""


TaskConfig = Annotated[
    UnsupervisedTask | KnnTask | LinearProbeTask | RobustnessTask | SegmentationTask | CentreTask | SlideTask,
    Field(discriminator="kind"),
]


class EvaluateConfig(Section):
    tasks: tuple[TaskConfig, ...] = (UnsupervisedTask(),)
    """What every model is judged on."""
    checkpoints: Literal["all", "last"] = "all"
    """all: every exported teacher; last: the newest alone."""
    baselines: tuple[str, ...] = ("random-init",)
    """Judged beside the run's own teachers: random-init, timm:NAME or timm:hf-hub:OWNER/NAME with its
    published weights, timm:ARCH@URI with those of a safetensors file, or the URI of a teacher's folder."""
    img_px: int | None = Field(default=None, ge=1)
    """Side to which images are resized for every model; None: each model's own. A teacher trained on
    crops well inside the patch sees the whole patch at the same scale where this is larger."""
    batch_size: int = Field(default=256, ge=1)
    """Images that go through the backbone at once; no effect on the figures."""
    compare_with: tuple[str, ...] = ()
    """URIs of runs whose figures the report shows beside this run's."""
    num_earlier_runs: int = Field(default=5, ge=0, le=20)
    """So many more, the newest in the same folder that began before this one."""

    @model_validator(mode="before")
    @classmethod
    def _expand_presets(cls, values: Any) -> Any:
        tasks = values.get("tasks") if isinstance(values, dict) else None
        if not isinstance(tasks, list | tuple):
            return values
        return {**values, "tasks": [expand_preset(task) for task in tasks]}

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        names = [task.name for task in self.tasks]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two tasks share a name: {', '.join(twice)}")
        return self
