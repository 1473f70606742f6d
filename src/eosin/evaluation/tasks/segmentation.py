"""Segmentation task: Dice of decoders trained on frozen patch tokens."""

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from eosin.config.base import CLASS_PATTERN
from eosin.config.heads import DecoderConfig
from eosin.config.presets import MaskLayout
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.task import Task, TaskContext, TaskProtocol, TaskResult, changes_from

if TYPE_CHECKING:
    from eosin.evaluation.datasets.masks import MaskedDataset

ClassName = Annotated[str, Field(pattern=CLASS_PATTERN)]

# kaiko-eva 0.4.5, segmentation: of its decoders also the first epochs, and tiles that are cut whole.
_EVA = {"num_steps": 2_000, "batch_size": 64, "lr": 2e-3, "weight_decay": 0.01, "num_runs": 5}
_EVA_LOW_LR_EPOCHS = 5


class SegmentationTask(Task):
    """Dice of a small convolutional decoder on frozen patch tokens."""

    headline: ClassVar[tuple[str, ...]] = ("tile_dice", "dice")

    kind: Literal["segmentation"]
    """Dice of a decoder on patch tokens."""
    dataset: str
    """URI of a folder with images/ and masks/ (perhaps each under train/ val/ test/), paired by name."""
    layout: MaskLayout | None = None
    """Read `dataset` as this public dataset is published, with its split and counts; None: as above."""
    allow_subset: bool = False
    """Take fewer images than the public dataset has; the record says so."""
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
    tile_px: int | None = Field(default=None, ge=16)
    """Cut images into whole squares of this side and resize them to the model's, as eva does; None: tiles of
    the model's size that cover all of an image."""
    decoder: DecoderConfig = DecoderConfig()
    """How the decoder is built and trained."""

    @model_validator(mode="after")
    def _background_is_a_class(self) -> Self:
        if self.read_out != "last":
            raise ValueError("segmentation reads the map of patch tokens, which read_out does not change")
        if self.classes is not None and self.background is not None and self.background >= len(self.classes):
            raise ValueError(
                f"background {self.background} is none of the {len(self.classes)} classes, counted from 0"
            )
        return self

    def open(self, run_uri: str) -> "MaskedDataset":
        """Images with masks: a public dataset where the task names its layout, else a folder of pairs."""
        from eosin.evaluation.datasets.masks import open_mask_folder
        from eosin.evaluation.datasets.public.masked import MASKS

        if self.layout is not None:
            return MASKS[self.layout].open(self.dataset, allow_subset=self.allow_subset)
        return open_mask_folder(self.dataset)

    def protocol(self) -> TaskProtocol:
        values = {**self.decoder.model_dump(mode="json"), "tile_px": self.tile_px}
        if not self.decoder.is_eva:
            return TaskProtocol("segmentation-conv-decoder", 1, changes_from(_EVA, values), values)
        changes = changes_from({**_EVA, "low_lr_epochs": _EVA_LOW_LR_EPOCHS}, values)
        if self.tile_px is None:
            changes = (*changes, "tiles of the model's size (eva: whole squares, resized)")
        return TaskProtocol("segmentation-eva-decoder" if changes else "segmentation-eva", 1, changes, values)

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """Dice by class over `decoder.num_runs` runs; raises as `run_segmentation` does."""
        from eosin.evaluation.datasets.masks import MaskedDataset
        from eosin.evaluation.segmentation import run_segmentation

        assert isinstance(dataset, MaskedDataset)
        return run_segmentation(self, dataset, context)
