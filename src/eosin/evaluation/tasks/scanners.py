"""Scanner task: does tissue keep its embedding on another scanner, or in another stain?"""

from collections import defaultdict
from itertools import combinations
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.task import Task, TaskContext, TaskProtocol, TaskResult
from eosin.records import MetricValue
from eosin.records.details import ScannerDetails

if TYPE_CHECKING:
    from eosin.metrics.embeddings import Registered

_COLUMNS = ("stain", "scanner", "location")
_GROUPS = {"across_scanners": (True, False), "across_stains": (False, True), "across_both": (True, True)}


class ScannerTask(Task):
    """Registered slides of the same tissue by several scanners and stains, every two compared, as PLISM."""

    headline: ClassVar[tuple[str, ...]] = ("plism_score",)
    has_labels: ClassVar[bool] = False

    kind: Literal["scanners"]
    """Agreement of the same tissue over scanners and stains."""
    dataset: str
    """URI of a table of images with the columns path, label (anything), stain, scanner and location: what is
    at one location is the same tissue on every slide."""
    top_k: tuple[Annotated[int, Field(ge=1)], ...] = Field(default=(1, 3, 5, 10), min_length=1)
    """Among how many nearest of both slides the same tissue is looked for."""

    def open(self, run_uri: str) -> Dataset:
        """The table with its columns. Raises `UserError` as `open_dataset` does."""
        from eosin.evaluation.datasets.open_dataset import open_dataset

        return open_dataset(self.dataset, columns=_COLUMNS)

    def protocol(self) -> TaskProtocol:
        return TaskProtocol("plism-registered", 1, hyperparameters={"top_k": list(self.top_k)})

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """Medians over pairs of slides, and PLISM's score, the mean of four of them.

        Raises `UserError` where a column is empty, a place stands twice, or two slides share too few places.
        """
        import numpy as np

        from eosin.metrics.embeddings import registered_figures

        embeddings = context.embed(dataset)
        slides = self._slides(dataset, embeddings.rows.tolist())
        found: dict[str, list[Registered]] = defaultdict(list)
        for ((stain, scanner), one), ((stain2, scanner2), two) in combinations(sorted(slides.items()), 2):
            shared = sorted(one.keys() & two.keys())
            if len(shared) <= max(self.top_k):
                raise UserError(
                    f"{dataset.uri}: {stain} {scanner} and {stain2} {scanner2} share too few "
                    f"locations: {len(shared)}, more than {max(self.top_k)} are needed"
                )
            first, second = (embeddings.features[[slide[place] for place in shared]] for slide in (one, two))
            pair = registered_figures(first, second, self.top_k)
            differs = (scanner != scanner2, stain != stain2)
            for group in ("all", *(name for name, kind in _GROUPS.items() if kind == differs)):
                found[group].append(pair)
        figures = {
            group: {name: [float(f([each[name] for each in pairs])) for f in (np.median, np.mean)]
                    for name in pairs[0]}
            for group, pairs in found.items()
        }  # fmt: skip
        best = f"top{max(self.top_k)}_accuracy"
        medians = {"cosine_similarity": figures["all"]["cosine_similarity"][0]}
        medians |= {f"{best}_{group}": figures[group][best][0] for group in _GROUPS if group in figures}
        if len(medians) == 1 + len(_GROUPS):
            medians["plism_score"] = float(np.mean(list(medians.values())))
        details = ScannerDetails(
            **embeddings.told(),
            num_slides=len(slides),
            num_pairs={group: len(pairs) for group, pairs in found.items()},
            medians={g: {name: each[0] for name, each in f.items()} for g, f in figures.items()},
            means={g: {name: each[1] for name, each in f.items()} for g, f in figures.items()},
            notes=tuple(f"no two slides differ {group.replace('_', ' ')} alone" for group in _GROUPS
                        if group not in figures),
        )  # fmt: skip
        metrics = {name: MetricValue.of([value]) for name, value in medians.items()}
        return TaskResult(metrics, details, len(embeddings.rows))

    def _slides(self, dataset: Dataset, rows: list[int]) -> dict[tuple[str, str], dict[str, int]]:
        """Of each stain and scanner, the place in the embeddings of each location."""
        slides: dict[tuple[str, str], dict[str, int]] = defaultdict(dict)
        for place, row in enumerate(rows):
            sample = dataset.samples[row]
            stain, scanner, location = (sample.columns[name] for name in _COLUMNS)
            if not (stain and scanner and location):
                empty = [name for name in _COLUMNS if not sample.columns[name]]
                raise UserError(f"{dataset.uri}: {sample.source} has no {', no '.join(empty)}")
            if location in slides[stain, scanner]:
                raise UserError(f"{dataset.uri}: {stain} {scanner} has the location {location} twice")
            slides[stain, scanner][location] = place
        if len(slides) < 2:
            raise UserError(f"{dataset.uri} has one stain and scanner only: there is nothing to compare")
        return slides
