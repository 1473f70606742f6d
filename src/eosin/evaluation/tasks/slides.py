"""The slide task: gated attention over stored embeddings of patches, many seeds at once."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch

from eosin.config import RunConfig
from eosin.config.evaluate import SlideTask
from eosin.evaluation.datasets.slide_dataset import SlideDataset
from eosin.evaluation.embeddings.embed import Embeddings
from eosin.evaluation.embeddings.slide_embed import Bags, embed_slides
from eosin.evaluation.embeddings.slide_patches import plan_slides
from eosin.evaluation.subject import Subject
from eosin.evaluation.tasks.abmil import SlideBags, SlidePart, train_abmil
from eosin.evaluation.tasks.outcome import LabelledPart, Outcome, classifier_metrics, judge, labelled
from eosin.observability import RunLog
from eosin.storage import Store

# Share of the free memory of a GPU that embeddings may take.
_GPU_SHARE = 0.5


def run_slides(
    run_uri: str,
    config: RunConfig,
    task: SlideTask,
    dataset: SlideDataset,
    subject: Subject,
    *,
    store: Store,
    log: RunLog,
) -> tuple[Outcome, int]:
    """Balanced accuracy over `abmil.num_runs` seeds, and how many patches were embedded.

    Raises `UserError` where no slide can be read or there is nothing to tell apart.
    """
    plan = plan_slides(run_uri, config, task, dataset, log=log)
    if config.patches.stage_dir:
        Path(config.patches.stage_dir).mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="eosin-slides-", dir=config.patches.stage_dir) as folder:
        bags = embed_slides(
            subject, plan, store=store, folder=Path(folder), batch_size=config.evaluate.batch_size, log=log
        )
        outcome = _judge(task, dataset, bags, seed=config.seed)
    return outcome, bags.num_patches


def _judge(task: SlideTask, dataset: SlideDataset, bags: Bags, *, seed: int) -> Outcome:
    # Slides take the place of images here; their patches stay where they are.
    slides = Embeddings(
        np.empty((len(bags.rows), 0), dtype=np.float32), bags.rows, bags.num_dropped, bags.dropped
    )
    parts = labelled(dataset, slides)
    on_device = _on_device(bags)
    train, val, judged = (_part(part) for part in (parts.train, parts.val, parts.judged))
    num_classes = len(parts.class_names)
    trained = train_abmil(on_device, train, val, judged, num_classes, task.abmil, seed=seed)
    probabilities = trained.probabilities.cpu().numpy()
    confusions, details = judge(parts, list(probabilities.argmax(axis=-1)))
    if not len(parts.val.samples):
        details["notes"].append("no validation slides: the last epoch is judged, not the best")
    sizes = np.diff(bags.starts)
    details |= {
        "unit": "slides",
        "best_epoch": list(trained.best_epoch),
        "validation_balanced_accuracy": list(trained.best_score),
        "num_epochs": trained.num_epochs,
        "seeds_at_once": trained.seeds_at_once,
        "patches_per_slide": {"min": int(sizes.min()), "mean": float(sizes.mean()), "max": int(sizes.max())},
        "num_dropped": bags.num_dropped,
        "dropped": list(bags.dropped),
    }
    return Outcome(classifier_metrics(parts.judged.classes, probabilities, confusions), details)


def _on_device(bags: Bags) -> SlideBags:
    """On the GPU where there is one with room for them; else they stay in their file."""
    features = torch.from_numpy(bags.features)
    if torch.cuda.is_available():
        free_bytes, _ = torch.cuda.mem_get_info()
        if bags.features.nbytes < _GPU_SHARE * free_bytes:
            features = features.cuda()
    return SlideBags(features, torch.from_numpy(bags.starts))


def _part(part: LabelledPart) -> SlidePart:
    return SlidePart(torch.from_numpy(part.places), torch.from_numpy(part.classes))
