"""A stored patch set as a dataset."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

from eosin.errors import PermanentError
from eosin.evaluation.datasets.dataset import Dataset, MissingImage, Sample
from eosin.records import PatchSetManifest, PatchSetShard
from eosin.records.patchset_shard import PatchRow, decode_shard
from eosin.storage import NotFound, Store, join_uri

MANIFEST = "manifest.json"


def open_patch_set(store: Store) -> Dataset:
    """The patch set whose manifest lies at the store's root; shards are read one at a time.

    Raises `PermanentError` naming a shard that is missing or is not what the manifest says.
    """
    manifest = PatchSetManifest.from_json(store.get(MANIFEST), source=join_uri(store.uri, MANIFEST))

    @lru_cache(maxsize=1)
    def rows_of(shard: int) -> list[PatchRow]:
        return _read_shard(store, manifest.shards[shard])

    places: list[tuple[int, int]] = []
    samples: list[Sample] = []
    for number in range(len(manifest.shards)):
        rows = rows_of(number)
        samples += [_sample(row) for row in rows]
        places += [(number, i) for i in range(len(rows))]

    def read(indices: Sequence[int]) -> list[bytes | MissingImage]:
        return [rows_of(shard)[i].image for shard, i in (places[index] for index in indices)]

    return Dataset(store.uri, manifest.digest, tuple(samples), read, manifest.notes)


def _read_shard(store: Store, shard: PatchSetShard) -> list[PatchRow]:
    source = join_uri(store.uri, shard.key)
    try:
        data = store.get(shard.key)
    except NotFound:
        raise PermanentError(
            f"{source} is missing", hint="the patch set is incomplete: decode it again (`eosin decode RUN`)"
        ) from None
    if hashlib.sha256(data).hexdigest() != shard.sha256:
        raise PermanentError(
            f"{source} is not the shard its manifest names (SHA-256 differs)",
            hint="delete the patch set and decode it again",
        )
    return decode_shard(data, source=source)


def _sample(row: PatchRow) -> Sample:
    return Sample(
        source=f"{row.slide} @ {row.x_px},{row.y_px}",
        label=row.label,
        split=row.split,
        patient=row.patient,
        mpp=row.mpp,
    )
