"""A CSV or Parquet table of images as a dataset."""

from __future__ import annotations

import io
import math
from typing import Any

import pyarrow as pa
import pyarrow.csv as pa_csv

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import SPLITS, Dataset, Digest, MissingImage, ReadImages, Sample
from eosin.evaluation.datasets.folder import reader
from eosin.records.parquet import read_table
from eosin.storage import NotFound, ObjectInfo, Store, open_store

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
    samples = tuple(_sample(i, row, uri) for i, row in enumerate(rows))
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


def _sample(number: int, row: dict[str, Any], uri: str) -> Sample:
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
