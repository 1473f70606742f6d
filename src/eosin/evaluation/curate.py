"""Clusters of an index's patches, from the features that an earlier teacher gave them: hierarchical k-means.

Vo et al. 2024, "Automatic data curation for self-supervised learning" (arXiv:2405.15613): k-means of the
features, then of its centroids, and so on up. Training draws its patches from the tree, each branch alike, so
that what is common does not drown what is rare (`patches.curation`).
"""

import hashlib
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from eosin import __version__
from eosin.errors import UserError
from eosin.evaluation.embed_index import SUFFIXES
from eosin.evaluation.embeddings.embed import Features
from eosin.index.snapshot import open_snapshot
from eosin.layout import ClustersLayout, FeaturesLayout
from eosin.observability import RunLog
from eosin.patches.sampling.counter_rng import uniforms
from eosin.records import load_record, publish_once
from eosin.records.index import ClustersManifest, FeaturesManifest, FeaturesSpec
from eosin.records.parquet import encode_table, read_table
from eosin.storage import Store, open_store

_MAX_FITTED = 200_000
_BATCH = 4096
Coords = npt.NDArray[np.int64]
_Labels = npt.NDArray[np.int32]


@dataclass(frozen=True)
class CurateRequest:
    """What is asked for. `num_clusters`: of each level, the finest first, such as (1000, 100, 10)."""

    features_uri: str
    out_uri: str
    num_clusters: tuple[int, ...]
    seed: int = 0


def curate(request: CurateRequest, log: RunLog) -> ClustersManifest:
    """Cluster the patches of the features at `features_uri` and publish which is in which.

    Features are normalised; the finest level is fitted to at most 200,000 of them, as many of each slide, and
    every patch is then given to the nearest centroid. What is published already is returned. Raises
    `UserError` where the features are not whole, are fewer than the clusters asked for, or other clusters lie
    there.
    """
    store, out = open_store(request.features_uri), open_store(request.out_uri)
    _require_levels(request.num_clusters)
    made_of = load_record(FeaturesManifest, store, FeaturesLayout.MANIFEST)
    if made_of is None:
        raise UserError(
            f"{request.features_uri} holds no finished features: {FeaturesLayout.MANIFEST} is not there",
            hint="`eosin embed` makes them; it goes on where it was stopped",
        )
    if made_of.spec.mpp is None or not made_of.spec.index_uri:
        raise UserError(
            f"{request.features_uri} are features of a patch set of several magnifications, or of no index",
            hint="embed the index by a grid: eosin embed --index",
        )
    asked: dict[str, Any] = {"spec": made_of.spec, "num_clusters": request.num_clusters, "seed": request.seed}
    there = load_record(ClustersManifest, out, ClustersLayout.MANIFEST)
    if there is not None:
        others = [name for name, value in asked.items() if getattr(there, name) != value]
        if others:
            raise UserError(
                f"{request.out_uri} holds clusters of another {others[0]}", hint="give another --out"
            )
        return there
    centroids, parents = _fit(_sample(store, made_of, request.seed, log), request)
    table = _assigned(store, made_of.spec, centroids, log)
    data = encode_table(table)
    sizes = np.bincount(table["cluster"].to_numpy(), minlength=len(centroids))
    out.put(ClustersLayout.CELLS, data)
    manifest = ClustersManifest(
        **asked, parents=parents, sizes=tuple(sizes.tolist()),
        cells_sha256=hashlib.sha256(data).hexdigest(), eosin_version=__version__,
    )  # fmt: skip
    return publish_once(out, ClustersLayout.MANIFEST, manifest)


def _require_levels(num_clusters: Sequence[int]) -> None:
    if (
        not num_clusters
        or min(num_clusters) < 2
        or list(num_clusters) != sorted(set(num_clusters), reverse=True)
    ):
        raise UserError(
            f"clusters {', '.join(map(str, num_clusters)) or '(none)'} are no hierarchy",
            hint="give the number of each level, falling, each 2 or more: --clusters 1000,100,10",
        )


def _slides(store: Store, spec: FeaturesSpec) -> Iterator[tuple[str, Features, Coords]]:
    """Slide, unit features [n, D] and level-0 corners [n, 2] of each file, by name."""
    suffix = SUFFIXES[spec.format]
    for key in sorted(info.key for info in store.list(FeaturesLayout.FEATURES)):
        if PurePosixPath(key).suffix == f".{suffix}":
            slide, features, coords = _DECODERS[spec.format](store.get(key))
            norms = np.linalg.norm(features, axis=1, keepdims=True)
            yield slide, features / np.maximum(norms, 1e-12), coords


def _sample(store: Store, made_of: FeaturesManifest, seed: int, log: RunLog) -> Features:
    """At most `_MAX_FITTED` features, at most as many of each slide."""
    most, kept = max(1, _MAX_FITTED // max(made_of.num_slides, 1)), []
    for done, (slide, features, _) in enumerate(_slides(store, made_of.spec), 1):
        draws = uniforms(seed, f"curate:{slide}", 0, range(len(features)), 1)[:, 0]
        kept.append(features[np.sort(np.argsort(draws, kind="stable")[:most])])
        log.progress(done, made_of.num_slides, "slides read")
    return np.concatenate(kept) if kept else np.empty((0, 1), np.float32)


def _fit(sample: Features, request: CurateRequest) -> tuple[Features, tuple[tuple[int, ...], ...]]:
    """Centroids of the finest level; of each level but the coarsest, the cluster above of each cluster."""
    from sklearn.cluster import KMeans, MiniBatchKMeans

    finest, *coarser = request.num_clusters
    if len(sample) < finest:
        raise UserError(
            f"{len(sample)} patches cannot make {finest} clusters", hint="ask for fewer: --clusters"
        )
    fitted = MiniBatchKMeans(finest, random_state=request.seed, batch_size=_BATCH, n_init=3).fit(sample)
    centroids, parents = np.asarray(fitted.cluster_centers_, np.float32), []
    level = centroids
    for number in coarser:
        above = KMeans(number, random_state=request.seed, n_init=10).fit(level)
        parents.append(tuple(above.labels_.tolist()))
        level = above.cluster_centers_
    return centroids, tuple(parents)


def _assigned(store: Store, spec: FeaturesSpec, centroids: Features, log: RunLog) -> pa.Table:
    """The cluster of every patch: digest of the slide's index row, corner and cluster."""
    rows = open_snapshot(spec.index_uri, spec.snapshot_id).rows
    digests = dict(zip(rows.texts("slide"), rows.texts("digest"), strict=True))
    columns: list[pa.Table] = []
    for done, (slide, features, coords) in enumerate(_slides(store, spec), 1):
        names = pa.DictionaryArray.from_arrays(np.zeros(len(coords), np.int32), [digests[slide]])
        corners = {name: coords[:, i].astype(np.int32) for i, name in enumerate(("x_px", "y_px"))}
        columns.append(pa.table({"digest": names, **corners, "cluster": nearest(features, centroids)}))
        log.progress(done, len(digests), "slides clustered")
    return pa.concat_tables(columns).unify_dictionaries()


def nearest(features: Features, centroids: Features) -> _Labels:
    """Number of the centroid nearest to each of `features` [n, D], int32 [n]."""
    lengths = (centroids**2).sum(axis=1)
    parts = [
        (lengths - 2 * features[i : i + _BATCH] @ centroids.T).argmin(axis=1)
        for i in range(0, len(features), _BATCH)
    ]
    return np.concatenate(parts).astype(np.int32) if parts else np.empty(0, np.int32)


def _from_hdf5(data: bytes) -> tuple[str, Features, Coords]:
    import h5py

    with h5py.File(io.BytesIO(data)) as file:
        coords = file["coords"]
        return str(coords.attrs["slide"]), np.asarray(file["features"]), np.asarray(coords)


def _from_parquet(data: bytes) -> tuple[str, Features, Coords]:
    table = read_table(data)
    vectors = table["features"].combine_chunks()
    coords = np.stack([table["x_px"].to_numpy(), table["y_px"].to_numpy()], axis=1)
    features = vectors.flatten().to_numpy().reshape(len(coords), -1)
    return table.schema.metadata[b"slide"].decode(), features, coords


def _from_safetensors(data: bytes) -> tuple[str, Features, Coords]:
    import json

    import safetensors.numpy

    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found = safetensors.numpy.load(data)
    return header["__metadata__"]["slide"], found["features"], found["coords"]


_DECODERS = {"hdf5": _from_hdf5, "parquet": _from_parquet, "safetensors": _from_safetensors}
