"""Linear-probe task: eva's protocol on stored embeddings."""

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from eosin.config.heads import ProbeConfig
from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.task import LabelledImagesTask, TaskContext, TaskProtocol, TaskResult, changes_from

if TYPE_CHECKING:
    import torch

    from eosin.evaluation.heads.linear import Part
    from eosin.evaluation.labelled import LabelledPart

# kaiko-eva 0.4.5, offline patch classification.
_EVA = {
    "num_steps": 12_500, "batch_size": 256, "lr": 3e-4, "low_lr_epochs": 5, "weight_decay": 0.01,
    "num_runs": 5,
}  # fmt: skip
_EVA_SHOTS, _EVA_SHOTS_RUNS = 10, 50


class LinearProbeTask(LabelledImagesTask):
    """A linear layer on frozen embeddings, several runs that differ in initialisation and order."""

    headline: ClassVar[tuple[str, ...]] = ("balanced_accuracy",)

    kind: Literal["linear-probe"]
    """A linear head on frozen features."""
    probe: ProbeConfig = ProbeConfig()
    """How the head is trained."""

    def protocol(self) -> TaskProtocol:
        """Called eva's only where nothing is changed."""
        values = self.probe.model_dump(mode="json")
        changes = _changes(values)
        changes += (f"folds {self.folds} (eva: one split)",) if self.folds else ()
        return TaskProtocol("linear-probe" if changes else "linear-probe-eva", 2, changes, values)

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """Accuracies over `probe.num_runs` runs. Raises `UserError` where there is nothing to tell apart."""
        import torch

        from eosin.evaluation.heads.linear import train_probes
        from eosin.evaluation.labelled import Labelled, judge_folds, split_folds
        from eosin.records.details import ClassifierDetails

        embeddings = context.embed(dataset)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

        def learn(parts: Labelled) -> tuple[Any, dict[str, Any]]:
            train, val, judged = (_part(part, device) for part in (parts.train, parts.val, parts.judged))
            try:
                probes = train_probes(
                    train, val, len(parts.class_names), self.probe, seed=context.config.seed
                )
            except ValueError as error:
                raise UserError(f"{dataset.uri}: {error}", hint="lower probe.num_shots") from error
            notes = () if len(val) else ("no validation images: the last epoch is judged, not the best",)
            return probes.probabilities(judged.features).cpu().numpy(), {
                "notes": notes,
                "best_epoch": probes.best_epoch,
                "validation_score": probes.best_score,
                "num_epochs": probes.num_epochs,
            }

        found = judge_folds(split_folds(dataset, embeddings), learn)
        details = ClassifierDetails(**embeddings.told(), **found.told)
        return TaskResult(found.metrics, details, len(embeddings.rows))


def _part(part: "LabelledPart", device: "torch.device") -> "Part":
    import numpy as np
    import torch

    from eosin.evaluation.heads.linear import Part

    features = np.ascontiguousarray(part.features, dtype=np.float32)
    return Part(torch.from_numpy(features).to(device), torch.from_numpy(part.classes).to(device))


def _changes(values: dict[str, Any]) -> tuple[str, ...]:
    shots = values["num_shots"]
    if shots is None:
        return changes_from(_EVA, values)
    changes = changes_from({**_EVA, "num_runs": _EVA_SHOTS_RUNS}, values)
    return changes if shots == _EVA_SHOTS else (*changes, f"num_shots {shots} (eva: all, or {_EVA_SHOTS})")
