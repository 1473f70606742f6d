"""Centres task: are a patch's neighbours of its tissue, or from its hospital?"""

from collections import Counter, defaultdict
from collections.abc import Mapping
from functools import reduce
from operator import add
from typing import TYPE_CHECKING, ClassVar, Literal, Self

from pydantic import Field, model_validator

from eosin.config.presets import PRESETS, CentreLayout
from eosin.errors import PermanentError, UserError
from eosin.evaluation.datasets.dataset import Dataset
from eosin.evaluation.task import Task, TaskContext, TaskProtocol, TaskResult, changes_from
from eosin.records import MetricValue
from eosin.records.details import CentresDetails
from eosin.storage import join_uri
from eosin.words import counted

if TYPE_CHECKING:
    from eosin.evaluation.datasets.public.pathorob import CentreDataset, CentrePatch
    from eosin.evaluation.embeddings.embed import Features
    from eosin.metrics.centres import NeighbourCounts


class CentreTask(Task):
    """Do embeddings group by tissue or by where the slide was made? PathoROB's figures, on any set."""

    headline: ClassVar[tuple[str, ...]] = ("robustness_index",)

    kind: Literal["centres"]
    """Whether neighbours share tissue or centre."""
    dataset: str
    """URI of a table of images with the columns label (tissue) and centre, or of a folder of Parquet."""
    layout: CentreLayout | None = None
    """Follow PathoROB's designs for this set of it; None: every patch of the table counts."""
    metadata: str = ""
    """URI of PathoROB's tables, data/metadata of its repository; empty: metadata/ inside `dataset`."""
    k: int = Field(default=10, ge=1)
    """Neighbours that are looked at; those of the same patient (with `layout`: slide) are passed over."""
    paired: bool = False
    """Count within each `subset` of the table alone: two classes from two centres, as PathoROB has TCGA."""
    num_clusterings: int = Field(default=0, ge=0)
    """Starts of k-means for the clustering score; 0: none is computed. PathoROB: 50."""
    num_drop_trials: int = Field(default=0, ge=0)
    """Trials of the average performance drop, with `layout` alone; 0: none. PathoROB: 20."""

    @model_validator(mode="after")
    def _designs_need_layout(self) -> Self:
        if self.metadata and not self.layout:
            raise ValueError("metadata needs layout: the tables are of PathoROB's designs")
        if self.num_drop_trials and not self.layout:
            raise ValueError("num_drop_trials needs layout: the drop is of PathoROB's training sets")
        return self

    def open(self, run_uri: str) -> "CentreDataset":
        """The patches, and which of them each figure is of; raises as `open_centres` and `open_pathorob`."""
        from eosin.evaluation.datasets.public.pathorob import open_centres, open_pathorob

        if self.layout:
            metadata = self.metadata or join_uri(self.dataset, "metadata")
            return open_pathorob(self.dataset, metadata, self.layout)
        return open_centres(self.dataset)

    def protocol(self) -> TaskProtocol:
        values = self.model_dump(mode="json", include={"k", "paired", "num_clusterings", "num_drop_trials"})
        if self.layout is None:
            return TaskProtocol("centres-neighbours", 2, hyperparameters=values)
        usual = {name: PRESETS[self.layout][name] for name in values}
        return TaskProtocol("pathorob", 1, changes_from(usual, values, source="PathoROB"), values)

    def run(self, dataset: Dataset, context: TaskContext) -> TaskResult:
        """PathoROB's figures, and the index at each magnification alone.

        Raises `UserError` where labels or centres are missing or all one, `PermanentError` where no neighbour
        tells anything.
        """
        from eosin.evaluation.datasets.public.pathorob import OUTSIDE, CentreDataset

        assert isinstance(dataset, CentreDataset)
        embeddings = context.embed(dataset)
        place = {row: i for i, row in enumerate(embeddings.rows.tolist())}
        there = {name: [p for p in patches if p.row in place] for name, patches in dataset.designs.items()}
        patches = [patch for patch in there["index"] if patch.subset != OUTSIDE]
        _require_two(dataset, "label", {patch.label for patch in patches})
        _require_two(dataset, "centre", {patch.centre for patch in patches})
        features = embeddings.features
        found = self._count(dataset, features, place, patches)
        if found.robustness_index is None:
            raise PermanentError(f"{dataset.uri}: no neighbour is of another class or another centre")
        metrics = {
            "robustness_index": MetricValue.of([found.robustness_index]),
            "same_class_neighbours": MetricValue.of([found.same_class]),
            "same_centre_neighbours": MetricValue.of([found.same_centre], higher_is_better=False),
            **self._clustering(features, place, there["clustering"]),
            **self._drops(dataset, features, place, there.get("drop", [])),
        }
        cells = Counter((patch.label, patch.centre) for patch in patches)
        labels, centres = sorted({p.label for p in patches}), sorted({p.centre for p in patches})
        fewer = f"k is {self.k}, but patches have fewer others, all of which count whatever the model"
        details = CentresDetails(
            **embeddings.told(),
            k=self.k,
            num_samples=len(patches),
            counts={label: {centre: cells[label, centre] for centre in centres} for label in labels},
            by_mpp={} if self.layout else self._by_mpp(dataset, features, place, patches),
            notes=(
                *((fewer,) if found.total < self.k * len(patches) else ()),
                *(self._drop_notes(dataset, len(there.get("drop", ()))) if self.layout
                  else _notes(dataset, labels, centres, cells, len(place))),
            ),
        )  # fmt: skip
        return TaskResult(metrics, details, len(embeddings.rows))

    def _count(
        self,
        dataset: "CentreDataset",
        features: "Features",
        place: Mapping[int, int],
        patches: "list[CentrePatch]",
    ) -> "NeighbourCounts":
        from eosin.metrics.centres import count_neighbours

        subsets = {patch.subset if self.paired else "" for patch in patches}
        counts = []
        for subset in sorted(subsets):
            part = [patch for patch in patches if not self.paired or patch.subset == subset]
            try:
                counts.append(
                    count_neighbours(
                        features[[place[p.row] for p in part]], [p.label for p in part],
                        [p.centre for p in part], groups=[p.slide for p in part], k=self.k,
                    )
                )  # fmt: skip
            except ValueError as error:
                raise PermanentError(
                    f"the embeddings of {dataset.uri} cannot be compared: {error}"
                ) from error
        return reduce(add, counts)

    def _clustering(
        self, features: "Features", place: Mapping[int, int], patches: "list[CentrePatch]"
    ) -> dict[str, MetricValue]:
        from eosin.evaluation.datasets.public.pathorob import OUTSIDE
        from eosin.metrics.centres import clustering_score

        inside = [patch for patch in patches if patch.subset != OUTSIDE]
        if not self.num_clusterings:
            return {}
        score = clustering_score(
            features[[place[p.row] for p in inside]], [p.label for p in inside], [p.centre for p in inside],
            num_trials=self.num_clusterings,
        )  # fmt: skip
        return {"clustering_score": MetricValue.of([score])} if score is not None else {}

    def _drops(
        self,
        dataset: "CentreDataset",
        features: "Features",
        place: Mapping[int, int],
        patches: "list[CentrePatch]",
    ) -> dict[str, MetricValue]:
        from eosin.evaluation.datasets.public.pathorob import OUTSIDE
        from eosin.metrics.centres import DROP_DESIGNS, performance_drops

        if not self.num_drop_trials or not self.layout or self._lacks_drop(dataset, len(patches)):
            return {}
        cells: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
        for patch in patches:
            if patch.subset != OUTSIDE:
                cells[patch.centre, patch.label].append((place[patch.row], patch.slide))
        outside = [(place[patch.row], patch.label) for patch in patches if patch.subset == OUTSIDE]
        drops = performance_drops(
            features, cells, outside, DROP_DESIGNS[self.layout], num_trials=self.num_drop_trials,
            test_cases=dataset.test_cases,
        )  # fmt: skip
        names = ("performance_drop_in_domain", "performance_drop_out_of_domain")
        return {name: MetricValue.of(values) for name, values in zip(names, drops, strict=True)}

    def _lacks_drop(self, dataset: "CentreDataset", num_there: int) -> bool:
        """Whether training sets of whole slides cannot be made: a patch is missing or cannot be read."""
        return not dataset.is_whole or num_there < len(dataset.designs["drop"])

    def _drop_notes(self, dataset: "CentreDataset", num_there: int) -> list[str]:
        lacks = self.num_drop_trials and self._lacks_drop(dataset, num_there)
        return ["no average performance drop: it needs every patch of the set"] if lacks else []

    def _by_mpp(
        self,
        dataset: "CentreDataset",
        features: "Features",
        place: Mapping[int, int],
        patches: "list[CentrePatch]",
    ) -> dict[str, dict[str, float]]:
        """At each magnification that has patches of two patients; empty where there is only one."""
        found: dict[str, dict[str, float]] = {}
        of = [dataset.samples[patch.row].mpp for patch in patches]
        for mpp in sorted({each for each in of if each is not None}):
            part = [patch for patch, each in zip(patches, of, strict=True) if each == mpp]
            if len({patch.slide for patch in part}) > 1:
                index = self._count(dataset, features, place, part).robustness_index
                found[f"{mpp:g}"] = {} if index is None else {"robustness_index": index}
        return found if len(found) > 1 else {}


def _require_two(dataset: Dataset, column: str, names: set[str]) -> None:
    if len(names) < 2:
        found = ", ".join(names) or "none"
        raise UserError(
            f"{dataset.uri} has {counted(len(names), column)} ({found}); two are needed",
            hint="give a table with the columns path, label and centre",
        )


def _notes(
    dataset: "CentreDataset",
    labels: list[str],
    centres: list[str],
    cells: Counter[tuple[str, str]],
    num_embedded: int,
) -> list[str]:
    absent = [f"{label} from {centre}" for label in labels for centre in centres if not cells[label, centre]]
    notes = [f"no patch of {', '.join(absent)}: the index is lower or higher for it"] if absent else []
    if unknown := num_embedded - sum(cells.values()):
        notes.append(f"left out: {counted(unknown, 'patch')} without label or centre")
    if not all(sample.patient or sample.columns.get("slide_id") for sample in dataset.samples):
        notes.append("not every patch has a patient: neighbours may be of the same one")
    return notes
