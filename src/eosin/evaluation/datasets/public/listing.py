"""The objects of a dataset's folder, found by what their published path ends with."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePosixPath

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import Dataset, Digest, Sample
from eosin.evaluation.datasets.folder import may_be_image, reader
from eosin.storage import ObjectInfo, Store, join_uri, open_store


@dataclass(frozen=True)
class Found:
    """One image of a dataset, and where it lies."""

    info: ObjectInfo
    sample: Sample


@dataclass(frozen=True)
class Listing:
    """All objects below one URI. Patterns say how a path ends, since archives are unpacked at any depth."""

    store: Store
    objects: tuple[ObjectInfo, ...]

    @property
    def uri(self) -> str:
        """URI of the dataset's folder."""
        return self.store.uri

    def matching(self, pattern: str) -> Iterator[tuple[ObjectInfo, re.Match[str]]]:
        """Objects whose key is, or ends after a slash with, what the regular expression `pattern` matches.

        Hidden files are passed over.
        """
        whole = re.compile(rf"(?:.*/)?{pattern}")
        for info in self.objects:
            match = whole.fullmatch(info.key)
            if match and not _hidden(info.key):
                yield info, match

    def images(self, pattern: str) -> Iterator[tuple[ObjectInfo, re.Match[str]]]:
        """As `matching`, without sidecars such as Thumbs.db."""
        return ((info, match) for info, match in self.matching(pattern) if may_be_image(info.key))

    @cached_property
    def by_key(self) -> dict[str, ObjectInfo]:
        """The objects by key."""
        return {info.key: info for info in self.objects}

    def one(self, path: str) -> ObjectInfo:
        """The one object whose key ends with `path`. Raises `UserError` where there is none, or another."""
        found = [info for info, _ in self.matching(re.escape(path))]
        if len(found) != 1:
            named = f"{len(found)} times: {', '.join(i.key for i in found[:3])}" if found else "not there"
            raise UserError(
                f"{self.uri}: {path} is {named}", hint="name the folder that the dataset was unpacked in"
            )
        return found[0]

    def read_table(self, path: str, columns: Iterable[str]) -> list[dict[str, str]]:
        """Rows of the CSV at the one key that ends with `path`, which must have `columns`."""
        info = self.one(path)
        return parse_csv(self.store.get(info.key), join_uri(self.uri, info.key), columns)


def parse_csv(data: bytes, source: str, columns: Iterable[str]) -> list[dict[str, str]]:
    """Rows of a CSV as text. Raises `UserError` naming `source` where it is none or lacks a column."""
    try:
        read = csv.DictReader(io.StringIO(data.decode("utf-8-sig"), newline=""))
        rows = [{key: (value or "").strip() for key, value in row.items() if key} for row in read]
    except (UnicodeDecodeError, csv.Error, AttributeError) as error:
        raise UserError(f"{source} is not a CSV: {error}") from error
    absent = [name for name in columns if name not in (read.fieldnames or [])]
    if absent:
        raise UserError(
            f"{source} lacks the column(s) {', '.join(absent)}; it has {', '.join(read.fieldnames or [])}"
        )
    return rows


def list_dataset(uri: str) -> Listing:
    """One listing of all that lies at `uri`."""
    store = open_store(uri)
    return Listing(store, tuple(store.list()))


def as_dataset(listing: Listing, found: Iterable[Found], notes: tuple[str, ...] = ()) -> Dataset:
    """Images that are objects of their own, sorted by key."""
    kept = sorted(found, key=lambda each: each.info.key)
    digest = Digest()
    for each in kept:
        sample = each.sample
        digest.add(each.info.key, each.info.etag, each.info.size_bytes, sample.label, sample.split)
    read = reader(listing.store, [each.info for each in kept])
    return Dataset(listing.uri, digest.hex(), tuple(each.sample for each in kept), read, notes)


def _hidden(key: str) -> bool:
    return any(part.startswith((".", "__MACOSX")) for part in PurePosixPath(key).parts)
