"""A dataset to judge models on: samples with labels, and their bytes when asked for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

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


@dataclass(frozen=True)
class MissingImage:
    """In place of an image's bytes: why there are none."""

    reason: str


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

    @property
    def classes(self) -> tuple[str, ...]:
        """Labels that samples have, sorted; a class is numbered by its place here."""
        return tuple(sorted({sample.label for sample in self.samples if sample.label}))


@dataclass
class Digest:
    """SHA-256 over lines of fields, so that ("ab", "c") and ("a", "bc") differ."""

    _hash: hashlib._Hash = field(default_factory=hashlib.sha256)

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
