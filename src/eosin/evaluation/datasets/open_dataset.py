"""Labelled images by URI: a patch set, a table, a folder of class folders, or a public dataset."""

import hashlib
import math
import posixpath
from collections import defaultdict
from collections.abc import Collection, Sequence
from functools import lru_cache
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from eosin.config.presets import ImageLayout
from eosin.errors import PermanentError, UserError
from eosin.evaluation.datasets.dataset import (
    Dataset,
    Digest,
    MissingImage,
    ReadImages,
    Sample,
    label_notes,
    lfs_reason,
    open_folder,
    reader,
    splits_of_row,
    tidy_labels,
)
from eosin.evaluation.datasets.public.images import IMAGES
from eosin.evaluation.datasets.public.published import known_names, parse_csv, require_one_meaning
from eosin.records import PatchSetManifest, PatchSetShard
from eosin.records.parquet import read_table
from eosin.records.patchset_shard import PatchRow, decode_shard
from eosin.storage import NotFound, ObjectInfo, Store, join_uri, open_store
from eosin.storage.uri import split_uri
from eosin.words import first_of

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
        samples += [
            Sample(f"{row.slide} @ {row.x_px},{row.y_px}", row.label, row.split, row.patient, row.mpp)
            for row in rows
        ]
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


_MAX_NAMED = 3
_NO_IMAGE = MissingImage("neither an image nor a path in the row")
_MAX_FOLDERS = 64


def open_table(uri: str, columns: Collection[str] = ()) -> Dataset:
    """Rows with `path` or, in Parquet, `image`, and `label`.

    `path` is relative to the table, a URI, or absolute where the table is a local file too; `image` holds
    encoded bytes, alone or as Hugging Face's `{bytes, path}`, whose path counts where it has no bytes.
    `split` (train, val, test), `patient`, `centre` and `mpp` are optional; of other columns those in
    `columns` are kept. An image that is named but not there is dropped and counted when the dataset is
    embedded. Raises `UserError` naming the table for a missing column, an unknown split, no row, images of
    another type, or bytes that are no table.
    """
    folder, _, name = uri.rpartition("/")
    return _open_tables(uri, open_store(folder or "."), [name], columns)


def _open_tables(uri: str, store: Store, keys: Sequence[str], columns: Collection[str]) -> Dataset:
    """The rows of all tables, one after another."""
    rows: list[dict[str, Any]] = []
    images: list[pa.ChunkedArray | None] = []
    contents = Digest()
    for key in keys:
        try:
            data = store.get(key)
        except NotFound:
            raise UserError(f"no table at {uri}") from None
        found, column = _read_rows(data, join_uri(store.uri, key))
        images += [column] if found else []
        rows += found
        contents.add(len(data), store.head(key).etag)
    if not rows:
        raise UserError(f"{uri} has no row below its header")
    if len({column is None for column in images}) > 1:
        raise UserError(f"{uri}: some of its tables hold images, others name them")
    chunks = [chunk for column in images if column is not None for chunk in column.chunks]
    held = pa.chunked_array(chunks, pa.large_binary()) if chunks else pa.chunked_array([pa.nulls(len(rows))])
    labels = tidy_labels([_text(row.get("label")) for row in rows])
    samples = tuple(
        _sample_row(i, row, label, uri, columns)
        for i, (row, label) in enumerate(zip(rows, labels, strict=True))
    )
    notes = label_notes(labels)
    digest = Digest()
    for sample in samples:
        digest.add(sample.source, sample.label, sample.split, sample.patient, *sample.folds)
        if sample.centre or sample.mpp is not None or columns:
            digest.add(sample.centre, sample.mpp, *sample.columns.values())
    if images[0] is not None:
        digest.add(contents.hex())
    by_path = [i for i in pc.indices_nonzero(held.is_null()).to_pylist() if _text(rows[i].get("path"))]
    place_of = {row: place for place, row in enumerate(by_path)}
    files = tuple(samples[i] for i in by_path)
    read_files = _read_paths(store, files, digest)

    def read(wanted: Sequence[int]) -> list[bytes | MissingImage]:
        from_files = iter(read_files([place_of[i] for i in wanted if i in place_of]))
        return [next(from_files) if i in place_of else held[i].as_py() or _NO_IMAGE for i in wanted]

    return Dataset(uri, digest.hex(), samples, read, (*notes, *_repeated(files)))


def _read_rows(data: bytes, uri: str) -> tuple[list[dict[str, Any]], pa.ChunkedArray | None]:
    """The rows without their images, and the images where they lie in the table."""
    if not uri.lower().endswith(".parquet"):
        return list(parse_csv(data, uri, ("path", "label"))), None
    if reason := lfs_reason(data):
        raise UserError(f"{uri} is {reason}")
    try:
        table = read_table(data)
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{uri} is not a table: {error}") from error
    names = known_names(table.column_names, ())
    if "image" in names and "path" not in names and _is_text(table.schema.types[names.index("image")]):
        names[names.index("image")] = "path"
    require_one_meaning(table.column_names, names, uri)
    table = table.rename_columns(names)
    if not {"path", "image"} & {*names} or "label" not in names:
        raise UserError(f"{uri} needs the columns path or image, and label; it has {', '.join(names)}")
    nested = {each.name for each in table.schema if pa.types.is_nested(each.type)} - {"image"}
    if bad := sorted(nested & {"path", "label", "split", "patient", "centre", "mpp"}):
        raise UserError(
            f"{uri}: the column {bad[0]} holds {table.schema.field(bad[0]).type}, one value is needed"
        )
    flat = table.select([name for name in names if name not in nested and name != "image"])
    # Times as text: Python's hold no nanoseconds, and no year after 9999.
    kinds = [
        pa.field(each.name, pa.string()) if pa.types.is_temporal(each.type) else each for each in flat.schema
    ]
    rows = flat.cast(pa.schema(kinds)).to_pylist()
    if "image" not in names:
        return rows, None
    held, paths = _image_columns(table.column("image"), uri)
    for i in pc.indices_nonzero(held.is_null()).to_pylist():
        rows[i]["path"] = paths[i].as_py() or rows[i].get("path")
    return rows, held


def _image_columns(column: pa.ChunkedArray, uri: str) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
    """Encoded images and, of Hugging Face's `{bytes, path}`, their paths; null where there is none."""
    held, paths = column, pa.chunked_array([pa.nulls(len(column))])
    if pa.types.is_struct(column.type) and {"bytes", "path"} <= {field.name for field in column.type}:
        held, paths = pc.struct_field(column, "bytes"), pc.struct_field(column, "path")
    if not (
        pa.types.is_null(held.type) or pa.types.is_binary(held.type) or pa.types.is_large_binary(held.type)
    ):
        raise UserError(
            f"{uri}: the column image holds {column.type}", hint="encoded bytes are needed, or {bytes, path}"
        )
    return held.cast(pa.large_binary()), paths


def _sample_row(number: int, row: dict[str, Any], label: str, uri: str, columns: Collection[str]) -> Sample:
    patient, centre, mpp = (_text(row.get(name)) for name in ("patient", "centre", "mpp"))
    where = f"{uri}, row {number + 1}"
    split, folds = splits_of_row(row, where)
    return Sample(
        source=_text(row.get("path")) or f"row {number + 1}",
        label=label,
        split=split,
        patient=patient,
        centre=centre,
        mpp=_mpp(mpp, where),
        folds=folds,
        columns={name: _text(row.get(name)) for name in columns},
    )


def _is_text(kind: pa.DataType) -> bool:
    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return kind in (pa.string(), pa.large_string(), pa.string_view())


def _text(value: Any) -> str:
    """A cell as text: 001 and NA as they are, nothing for NaN, 3 for the 3.0 that stands beside a NaN."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if isinstance(value, bytes):
        value = value.decode("utf-8", "replace")
    text = "" if value is None else str(value).strip()
    return "" if text.lower() in ("nan", "<na>") else text


def _mpp(text: str, where: str) -> float | None:
    try:
        mpp = float(text) if text else None
    except ValueError:
        mpp = math.nan
    if mpp is not None and not 0 < mpp < math.inf:
        raise UserError(f"{where}: mpp {text!r} is no number above 0")
    return mpp


def _repeated(samples: Sequence[Sample]) -> tuple[str, ...]:
    """A note where one path stands in several rows, and whether those agree."""
    rows: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for sample in samples:
        rows[posixpath.normpath(sample.source)].append((sample.label, sample.split))
    twice = [path for path, told in rows.items() if len(told) > 1]
    differing = [path for path in twice if len(set(rows[path])) > 1]
    if not twice:
        return ()
    told = f", {len(differing)} with different labels or splits" if differing else ""
    return (f"images in several rows: {len(twice)}{told}: {first_of(differing or twice, _MAX_NAMED)}",)


def _read_paths(store: Store, samples: tuple[Sample, ...], digest: Digest) -> ReadImages:
    """Sizes and etags from a listing of the folders that hold images; what they lack is read as missing."""
    own, folder = split_uri(store.uri)
    places = [_place(own, folder, sample.source) for sample in samples]
    infos: dict[tuple[str, str], ObjectInfo] = {}
    readers: dict[tuple[str, str], tuple[ReadImages, int]] = {}
    for root in dict.fromkeys(root for root, _ in places if root):
        inside, keys = open_store(root), {key for where, key in places if where == root}
        prefix = f"{folder}/" if folder else ""
        folders = {posixpath.dirname(key) for key in keys if root != own or not key.startswith(prefix)}
        if len(folders) > _MAX_FOLDERS:
            folders = {posixpath.commonpath(folders)}
        if any(root == own and key.startswith(prefix) for key in keys):
            folders.add(folder)
        found = {
            i.key: i for each in folders for i in inside.list(f"{each}/" if each else "") if i.key in keys
        }
        read = reader(inside, list(found.values()))
        readers |= {(root, key): (read, place) for place, key in enumerate(found)}
        infos |= {(root, key): info for key, info in found.items()}
    for place in places:
        info = infos.get(place)
        digest.add(info.etag if info else "missing", info.size_bytes if info else 0)

    def read_rows(indices: Sequence[int]) -> list[bytes | MissingImage]:
        wanted: dict[ReadImages, list[tuple[int, int]]] = defaultdict(list)
        for i in indices:
            if places[i] in readers:
                read, place = readers[places[i]]
                wanted[read].append((i, place))
        images: dict[int, bytes | MissingImage] = {}
        for read, pairs in wanted.items():
            images |= zip((i for i, _ in pairs), read([place for _, place in pairs]), strict=True)
        return [images.get(i, _absent(places[i])) for i in indices]

    return read_rows


def _absent(place: tuple[str, str]) -> MissingImage:
    root, path = place
    return MissingImage(
        f"there is no file {join_uri(root, path)}"
        if root
        else f"{path} is neither a path from here nor s3://…"
    )


def _place(own: str, folder: str, path: str) -> tuple[str, str]:
    """Root and key of a table's `path`; no root where it names a file of another machine."""
    text = path if "://" in path else path.replace("\\", "/")
    is_local = own == "file:///"
    if "://" in text or (text.startswith("/") and is_local):
        try:
            root, key = split_uri(text)
        except UserError:
            return "", path
        return (root, key) if is_local or root != "file:///" else ("", path)
    return own, posixpath.normpath(posixpath.join("/", folder, text.lstrip("/"))).lstrip("/")


def open_dataset(
    uri: str,
    layout: ImageLayout | None = None,
    *,
    allow_subset: bool = False,
    columns: Collection[str] = (),
) -> Dataset:
    """The dataset at `uri`: a public one where `layout` names it, else what follows from what lies there.

    - `….csv`, `….tsv`, `….parquet`: a table of images, see `open_table`, with further `columns`;
    - a folder with a `manifest.json`: a patch set;
    - a folder with Parquet files, as Hugging Face has them: one table;
    - else: a folder of class folders, perhaps under train/, val/ and test/.

    Raises `UserError` where nothing usable is there, or a public dataset is not whole.
    """
    if layout is not None:
        return IMAGES[layout].open(uri, allow_subset=allow_subset)
    if uri.lower().endswith((".csv", ".tsv", ".parquet")):
        return open_table(uri, columns)
    if uri.lower().endswith("/" + MANIFEST):
        uri = uri[: -len(MANIFEST) - 1]
    store = open_store(uri)
    if store.exists(MANIFEST):
        return open_patch_set(store)
    listed = list(store.list())
    tables = sorted(info.key for info in listed if info.key.lower().endswith(".parquet"))
    dataset = _open_tables(uri, store, tables, columns) if tables else open_folder(store, listed)
    if not dataset.samples:
        raise UserError(
            f"no images at {uri}",
            hint="give a patch set, a folder of class folders (perhaps under train/ val/ test/), or a table",
        )
    return dataset
