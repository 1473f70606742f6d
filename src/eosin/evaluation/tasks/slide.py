"""Slide task: slides or patients classified by attention over patches, or linearly by their mean."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from eosin.config.heads import AbmilConfig
from eosin.config.presets import SlideLayout
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.task import Task, TaskContext, TaskProtocol, TaskResult, changes_from

if TYPE_CHECKING:
    from eosin.evaluation.datasets.slide_dataset import SlideDataset
    from eosin.evaluation.embeddings.slide_embed import Bags
    from eosin.evaluation.heads.abmil import SlideBags, SlidePart
    from eosin.evaluation.labelled import LabelledPart

# kaiko-eva 0.4.5, offline slide classification.
_EVA = {
    "num_epochs": 100, "batch_size": 32, "lr": 1e-3, "low_lr_epochs": 5, "weight_decay": 0.01, "num_runs": 20,
    "patience_epochs": 20, "projection_dim": 128, "attention_dim": 128, "hidden_dims": [128, 64],
}  # fmt: skip
# Share of the free memory of a GPU that embeddings may take.
_GPU_SHARE = 0.5


class SlidePatchesTask(Task):
    """Tasks on whole slides: where they lie, and which patches stand for them."""

    dataset: str
    """URI of a CSV of slides, or of a public dataset's folder."""
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

    def sampling(self) -> dict[str, Any]:
        """How patches are drawn, for the protocol."""
        return self.model_dump(mode="json", include={"mpp", "patch_px", "num_patches", "min_foreground"})

    @contextmanager
    def bags(self, dataset: Dataset, context: TaskContext) -> "Iterator[Bags]":
        """Embeddings of the patches of every slide, in a file that lasts as long as the context.

        Raises `UserError` where no slide can be read, `PermanentError` where none gives a patch.
        """
        from eosin.config.patches import GridConfig
        from eosin.evaluation.datasets.slide_dataset import SlideDataset
        from eosin.evaluation.embeddings.slide_embed import embed_slides, plan_slides

        assert isinstance(dataset, SlideDataset)
        config, log = context.config, context.log
        grid = GridConfig(mpp=self.mpp, patch_px=self.patch_px, min_foreground=self.min_foreground)
        plan = plan_slides(
            context.run_uri, config, dataset, grid, num_patches=self.num_patches, overrides=self.overrides,
            log=log,
        )  # fmt: skip
        context.told = {"num_dropped": len(plan.dropped), "dropped": plan.dropped, "unit": "slides"}
        if config.patches.stage_dir:
            Path(config.patches.stage_dir).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix="eosin-slides-", dir=config.patches.stage_dir) as folder:
            yield embed_slides(
                context.model, plan, store=context.store, folder=Path(folder),
                batch_size=config.evaluate.batch_size, log=log,
            )  # fmt: skip


class SlideTask(SlidePatchesTask):
    """Slides classified by attention over embeddings of patches on a grid in their tissue, or linearly."""

    headline: ClassVar[tuple[str, ...]] = ("balanced_accuracy",)

    kind: Literal["slide"]
    """Labels of whole slides."""
    layout: SlideLayout | None = None
    """Read `dataset` as this public dataset is published; None: it is a CSV with the columns slide and label
    (and split, patient, fold_0, fold_1 …), or a table of Patho-Bench, `k=all.tsv` beside `config.yaml`."""
    allow_subset: bool = False
    """Take fewer slides than the public dataset has; the record says so."""
    head: Literal["abmil", "linear"] = "abmil"
    """abmil: gated attention over patches; linear: scikit-learn's logistic regression on their mean."""
    by_patient: bool | None = None
    """Whether all slides of a patient are one bag, with one label; None: as Patho-Bench's table says, else
    each slide is its own."""
    folds: int | None = Field(default=None, ge=2, le=100)
    """Cross-validation over so many parts, whole patients together; None: the columns fold_0, fold_1 … of the
    table where it has them, else one split."""
    abmil: AbmilConfig = AbmilConfig()
    """How the attention is trained."""
    cost: float = Field(default=1.0, gt=0)
    """C of the logistic regression, the inverse of its L2 penalty."""

    def open(self, run_uri: str) -> "SlideDataset":
        """The slides with their labels; raises as `open_slides`, `by_patient` and `with_folds` do."""
        from eosin.evaluation.datasets.slide_dataset import by_patient, open_slides
        from eosin.evaluation.datasets.splits import with_folds

        found = open_slides(self.dataset, self.layout, allow_subset=self.allow_subset, slides_uri=self.slides)
        wanted = found.is_of_patients if self.by_patient is None else self.by_patient
        found = by_patient(found) if wanted else replace(found, is_of_patients=False)
        return with_folds(found, self.folds) if self.folds else found

    def protocol(self) -> TaskProtocol:
        own = {"by_patient": self.by_patient, "folds": self.folds}
        changes = changes_from({"by_patient": None, "folds": None}, own, source="usual")
        if self.head == "linear":
            return TaskProtocol(
                "slide-linear-mean", 1, changes, {**self.sampling(), **own, "cost": self.cost}
            )
        values = self.abmil.model_dump(mode="json", exclude={"max_step_gib"})
        changes = (*changes_from(_EVA, values), *changes)
        return TaskProtocol("slide-abmil-gated", 2, changes, {**self.sampling(), **own, **values})

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """Accuracies over runs; raises as `bags`, or where nothing is to be told apart."""
        from eosin.evaluation.datasets.slide_dataset import SlideDataset, patient_or_slide

        assert isinstance(dataset, SlideDataset)
        with self.bags(dataset, context) as bags:
            if dataset.is_of_patients:
                bags = bags.merged([patient_or_slide(dataset.samples[row]) for row in bags.rows])
            return _judge(self, dataset, bags, seed=context.config.seed)


def _judge(task: SlideTask, dataset: "SlideDataset", bags: "Bags", *, seed: int) -> TaskResult:
    import numpy as np

    from eosin.evaluation.embeddings.embed import Embeddings
    from eosin.evaluation.heads.abmil import train_abmil
    from eosin.evaluation.heads.linear import logistic_regression
    from eosin.evaluation.labelled import Labelled, judge_folds, split_folds
    from eosin.records.details import LeftOut, PatchesPerSlide, SlideDetails

    is_linear = task.head == "linear"
    pooled = bags.means() if is_linear else np.empty((len(bags.rows), 0), dtype=np.float32)
    # Slides take the place of images here; their patches stay where they are.
    splits = split_folds(dataset, Embeddings(pooled, bags.rows, bags.num_dropped, bags.dropped))
    on_device = None if is_linear else _on_device(bags)

    def learn(parts: Labelled) -> tuple[Any, dict[str, Any]]:
        num_classes = len(parts.class_names)
        if on_device is None:
            bank = parts.bank
            return logistic_regression(
                bank.features, bank.classes, parts.judged.features, num_classes=num_classes, cost=task.cost
            )[None], {}
        train, val, judged = (_part(part) for part in (parts.train, parts.val, parts.judged))
        trained = train_abmil(on_device, train, val, judged, num_classes, task.abmil, seed=seed)
        return trained.probabilities.cpu().numpy(), {
            "notes": () if len(val) else ("no validation slides: the last epoch is judged, not the best",),
            "best_epoch": trained.best_epoch,
            "validation_score": trained.best_score,
            "num_epochs": trained.num_epochs,
            "seeds_at_once": trained.seeds_at_once,
        }

    found, sizes = judge_folds(splits, learn), np.diff(bags.starts)
    details = SlideDetails(
        **found.told,
        unit="patients" if dataset.is_of_patients else "slides",
        patches_per_slide=PatchesPerSlide(
            min=int(sizes.min()), mean=float(sizes.mean()), max=int(sizes.max())
        ),
        num_dropped=bags.num_dropped,
        dropped=tuple(LeftOut.model_validate(each) for each in bags.dropped),
    )
    return TaskResult(found.metrics, details, bags.num_patches)


def _on_device(bags: "Bags") -> "SlideBags":
    """On the GPU where there is one with room for them; else they stay in their file."""
    import torch

    from eosin.evaluation.heads.abmil import SlideBags

    features = torch.from_numpy(bags.features)
    if torch.cuda.is_available():
        free_bytes, _ = torch.cuda.mem_get_info()
        if bags.features.nbytes < _GPU_SHARE * free_bytes:
            features = features.cuda()
    return SlideBags(features, torch.from_numpy(bags.starts))


def _part(part: "LabelledPart") -> "SlidePart":
    import torch

    from eosin.evaluation.heads.abmil import SlidePart

    return SlidePart(torch.from_numpy(part.places), torch.from_numpy(part.classes))
