"""Details of a metric record: one model for each kind of task."""

import re
from typing import Annotated, Any

from pydantic import Field, field_validator

from eosin.records.base import RecordPart

Interval = tuple[float, float]
"""Lower and upper end at 95 %."""


class LeftOut(RecordPart):
    """An image or a slide that could not be used."""

    source: str
    """Its key or path."""
    reason: str
    """Why, in a sentence."""


class ExamplePicture(RecordPart):
    """A JPEG that was published before the record."""

    kind: str
    """neighbours or maps."""
    key: str
    """Object key below the run."""
    caption: str = ""
    """What it shows."""


class Details(RecordPart):
    """What every kind of task tells beside its figures; a kind with nothing more to tell uses it as it is."""

    notes: tuple[str, ...] = ()
    """What a reader of the figures must know."""
    unit: str = "images"
    """What is counted and judged: images, slides, tiles."""
    num_dropped: int = 0
    """How many could not be used."""
    dropped: tuple[LeftOut, ...] = ()
    """The first of what could not be used."""
    transform: str = ""
    """How an image became the pixels that the model saw, with its version."""
    leaked_patients: tuple[str, ...] = ()
    """Patients that are among the pretraining slides."""
    hyperparameters: dict[str, Any] = {}
    """Of the protocol."""
    protocol_changes: tuple[str, ...] = ()
    """Where they depart from the published protocol."""
    preset: str = ""
    """The preset that was followed unchanged, at 224 px, on every image of its dataset; empty: none."""
    intervals: dict[str, Interval] = {}
    """By metric."""
    interval_over: str = ""
    """What the intervals are over, with its number: `12 patients`; or why there are none."""
    num_folds: int = 0
    """Folds or given splits, of which each value of a figure is one; 0: none."""
    examples: tuple[ExamplePicture, ...] = ()
    """Pictures of what the model sees, beside the record."""

    @property
    def judged_over(self) -> tuple[int, str] | None:
        """How many patients (or images, samples) the figures are over, and what they are; None: not told."""
        found = re.search(r"(\d+) (patients|images|samples)", self.interval_over)
        return (int(found[1]), found[2]) if found else None


class Spectrum(RecordPart):
    """Singular values relative to the largest, at some ranks counted from 1."""

    rank: tuple[int, ...]
    """Numbers of the singular values that are told, from 1 on."""
    relative: tuple[float, ...]
    """Each of them over the largest."""
    alpha: float | None = None
    """Exponent of the power law; None where it is not defined."""


class UnsupervisedDetails(Details):
    """Of RankMe and ODCorr."""

    num_samples: int = 0
    """N, the embeddings they were taken of."""
    num_features: int = 0
    """D, the length of an embedding."""
    centred: bool = False
    """Whether the mean was subtracted first: it never is for RankMe."""
    constant_features: int = 0
    """Features that are the same for all samples; ODCorr leaves them out."""
    spectrum: Spectrum | None = None
    """Of the embeddings."""
    by_mpp: dict[str, dict[str, float]] = {}
    """The figures of the patches of each magnification."""


class RobustnessDetails(Details):
    """Of changes of patches."""

    num_samples: int = 0
    """Patches that were changed."""
    by_mpp: dict[str, dict[str, float]] = {}
    """The figures of the patches of each magnification."""


class CentresDetails(Details):
    """Of neighbours by tissue and by centre."""

    k: int = 0
    """Neighbours that were looked at."""
    num_samples: int = 0
    """Patches with a tissue and a centre."""
    counts: dict[str, dict[str, int]] = {}
    """Patches by tissue, then by centre."""
    by_mpp: dict[str, dict[str, float]] = {}
    """The figures of the patches of each magnification."""


class ScannerDetails(Details):
    """Of the same tissue by several scanners and stains."""

    num_slides: int = 0
    """Combinations of stain and scanner."""
    num_pairs: dict[str, int] = {}
    """Pairs of slides by what differs: all, across_scanners (alone), across_stains (alone), across_both."""
    medians: dict[str, dict[str, float]] = {}
    """Of each figure over the pairs."""
    means: dict[str, dict[str, float]] = {}
    """The same, as means."""


class ExpressionDetails(Details):
    """Of expression predicted from patches."""

    num_genes: int = 0
    """Genes that were predicted."""
    pearson_by_gene: dict[str, float] = {}
    """Mean over the splits."""


class JudgedDetails(Details):
    """Of a task with classes, whose judged split says how good a model is."""

    classes: tuple[str, ...] = ()
    """In the order of their numbers."""
    judged_on: str = ""
    """The split: test, or val."""
    num_train: int = 0
    """Samples that were learned from."""
    num_val: int = 0
    """Samples that chose the epoch or step."""
    num_judged: int = 0
    """Samples that the figures are of."""
    confusion: tuple[tuple[int, ...], ...] = ()
    """Counts of all runs together: row the true class, column the predicted one."""
    group_confusions: dict[str, tuple[tuple[int, ...], ...]] = {}
    """The same of each patient or image; empty where they are too many, or samples are kept instead."""
    recall: dict[str, float | None] = {}
    """By class; null where it has no judged sample."""


class ClassifierDetails(JudgedDetails):
    """Of a classifier on embeddings."""

    class_counts: dict[str, int] = {}
    """Judged samples by class."""
    truth: tuple[int, ...] = ()
    """Class of each judged sample; empty where they are too many to keep."""
    predicted: tuple[tuple[int, ...], ...] = ()
    """Of each run, the class predicted for each judged sample."""
    patients: tuple[str, ...] = ()
    """Of each judged sample; empty unless all are known."""
    best_epoch: tuple[int, ...] = ()
    """Of each run, counted from 0."""
    validation_score: tuple[float, ...] = ()
    """Balanced accuracy on validation at the best epoch."""
    num_epochs: int = 0
    """Epochs of the longest run."""

    @field_validator("predicted", mode="before")
    @classmethod
    def _as_runs(cls, value: Any) -> Any:
        """One run may be given without the list around it."""
        return (
            [value]
            if isinstance(value, list | tuple) and value and isinstance(value[0], int)
            else value or ()
        )

    @field_validator("truth", "patients", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return () if value is None else value


class KnnDetails(ClassifierDetails):
    """Of nearest neighbours."""

    k: int = 0
    """Neighbours that voted: fewer than configured where the training split is smaller."""
    num_bank: int = 0
    """Samples that voted."""


class PatchesPerSlide(RecordPart):
    """How many patches slides gave."""

    min: int
    """Of the slide with the fewest."""
    mean: float
    """Over all slides."""
    max: int
    """Of the slide with the most."""


class SlideDetails(ClassifierDetails):
    """Of slides classified by attention over their patches."""

    patches_per_slide: PatchesPerSlide | None = None
    """Patches drawn from a slide."""
    seeds_at_once: int = 0
    """Runs that were trained together; no effect on the figures."""


class DecoderDescription(RecordPart):
    """All that is needed to train a decoder again; hyperparameters stand in the details."""

    name: str
    """Of the decoder."""
    version: int
    """Rises when the same name would be another decoder."""
    layers: str
    """What it is made of, from tokens to classes."""
    input: str
    """What it is given."""
    loss: str
    """What it is trained by."""
    optimizer: str
    """And how."""


class SegmentationDetails(JudgedDetails):
    """Of a decoder on patch tokens."""

    background: int | None = None
    """Class that the mean leaves out; null: none."""
    num_images: int = 0
    """Images of the dataset, those left out included."""
    class_pixels: dict[str, int] = {}
    """Judged pixels by class."""
    counted_classes: tuple[int, ...] = ()
    """Those whose mean is the Dice."""
    best_step: tuple[int, ...] = ()
    """Of each run, the step with the best validation."""
    validation_score: tuple[float | None, ...] = ()
    """Mean Dice on validation at the best step."""
    colors: dict[str, Annotated[str, Field(pattern="^#[0-9a-f]{6}$")]] = {}
    """Of the classes in the example picture, as #rrggbb."""
    decoder: DecoderDescription | None = None
    """What was trained."""


DETAILS: dict[str, type[Details]] = {
    "unsupervised": UnsupervisedDetails,
    "robustness": RobustnessDetails,
    "centres": CentresDetails,
    "knn": KnnDetails,
    "linear-probe": ClassifierDetails,
    "few-shot": ClassifierDetails,
    "slide": SlideDetails,
    "segmentation": SegmentationDetails,
    "scanners": ScannerDetails,
    "expression": ExpressionDetails,
}
"""By kind of task; `Details` for one that is not here."""
