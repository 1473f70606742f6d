"""Few-shot task: SimpleShot with k images a class, many draws each."""

from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.task import LabelledImagesTask, TaskContext, TaskProtocol, TaskResult
from eosin.records import MetricValue
from eosin.words import counted


class FewShotTask(LabelledImagesTask):
    """The nearest class mean of k training images a class, after centring and L2 normalisation."""

    headline: ClassVar[tuple[str, ...]] = ("balanced_accuracy",)

    kind: Literal["few-shot"]
    """SimpleShot."""
    shots: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 2, 4, 8, 16), min_length=1)
    """Images of each class; the headline is of the most. Numbers that a class does not have are left out."""
    num_draws: int = Field(default=50, ge=1)
    """Draws of each number; figures are their mean."""

    def protocol(self) -> TaskProtocol:
        return TaskProtocol(
            "simpleshot-cl2n", 1, hyperparameters={"shots": list(self.shots), "num_draws": self.num_draws}
        )

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """Balanced accuracy by number of shots, and all figures of the most. Raises `UserError`."""
        import numpy as np

        from eosin.evaluation.heads.runs import run_seed
        from eosin.evaluation.labelled import Labelled, judge_folds, split_folds
        from eosin.metrics.embeddings import simple_shot
        from eosin.records.details import ClassifierDetails

        embeddings = context.embed(dataset)
        splits = split_folds(dataset, embeddings)
        names = splits[0].class_names
        counts = np.min([np.bincount(parts.bank.classes, minlength=len(names)) for parts in splits], axis=0)
        fewest = int(counts.min())
        shots = sorted({k for k in self.shots if k <= fewest})
        if not shots:
            raise UserError(
                f"{dataset.uri}: {names[counts.argmin()]} has {counted(fewest, 'training image')}, "
                f"{min(self.shots)} shots are wanted",
                hint="lower shots, or give more images" if fewest else "give images of it, or leave it out",
            )

        def learn(parts: Labelled, k: int) -> tuple[Any, dict[str, Any]]:
            bank, asked = parts.bank, parts.judged.features
            draws = [
                simple_shot(
                    bank.features, bank.classes, asked, shots=k, seed=run_seed(context.config.seed, n)
                )
                for n in range(self.num_draws)
            ]
            return np.stack(draws), {}

        metrics: dict[str, MetricValue] = {}
        for k in shots:
            found = judge_folds(splits, partial(learn, k=k), calibrated=False)
            metrics[f"balanced_accuracy_{k}_shot"] = found.metrics["balanced_accuracy"]
        left_out = sorted(set(self.shots) - set(shots))
        notes = [f"too few training images for {left_out} shots"] if left_out else []
        told = {**found.told, **embeddings.told(), "notes": (*found.told["notes"], *notes)}
        return TaskResult({**found.metrics, **metrics}, ClassifierDetails(**told), len(embeddings.rows))
