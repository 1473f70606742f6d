"""Expression task: genes at spots predicted from patches by PCA and ridge, as HEST-Bench does."""

from collections import defaultdict
from typing import TYPE_CHECKING, ClassVar, Literal

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.task import Task, TaskContext, TaskProtocol, TaskResult
from eosin.records import MetricValue
from eosin.records.details import ExpressionDetails

if TYPE_CHECKING:
    from eosin.evaluation.datasets.public.hest import ExpressionDataset


class ExpressionTask(Task):
    """Pearson's correlation of predicted and measured expression, over genes and the given splits."""

    headline: ClassVar[tuple[str, ...]] = ("pearson",)

    kind: Literal["expression"]
    """Expression of genes."""
    dataset: str
    """URI of a task of HEST-Bench: splits/, patches/, adata/ and var_50genes.json."""

    def open(self, run_uri: str) -> "ExpressionDataset":
        """Patches and expression; raises as `open_hest` does."""
        from eosin.evaluation.datasets.public.hest import open_hest

        return open_hest(self.dataset)

    def protocol(self) -> TaskProtocol:
        return TaskProtocol(
            "hest-pca-ridge", 1, hyperparameters={"num_components": 256, "alpha": "100 / (D·G)"}
        )

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """One figure a split. Raises `UserError` where a split has no patch, or no gene that varies."""
        import numpy as np

        from eosin.evaluation.datasets.public.hest import ExpressionDataset
        from eosin.metrics.intervals import interval_over_folds
        from eosin.metrics.regression import ridge_correlations

        assert isinstance(dataset, ExpressionDataset)
        embeddings = context.embed(dataset)
        targets = dataset.expression[embeddings.rows]
        samples = [dataset.samples[row] for row in embeddings.rows]
        by_gene: dict[str, list[float]] = defaultdict(list)
        values, shares, constant = [], [], set()
        for fold in range(len(samples[0].folds)):
            sides = np.array([sample.folds[fold] for sample in samples])
            train, test = np.flatnonzero(sides == "train"), np.flatnonzero(sides == "test")
            if not len(train) or len(test) < 2:
                raise UserError(
                    f"{dataset.uri}: split {fold} has {len(train)} and {len(test)} readable patches"
                )
            found = ridge_correlations(
                embeddings.features[train], targets[train], embeddings.features[test], targets[test]
            )
            known = np.isfinite(found)
            if not known.any():
                raise UserError(f"{dataset.uri}: no gene varies over the test patches of split {fold}")
            values.append(float(found[known].mean()))
            shares.append(len(test) / len(train))
            constant |= {gene for gene, each in zip(dataset.genes, known, strict=True) if not each}
            for gene, value in zip(dataset.genes, found, strict=True):
                by_gene[gene] += [float(value)] if np.isfinite(value) else []
        interval = interval_over_folds(values, float(np.mean(shares)), low=-1) if len(values) > 2 else None
        notes = f"left out where they do not vary over the tested patches: {', '.join(sorted(constant))}"
        details = ExpressionDetails(
            **embeddings.told(),
            num_folds=len(values),
            num_genes=len(dataset.genes),
            pearson_by_gene={gene: float(np.mean(each)) for gene, each in by_gene.items() if each},
            intervals={"pearson": interval} if interval else {},
            interval_over=f"{len(values)} splits of {len({s.patient for s in samples})} samples",
            notes=(notes,) if constant else (),
        )
        return TaskResult({"pearson": MetricValue.of(values)}, details, len(embeddings.rows))
