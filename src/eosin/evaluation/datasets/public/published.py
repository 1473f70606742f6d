"""Public datasets in general: what lies in their folder, and whether all that was published is there."""

import csv
import io
import itertools
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic

from eosin.errors import UserError
from eosin.evaluation.datasets.dataset import (
    FOLD,
    Dataset,
    Digest,
    Sample,
    is_hidden,
    lfs_reason,
    may_be_image,
    reader,
)
from eosin.evaluation.datasets.splits import AnyDataset
from eosin.storage import ObjectInfo, Store, join_uri, open_store
from eosin.words import first_of


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
            if match and not is_hidden(info.key):
                yield info, match

    def images(self, pattern: str) -> Iterator[tuple[ObjectInfo, re.Match[str]]]:
        """As `matching`, without sidecars such as Thumbs.db."""
        return ((info, match) for info, match in self.matching(pattern) if may_be_image(info.key))

    def one(self, path: str) -> ObjectInfo:
        """The one object whose key ends with `path`. Raises `UserError` where there is none, or another."""
        found = [info for info, _ in self.matching(re.escape(path))]
        if len(found) != 1:
            named = f"{len(found)} times: {first_of([i.key for i in found], 3)}" if found else "not there"
            raise UserError(
                f"{self.uri}: {path} is {named}", hint="name the folder that the dataset was unpacked in"
            )
        return found[0]

    def read_table(self, path: str, columns: Collection[str]) -> list[dict[str, str]]:
        """Rows of the CSV at the one key that ends with `path`, which must have `columns`."""
        info = self.one(path)
        return parse_csv(self.store.get(info.key), join_uri(self.uri, info.key), columns)


_KNOWN_COLUMNS = {"path", "slide", "label", "split", "patient", "centre", "mpp", "time", "event"}
# As PathoROB, Patho-Bench and others name what we have other names for.
_SPELLED = {
    "center": "centre", "medical_center": "centre", "biological_class": "label", "patient_id": "patient",
    "case_id": "patient",
}  # fmt: skip


def parse_csv(data: bytes, source: str, columns: Collection[str]) -> list[dict[str, str]]:
    """Rows of a CSV in UTF-8 or UTF-16 as text; commas, semicolons or tabs part its columns.

    Columns that eosin knows are told in any case. Raises `UserError` naming `source` where it is none, lacks
    one of `columns`, has one twice, or has a row with more cells than columns.
    """
    if not data.strip():
        raise UserError(f"{source} is not a table: it is empty")
    if reason := lfs_reason(data):
        raise UserError(f"{source} is {reason}")
    if data.startswith((b"PK\x03\x04", b"\x1f\x8b", b"\xd0\xcf\x11\xe0")):
        raise UserError(f"{source} is an Excel, ZIP or gzip file", hint="save it as CSV, UTF-8")
    try:
        # Not `splitlines`, to which U+2028 or a vertical tab within a cell ends the row.
        lines = list(io.StringIO(_decoded(data).lstrip("\ufeff"), newline=""))
        lines = lines[1:] if lines[0].lower().startswith("sep=") else lines
        headers = {mark: known_names(next(csv.reader(lines, delimiter=mark), []), columns) for mark in ",;\t"}
        mark = next((mark for mark, names in headers.items() if {*columns} <= {*names}), ",")
        names = headers[mark]
        rows = [
            row for row in csv.reader(lines, delimiter=mark, strict=True) if any(cell.strip() for cell in row)
        ][1:]
    except (UnicodeDecodeError, csv.Error, IndexError) as error:
        raise UserError(f"{source} is not a CSV in UTF-8: {error}", hint="save it as CSV, UTF-8") from error
    if absent := [name for name in columns if name not in names]:
        what = f"column{'s' if len(absent) > 1 else ''} {', '.join(absent)}"
        raise UserError(f"{source} lacks the {what}; it has {', '.join(names)}")
    require_one_meaning(next(csv.reader(lines, delimiter=mark)), names, source)
    if long := next((n for n, row in enumerate(rows, 2) if any(map(str.strip, row[len(names) :]))), None):
        raise UserError(
            f"{source}, row {long}: more cells than the {len(names)} columns",
            hint="put quotes around what has a comma in it",
        )
    return [
        {name: cell.strip() for name, cell in itertools.zip_longest(names, row[: len(names)], fillvalue="")}
        for row in rows
    ]


def _decoded(data: bytes) -> str:
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return data.decode("utf-16")
    if b"\0" in data[:64]:
        return data.decode("utf-16-be" if data[0] == 0 else "utf-16-le")
    return data.decode("utf-8")


def known_names(names: Sequence[str], columns: Collection[str]) -> list[str]:
    """Names of a table's columns: those in `columns` as they are, others that eosin knows in lower case."""
    own = [name.strip() for name in names]
    plain = [re.sub(r"[ -]+", "_", name.lower()) for name in own]
    lower = [_SPELLED.get(name, name) for name in plain]
    known = {*columns, *_KNOWN_COLUMNS}
    return [
        each if (each in known or FOLD.fullmatch(each)) and name not in columns else name
        for name, each in zip(own, lower, strict=True)
    ]


def require_one_meaning(own: Sequence[str], names: Sequence[str], source: str) -> None:
    """Raises `UserError` naming the columns of `source` that `known_names` made one of: which is meant?"""
    written: dict[str, list[str]] = {}
    for mine, name in zip(own, names, strict=True):
        written.setdefault(name, []).append(mine.strip())
    if twice := [f"{', '.join(each)} ({name})" for name, each in written.items() if name and len(each) > 1]:
        raise UserError(
            f"{source} has several columns of one meaning: {'; '.join(twice)}",
            hint="leave one of each in the table, or give the others names of their own",
        )


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


@dataclass(frozen=True)
class PublicDataset(Generic[AnyDataset]):
    """A public dataset: how many images each split has, and how it is read from its folder."""

    title: str
    tree: str
    """The path of one of its images, as published: shown where nothing is found."""
    num_images: Mapping[str, int]
    """Images of each split."""
    read: Callable[[Listing], AnyDataset]
    classes: tuple[str, ...] = ()
    """Labels that each split has, numbered as kaiko-eva numbers a head's outputs; none for masks."""
    unit: str = "images"

    def open(self, uri: str, *, allow_subset: bool = False) -> AnyDataset:
        """The dataset at `uri`, whole.

        With `allow_subset` it may have fewer images than published, which becomes a note. Raises
        `UserError` naming what is expected and what is found.
        """
        dataset = self.read(list_dataset(uri))
        missing = self.check(uri, dataset.samples, allow_subset)
        notes = (*dataset.notes, *missing)
        return replace(dataset, notes=notes, is_whole=not missing, class_order=self.classes)

    def check(self, uri: str, samples: tuple[Sample, ...], allow_subset: bool) -> list[str]:
        """Notes on what is missing where that is allowed. Raises `UserError` where it is not."""
        if not samples:
            raise UserError(
                f"no {self.unit} of {self.title} at {uri}",
                hint=f"the folder must hold {self.tree}, as published",
            )
        found = Counter(sample.split for sample in samples)
        wrong = [
            f"{split} has {found[split]} {self.unit}, {expected} expected"
            for split, expected in self.num_images.items()
            if found[split] != expected
        ]
        wrong += [
            f"{found[split]} {self.unit} are in no known split" for split in found.keys() - self.num_images
        ]
        too_many = any(found[split] > expected for split, expected in self.num_images.items())
        if wrong and (not allow_subset or too_many):
            if absent := set(self.classes) - {sample.label for sample in samples}:
                wrong.append(f"no {self.unit} of {', '.join(sorted(absent))}")
            told = "; ".join(wrong)
            if too_many:
                raise UserError(
                    f"{uri} has more than {self.title}: {told}",
                    hint="name a folder with one copy of it, and nothing of another edition",
                )
            raise UserError(
                f"{uri} is not the whole of {self.title}: {told}",
                hint="fetch it whole; or set allow_subset: true for a part, whose figures stand alone",
            )
        part = f"a part of {self.title} only, not to be set beside others' figures"
        return [f"{part}: {'; '.join(wrong)}"] if wrong else []
