"""Labelled images by URI: a patch set, a table, a folder of class folders, or a public dataset."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from eosin.config.presets import ImageLayout
from eosin.errors import PermanentError, UserError
from eosin.evaluation.datasets.dataset import SPLITS, Dataset, Digest, MissingImage, ReadImages, Sample
from eosin.evaluation.datasets.folder import open_folder, reader
from eosin.evaluation.datasets.public.images import IMAGES
from eosin.records import PatchSetManifest, PatchSetShard
from eosin.records.parquet import read_table
from eosin.records.patchset_shard import PatchRow, decode_shard
from eosin.storage import NotFound, ObjectInfo, Store, join_uri, open_store

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


_COLUMNS = ("label", "split", "patient", "centre", "mpp")


def open_table(uri: str) -> Dataset:
    """Rows with `path` (relative to the table) or, in Parquet, `image` (encoded bytes), and `label`.

    `split` (train, val, test), `patient`, `centre` and `mpp` are optional; other columns are passed over.
    An image that is named but not there is dropped and counted when the dataset is embedded. Raises
    `UserError` naming the table for a missing column, an unknown split, or bytes that are no table.
    """
    folder, _, name = uri.rpartition("/")
    store = open_store(folder or ".")
    try:
        data = store.get(name)
    except NotFound:
        raise UserError(f"no table at {uri}") from None
    table = _parse(data, uri)
    rows = table.select([c for c in ("path", *_COLUMNS) if c in table.column_names]).to_pylist()
    samples = tuple(_sample_row(i, row, uri) for i, row in enumerate(rows))
    digest = Digest()
    for sample in samples:
        digest.add(sample.source, sample.label, sample.split, sample.patient)
        if sample.centre or sample.mpp is not None:
            digest.add(sample.centre, sample.mpp)
    if "image" in table.column_names:
        images = table.column("image")
        digest.add(len(data), store.head(name).etag)
        return Dataset(uri, digest.hex(), samples, lambda wanted: [_bytes(images[i]) for i in wanted])
    return Dataset(uri, digest.hex(), samples, _read_paths(store, samples, digest))


def _parse(data: bytes, uri: str) -> pa.Table:
    try:
        if uri.lower().endswith(".parquet"):
            table = read_table(data)
        else:
            # Labels such as 001 or NA are names, not numbers or nothing.
            names = pa_csv.open_csv(io.BytesIO(data)).schema.names
            options = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), null_values=[])
            table = pa_csv.read_csv(io.BytesIO(data), convert_options=options)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{uri} is not a table: {error}") from error
    has_images = "path" in table.column_names or (
        uri.lower().endswith(".parquet") and "image" in table.column_names
    )
    if not has_images or "label" not in table.column_names:
        raise UserError(
            f"{uri} needs the columns path (or, in Parquet, image) and label; "
            f"it has {', '.join(table.column_names)}"
        )
    return table


def _sample_row(number: int, row: dict[str, Any], uri: str) -> Sample:
    fields = {name: str(row[name]).strip() for name in _COLUMNS if row.get(name) is not None}
    split = fields.get("split", "")
    if split and split not in SPLITS:
        raise UserError(f"{uri}, row {number + 1}: split {split!r} is not one of {', '.join(SPLITS)}")
    return Sample(
        source=str(row.get("path") or f"row {number + 1}"),
        label=fields.get("label", ""),
        split=split,
        patient=fields.get("patient", ""),
        centre=fields.get("centre", ""),
        mpp=_mpp(fields.get("mpp", ""), f"{uri}, row {number + 1}"),
    )


def _mpp(text: str, where: str) -> float | None:
    try:
        mpp = float(text) if text else None
    except ValueError:
        mpp = math.nan
    if mpp is not None and not 0 < mpp < math.inf:
        raise UserError(f"{where}: mpp {text!r} is no number above 0")
    return mpp


def _read_paths(store: Store, samples: tuple[Sample, ...], digest: Digest) -> ReadImages:
    """Sizes and etags from one listing; what it lacks is read as missing."""
    listed = {info.key: info for info in store.list()}
    objects = []
    for sample in samples:
        info = listed.get(sample.source) or ObjectInfo(sample.source, 0, "missing", 0.0)
        digest.add(info.etag, info.size_bytes)
        objects.append(info)
    present = reader(store, objects)

    def read(indices: Any) -> list[bytes | MissingImage]:
        there = [i for i in indices if objects[i].etag != "missing"]
        images = dict(zip(there, present(there), strict=True)) if there else {}
        return [images.get(i, MissingImage("the file is missing")) for i in indices]

    return read


def _bytes(value: Any) -> bytes | MissingImage:
    data = value.as_py()
    return data if isinstance(data, bytes) else MissingImage("no image in the row")


def open_dataset(uri: str, layout: ImageLayout | None = None, *, allow_subset: bool = False) -> Dataset:
    """The dataset at `uri`: a public one where `layout` names it, else what follows from what lies there.

    - `….csv`, `….parquet`: a table of images, see `open_table`;
    - a folder with a `manifest.json`: a patch set;
    - else: a folder of class folders, perhaps under train/, val/ and test/.

    Raises `UserError` where nothing usable is there, or a public dataset is not whole.
    """
    if layout is not None:
        return IMAGES[layout].open(uri, allow_subset=allow_subset)
    if uri.lower().endswith((".csv", ".parquet")):
        return open_table(uri)
    if uri.lower().endswith("/" + MANIFEST):
        uri = uri[: -len(MANIFEST) - 1]
    store = open_store(uri)
    dataset = open_patch_set(store) if store.exists(MANIFEST) else open_folder(store)
    if not dataset.samples:
        raise UserError(
            f"no images at {uri}",
            hint="give a patch set, a folder of class folders (perhaps under train/ val/ test/), or a CSV",
        )
    return dataset
