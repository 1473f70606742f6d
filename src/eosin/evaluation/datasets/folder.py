"""A folder of class folders as a dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import PurePosixPath

from eosin.evaluation.datasets.dataset import (
    Dataset,
    Digest,
    MissingImage,
    ReadImages,
    Sample,
    lfs_reason,
    split_of,
)
from eosin.storage import ByteRange, NotFound, ObjectInfo, Store

# What lies beside images and is not one; anything else is judged by its first bytes, not its name.
_SIDECARS = {".csv", ".db", ".htm", ".html", ".ini", ".json", ".log", ".md", ".pdf", ".py", ".sha256",
             ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml"}  # fmt: skip


def open_folder(store: Store, listed: Iterable[ObjectInfo]) -> Dataset:
    """`CLASS/…/image` or `train|val|test/CLASS/…/image` of what is `listed` under the store's root.

    Where one of the top folders is a split, only split folders count. Hidden files and sidecars
    (.csv, .txt…) are passed over; files outside a class folder are too, and are noted.
    """
    found = [info for info in listed if may_be_image(info.key)]
    has_splits = any(_split(PurePosixPath(info.key)) for info in found)
    digest, kept, outside = Digest(), [], 0
    for info in found:
        sample = _sample(info.key, has_splits)
        if sample is None:
            outside += 1
            continue
        digest.add(info.key, info.etag, info.size_bytes)
        kept.append((info, sample))
    notes = (f"{outside} file(s) outside a class folder are ignored",) if outside else ()
    objects = [info for info, _ in kept]
    samples = tuple(sample for _, sample in kept)
    return Dataset(store.uri, digest.hex(), samples, reader(store, objects), notes)


def reader(store: Store, objects: Sequence[ObjectInfo]) -> ReadImages:
    """Reads whole objects in batches; one that has vanished is `MissingImage`, the others unharmed."""

    def read(indices: Sequence[int]) -> list[bytes | MissingImage]:
        wanted = [objects[i] for i in indices]
        try:
            found = list(store.get_ranges([ByteRange(info.key, 0, info.size_bytes) for info in wanted]))
        except NotFound:
            return [_get(store, info.key) for info in wanted]
        return [MissingImage(reason) if (reason := lfs_reason(data)) else data for data in found]

    return read


def _get(store: Store, key: str) -> bytes | MissingImage:
    try:
        return store.get(key)
    except NotFound:
        return MissingImage("the file is missing")


def may_be_image(key: str) -> bool:
    """Whether an object is worth trying as an image: neither hidden, nor a folder, nor a sidecar."""
    path = PurePosixPath(key)
    hidden = any(part.startswith((".", "__MACOSX")) for part in path.parts)
    return not hidden and not key.endswith("/") and path.suffix.lower() not in _SIDECARS


def _split(path: PurePosixPath) -> str:
    return split_of(path.parts[0]) if len(path.parts) > 2 else ""


def _sample(key: str, has_splits: bool) -> Sample | None:
    path = PurePosixPath(key)
    split = _split(path) if has_splits else ""
    if has_splits and not split:
        return None
    inner = path.parts[1:] if split else path.parts
    return Sample(source=key, label=inner[0], split=split) if len(inner) > 1 else None
