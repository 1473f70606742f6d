"""PatchCamelyon: lymph node patches of 96 px, tumour or not, in HDF5 files."""

import threading
from collections.abc import Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from eosin.errors import MissingDependency, UserError
from eosin.evaluation.datasets.dataset import Dataset, Digest, MissingImage, ReadImages, Sample, lfs_reason
from eosin.evaluation.datasets.public.published import Listing, PublicDataset, parse_csv
from eosin.storage import ObjectInfo, join_uri
from eosin.storage.range_file import RangeFile
from eosin.words import first_of

_SPLITS = {"train": "train", "valid": "val", "test": "test"}
_CLASSES = ("no_tumor", "tumor")
_POINTER_BYTES = 1_024
_NAME = "camelyonpatch_level_2_split_{}_{}"


def _read(listing: Listing) -> Dataset:
    h5py = import_h5py()
    parts = [
        _open_part(h5py, listing, name)
        for name in _SPLITS
        if any(listing.matching(_NAME.format(name, "x") + r"\.h5"))
    ]
    if not parts:
        return Dataset(listing.uri, "", (), lambda indices: [])
    digest = Digest()
    for part in parts:
        for info in part.objects:
            digest.add(info.key, info.etag, info.size_bytes)
    samples = tuple(sample for part in parts for sample in part.samples)
    return Dataset(listing.uri, digest.hex(), samples, read_images([part.pixels for part in parts]))


class _PcamSplit(NamedTuple):
    pixels: Any
    """Images [N, 96, 96, 3], which stay in the store."""
    samples: tuple[Sample, ...]
    objects: tuple[ObjectInfo, ...]


def read_images(parts: Sequence[Any]) -> ReadImages:
    """Reads images of several HDF5 arrays [N, h, w, 3] as PNG, numbered through all of them."""
    starts = np.cumsum([0, *map(len, parts)]).tolist()
    lock = threading.Lock()  # HDF5 is not thread-safe

    def read(indices: Sequence[int]) -> list[bytes | MissingImage]:
        images: dict[int, bytes | MissingImage] = {}
        for start, end, part in zip(starts, starts[1:], parts, strict=False):
            mine = sorted({i for i in indices if start <= i < end})
            with lock:
                images |= zip(mine, _read_rows(part, [i - start for i in mine]), strict=True)
        return [images[i] for i in indices]

    return read


def _read_rows(pixels: Any, rows: list[int]) -> list[bytes | MissingImage]:
    """PNG of each of `rows`, which are sorted and differ; one that is damaged does no harm to the others."""
    if not rows:
        return []
    try:
        span = pixels[rows[0] : rows[-1] + 1] if rows[-1] - rows[0] < 2 * len(rows) else None
        found = pixels[rows] if span is None else span[np.array(rows) - rows[0]]
    except OSError as error:
        if len(rows) == 1:
            return [MissingImage(f"damaged: {error}")]
        return [each for row in rows for each in _read_rows(pixels, [row])]
    return [encode_pixels(each) for each in found]


def _open_part(h5py: Any, listing: Listing, name: str) -> _PcamSplit:
    images = listing.one(_NAME.format(name, "x") + ".h5")
    labels = listing.one(_NAME.format(name, "y") + ".h5")
    pixels = _field(h5py, listing, images, "x")
    classes = np.asarray(_field(h5py, listing, labels, "y")).reshape(-1)
    if pixels.ndim != 4 or pixels.shape[-1] != 3 or pixels.dtype != np.uint8:
        raise UserError(f"{images.key}: x is {pixels.dtype} {pixels.shape}, not uint8 [N, 96, 96, 3]")
    if len(classes) != len(pixels) or not np.isin(classes, (0, 1)).all():
        raise UserError(
            f"{labels.key} does not match {images.key}: {len(classes)} labels for {len(pixels)} images, "
            f"values {first_of([*map(str, np.unique(classes))], 5)}"
        )
    slides = _slides(listing, name, len(classes))
    samples = tuple(
        Sample(f"{images.key}[{i}]", _CLASSES[int(classes[i])], _SPLITS[name], slide)
        for i, slide in enumerate(slides)
    )
    return _PcamSplit(pixels, samples, (images, labels))


def open_hdf5(h5py: Any, listing: Listing, info: ObjectInfo, wanted: str) -> Any:
    """The HDF5 file at a key, read by range. Raises `UserError` where it is none with `wanted`."""
    source = join_uri(listing.uri, info.key)
    if reason := lfs_reason(listing.store.get(info.key) if info.size_bytes < _POINTER_BYTES else b""):
        raise UserError(f"{source} is {reason}")
    try:
        return h5py.File(RangeFile(listing.store, info.key, info.size_bytes, info.etag), "r")
    except OSError as error:
        raise UserError(f"{source} is not an HDF5 file with {wanted}: {error}") from error


def _field(h5py: Any, listing: Listing, info: ObjectInfo, name: str) -> Any:
    file = open_hdf5(h5py, listing, info, name)
    if name not in file:
        raise UserError(f"{join_uri(listing.uri, info.key)} is not an HDF5 file with {name}")
    return file[name]


def _slides(listing: Listing, name: str, count: int) -> list[str]:
    """The slide of each patch, where the metadata table is there; else none."""
    tables = [info for info, _ in listing.matching(_NAME.format(name, r"meta") + r"\.csv")]
    if len(tables) != 1:
        return [""] * count
    source = join_uri(listing.uri, tables[0].key)
    rows = parse_csv(listing.store.get(tables[0].key), source, ("wsi",))
    if len(rows) != count:
        raise UserError(f"{source} has {len(rows)} rows for {count} images")
    return [row["wsi"] for row in rows]


def encode_pixels(pixels: npt.NDArray[np.uint8]) -> bytes:
    """RGB pixels [h, w, 3] as PNG."""
    # Not compressed: it is decoded again at once.
    swapped = cv2.cvtColor(pixels, cv2.COLOR_RGB2BGR)
    return bytes(cv2.imencode(".png", swapped, [cv2.IMWRITE_PNG_COMPRESSION, 0])[1])


def import_h5py() -> Any:
    """The library; raises `MissingDependency` where it is not installed."""
    try:
        import h5py
    except ImportError as error:
        raise MissingDependency("h5py", "datasets") from error
    return h5py


PCAM = PublicDataset(
    title="PatchCamelyon",
    tree="camelyonpatch_level_2_split_train_x.h5 and …_y.h5, unpacked from .gz",
    num_images={"train": 262_144, "val": 32_768, "test": 32_768},
    read=_read,
    classes=_CLASSES,
)
