"""The linear-probe task: eva's protocol on stored embeddings."""

from __future__ import annotations

import numpy as np
import torch

from eosin.config.evaluate import LinearProbeTask
from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.embeddings.embed import Embeddings
from eosin.evaluation.tasks.outcome import LabelledPart, Outcome, classifier_metrics, judge, labelled
from eosin.evaluation.tasks.probe import Part, train_probes


def run_linear_probe(
    task: LinearProbeTask, dataset: Dataset, embeddings: Embeddings, *, seed: int
) -> Outcome:
    """Balanced accuracy over `num_runs` seeds. Raises `UserError` where there is nothing to tell apart."""
    parts = labelled(dataset, embeddings)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    train, val, judged = (_part(part, device) for part in (parts.train, parts.val, parts.judged))
    try:
        probes = train_probes(train, val, len(parts.class_names), task.probe, seed=seed)
    except ValueError as error:
        raise UserError(f"{dataset.uri}: {error}", hint="lower probe.num_shots") from error
    probabilities = probes.probabilities(judged.features).cpu().numpy()
    confusions, details = judge(parts, list(probabilities.argmax(axis=-1)))
    if not len(val):
        details["notes"].append("no validation images: the last epoch is judged, not the best")
    details |= {
        "best_epoch": list(probes.best_epoch),
        "validation_balanced_accuracy": list(probes.best_score),
        "num_epochs": probes.num_epochs,
    }
    return Outcome(classifier_metrics(parts.judged.classes, probabilities, confusions), details)


def _part(part: LabelledPart, device: torch.device) -> Part:
    features = np.ascontiguousarray(part.features, dtype=np.float32)
    return Part(torch.from_numpy(features).to(device), torch.from_numpy(part.classes).to(device))
