"""Cells of slides by cluster of an earlier teacher's features; each branch of their tree is drawn alike."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.config.patches import CurationConfig
from eosin.errors import PermanentError, UserError
from eosin.index.columns import made_once
from eosin.index.snapshot import Snapshot
from eosin.layout import ClustersLayout
from eosin.patches.sampling.counter_rng import Float64
from eosin.records import load_record
from eosin.records.index import ClustersManifest
from eosin.records.parquet import read_table
from eosin.storage import open_store

Array = npt.NDArray[Any]
# Rises when the same clusters and slides would give other arrays.
_FORM = 1


@dataclass(frozen=True)
class ClusterCells:
    """Squares of tissue by cluster, and within one by slide; arrays that the workers of a node map."""

    manifest: ClustersManifest
    cumulative: Float64
    """Cumulative weights of the finest clusters, ending at 1, [k]."""
    starts: Array
    """Where each cluster's cells begin, [k + 1]."""
    rows: Array
    """Row of the snapshot of each cell, [n], rising within a cluster."""
    x_px: Array
    """Left edges in the level-0 frame, [n]."""
    y_px: Array
    """Top edges in the level-0 frame, [n]."""

    def pick(self, cluster: float, member: float) -> range:
        """The cells of one cluster in one slide: `cluster` in [0, 1) draws the cluster by weight, `member` a
        cell of it uniformly, and with it the slide."""
        number = int(np.searchsorted(self.cumulative, cluster, side="right"))
        start, stop = int(self.starts[number]), int(self.starts[number + 1])
        rows = self.rows[start:stop]
        row = rows[int(member * len(rows))]
        first, last = (int(np.searchsorted(rows, row, side=side)) for side in ("left", "right"))
        return range(start + first, start + last)


def open_clusters(config: CurationConfig, snapshot: Snapshot, slides: npt.NDArray[np.int64]) -> ClusterCells:
    """The published clusters, of the cells in `slides` (rows of `snapshot`) that are as they were clustered.

    Raises `UserError` where no clusters lie there, or none of their cells in these slides; `PermanentError`
    where they are damaged.
    """
    store = open_store(config.clusters)
    manifest = load_record(ClustersManifest, store, ClustersLayout.MANIFEST)
    if manifest is None:
        raise UserError(
            f"patches.curation.clusters: {ClustersLayout.MANIFEST} is not at {config.clusters}",
            hint="`eosin curate` publishes it",
        )
    asked = f"{_FORM} {manifest.cells_sha256} {snapshot.manifest.rows_sha256} {config.max_oversampling} "
    name = hashlib.sha256(asked.encode() + np.asarray(slides, np.int64).tobytes()).hexdigest()[:32]

    def make(folder: Path) -> None:
        data = store.get(ClustersLayout.CELLS)
        if hashlib.sha256(data).hexdigest() != manifest.cells_sha256:
            raise PermanentError(f"{config.clusters}/{ClustersLayout.CELLS} is damaged", hint="curate anew")
        arrays = _arrays(read_table(data), manifest, snapshot, slides, config.max_oversampling)
        for each, array in arrays.items():
            np.save(folder / f"{each}.npy", array)

    folder = made_once(f"clusters-{name}", make)
    names = ("cumulative", "starts", "rows", "x_px", "y_px")
    return ClusterCells(manifest, *(np.load(folder / f"{each}.npy", mmap_mode="r") for each in names))


def _arrays(
    table: Any, manifest: ClustersManifest, snapshot: Snapshot, slides: Array, max_oversampling: float
) -> dict[str, Array]:
    numbers = dict(zip(snapshot.rows.texts("digest", slides), slides.tolist(), strict=True))
    coded = table["digest"].combine_chunks()
    of_code = np.array([numbers.get(digest, -1) for digest in coded.dictionary.to_pylist()], np.int64)
    rows = of_code[coded.indices.to_numpy()]
    clusters = table["cluster"].to_numpy()
    order = np.lexsort((rows, clusters))
    order = order[rows[order] >= 0]
    if not len(order):
        raise UserError(
            "patches.curation: none of the clustered cells lies in a slide that is trained on",
            hint="embed and curate the index that the run reads",
        )
    counts = np.bincount(clusters[order], minlength=manifest.num_clusters[0])
    weights = balanced(counts, manifest.parents, max_oversampling)
    sums = np.cumsum(weights)
    return {
        "cumulative": sums / sums[-1], "starts": np.append(0, np.cumsum(counts)), "rows": rows[order],
        "x_px": table["x_px"].to_numpy()[order], "y_px": table["y_px"].to_numpy()[order],
    }  # fmt: skip


def balanced(counts: Array, parents: Sequence[Sequence[int]], max_oversampling: float) -> Float64:
    """Weight of each finest cluster of `counts` [k] cells, at most `max_oversampling` times its share.

    All that are not empty are alike within the cluster above, those alike within the one above them, and so
    on. `parents`: of each level but the coarsest, the cluster above. What a cap leaves falls to the others.
    """
    # From the finest level up: which clusters hold anything; then down: what each hands to those below.
    present = [counts > 0]
    for above in parents:
        present.append(np.bincount(above, weights=present[-1], minlength=max(above) + 1) > 0)
    weights = present[-1] / present[-1].sum()
    for held, above in zip(reversed(present[:-1]), reversed(parents), strict=True):
        num_below = np.bincount(above, weights=held, minlength=len(weights))
        weights = np.where(held, (weights / np.maximum(num_below, 1))[np.asarray(above)], 0.0)
    caps = max_oversampling * counts / counts.sum()
    capped = np.zeros(len(counts), bool)
    while (over := (weights > caps * (1 + 1e-12)) & ~capped).any():
        capped |= over
        free = weights * ~capped
        weights = np.where(capped, caps, free * ((1.0 - caps[capped].sum()) / free.sum()))
    return np.asarray(weights, np.float64)
