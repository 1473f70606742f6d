"""A dataset to judge models on: samples with labels, and their bytes when asked for; a folder as one."""

import hashlib
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Any

from eosin.errors import UserError
from eosin.storage import ByteRange, NotFound, ObjectInfo, Store
from eosin.words import counted

SPLITS = ("train", "val", "test")


@dataclass(frozen=True)
class Sample:
    """One image. `source` names it for a person; empty strings where something is not known."""

    source: str
    label: str = ""
    split: str = ""
    """train, val, test, or empty."""
    patient: str = ""
    mpp: float | None = None
    centre: str = ""
    """The hospital or scanner it comes from."""
    folds: tuple[str, ...] = ()
    """Split in each fold of a cross-validation; none: `split` alone."""
    columns: Mapping[str, str] = field(default_factory=dict, hash=False, repr=False)
    """Further columns of its table that a task asked for, as text."""


@dataclass(frozen=True)
class MissingImage:
    """In place of an image's bytes: why there are none."""

    reason: str


_SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val",
    "test": "test", "testing": "test",
}  # fmt: skip
FOLD = re.compile(r"fold_(\d+)")
_WHOLE_NUMBER = re.compile(r"([+-]?\d+)(?:\.0*)?")
_NUMBER = re.compile(r"[+-]?\d+(?:\.\d*)?")
_NO_LABEL = ("nan", "<na>")
_DOUBTFUL = ("none", "null", "na", "n/a", "unknown", "-")


def split_of(name: str) -> str:
    """The split that a folder's or a cell's name stands for, in any case; empty for what is none."""
    return _SPLIT_NAMES.get(name.lower(), "")


def splits_of_row(row: Mapping[str, Any], where: str) -> tuple[str, tuple[str, ...]]:
    """`split` of a table's row, and those of its columns fold_0, fold_1 …, in the order of their numbers.

    Raises `UserError` saying `where` for a split that is none.
    """
    numbers = {int(match[1]): name for name in row if (match := FOLD.fullmatch(name))}
    cells = [str(row.get(name) or "").strip() for name in ("split", *(numbers[n] for n in sorted(numbers)))]
    for cell in cells:
        if cell and not split_of(cell):
            raise UserError(f"{where}: split {cell!r} is not one of {', '.join(SPLITS)}")
    first, *others = map(split_of, cells)
    return first, tuple(others)


def tidy_labels(labels: Sequence[str]) -> list[str]:
    """Empty for nan; 1 for 1.0 where all are whole numbers, as a column with an empty cell is written."""
    kept = ["" if label.lower() in _NO_LABEL else label for label in labels]
    found = [_WHOLE_NUMBER.fullmatch(label) for label in kept]
    is_number = all(match or not label for match, label in zip(found, kept, strict=True))
    return [match[1] if match else "" for match in found] if is_number else kept


def label_notes(labels: Iterable[str]) -> tuple[str, ...]:
    """Where classes differ in spelling alone, or are called as what is missing is."""
    spelled: dict[str, set[str]] = defaultdict(set)
    numbers: dict[float, set[str]] = defaultdict(set)
    for label in set(labels):
        spelled["".join(unicodedata.normalize("NFKC", label).casefold().split())].add(label)
        if _NUMBER.fullmatch(label):
            numbers[float(label)].add(label)
    doubtful = sorted(name for each in _DOUBTFUL for name in spelled.get(each, ()))
    notes = {
        "classes that differ by case, blanks or the coding of accents alone": _twice(spelled),
        "classes that differ in how a number is written alone": _twice(numbers),
        "taken for a class, not for a missing label; leave such cells empty": ", ".join(doubtful),
    }
    return tuple(f"{note}: {names}" for note, names in notes.items() if names)


def _twice(spelled: Mapping[Any, set[str]]) -> str:
    return "; ".join(", ".join(sorted(names)) for names in spelled.values() if len(names) > 1)


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def lfs_reason(data: bytes) -> str:
    """Why `data` is no file but a note of Git LFS that stands for one; empty where it is a file."""
    is_pointer = data.startswith(_LFS_POINTER)
    return "a Git LFS pointer, not the file itself: `git lfs pull` fetches it" if is_pointer else ""


ReadImages = Callable[[Sequence[int]], list[bytes | MissingImage]]


@dataclass(frozen=True)
class Dataset:
    """Samples in a fixed order. `read(indices)` gives encoded images in the order asked for."""

    uri: str
    digest: str
    """SHA-256 that changes whenever an image or a label does."""
    samples: tuple[Sample, ...]
    read: ReadImages
    notes: tuple[str, ...] = ()
    """What a reader of the figures must know."""
    is_whole: bool = False
    """A public dataset with every image that was published."""
    class_order: tuple[str, ...] = ()
    """How a public dataset's classes are numbered; other labels follow them."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels that samples have, in `class_order`, then sorted; a class is numbered by its place here."""
        labels = {sample.label for sample in self.samples if sample.label}
        ordered = [label for label in self.class_order if label in labels]
        return (*ordered, *sorted(labels.difference(ordered)))


@dataclass
class Digest:
    """SHA-256 over lines of fields, so that ("ab", "c") and ("a", "bc") differ."""

    _hash: "hashlib._Hash" = field(default_factory=hashlib.sha256)

    def add(self, *fields: object) -> None:
        """Take one line of fields."""
        self._hash.update("\x1f".join(str(item) for item in fields).encode() + b"\n")

    def hex(self) -> str:
        """The digest of all lines so far, 64 hex digits."""
        return self._hash.hexdigest()


_BARCODE = re.compile(r"(?<![A-Z0-9])(TCGA-[A-Z0-9]{2}-[A-Z0-9]{4})(?![A-Z0-9])")


def tcga_patient(name: str) -> str:
    """The TCGA participant in a file's name, as `TCGA-38-6178`; empty where there is none."""
    found = _BARCODE.findall(name)
    return found[-1] if found else ""


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
    notes = (f"left out: {counted(outside, 'file')} outside a class folder",) if outside else ()
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
    is_sidecar = PurePosixPath(key).suffix.lower() in _SIDECARS
    return not is_sidecar and not is_hidden(key) and not key.endswith("/")


def is_hidden(key: str) -> bool:
    """Whether its name, or that of a folder above it, begins with a dot or is what macOS packs along."""
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(key).parts)


def _split(path: PurePosixPath) -> str:
    return split_of(path.parts[0]) if len(path.parts) > 2 else ""


def _sample(key: str, has_splits: bool) -> Sample | None:
    path = PurePosixPath(key)
    split = _split(path) if has_splits else ""
    if has_splits and not split:
        return None
    inner = path.parts[1:] if split else path.parts
    return Sample(source=key, label=inner[0], split=split) if len(inner) > 1 else None
