"""Overrides: what a person knows of slides that their headers do not say, a CSV keyed by `slide`."""

import csv
import difflib
import hashlib
import io
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache

from eosin.errors import UserError
from eosin.index.listing import Unit
from eosin.slides.model import plausible_mpp
from eosin.storage import read_object

_KNOWN = {"slide", "mpp", "mpp_x", "mpp_y", "patient", "cohort", "label", "labels", "exclude"}
_SEVERAL = ""
"""In the place of a key: it may be any of several."""
_TRUE, _FALSE = {"1", "true", "yes", "y", "x"}, {"", "0", "false", "no", "n"}


@dataclass(frozen=True, slots=True)
class Override:
    """One line of the CSV. Empty cells say nothing."""

    mpp_x: float | None = None
    mpp_y: float | None = None
    patient: str = ""
    cohort: str = ""
    labels: dict[str, str] = field(default_factory=dict)
    exclude: bool = False
    extra: dict[str, str] = field(default_factory=dict)
    contours: str = ""
    """URI of the GeoJSON that outlines its tissue."""
    contours_etag: str = ""

    def over(self, known: "Override | None") -> "Override":
        """This line, and what `known` says where this says nothing."""
        if known is None:
            return self
        return Override(
            self.mpp_x or known.mpp_x, self.mpp_y or known.mpp_y, self.patient or known.patient,
            self.cohort or known.cohort, {**known.labels, **self.labels}, self.exclude or known.exclude,
            {**known.extra, **self.extra}, self.contours or known.contours,
            self.contours_etag or known.contours_etag,
        )  # fmt: skip


@dataclass(frozen=True)
class Overrides:
    """The CSV's lines by slide, as written there: a key, or a file name where only one slide has it."""

    lines: Mapping[str, Override]
    digest: str
    """SHA-256 of the file; empty where none was given."""

    def matched(self, units: Iterable[Unit]) -> tuple[dict[str, Override], list[str]]:
        """Lines by object key, and the names in the CSV that name no slide or several.

        A full key wins over a file name; a folder of DICOM files may be named as such.
        """
        keys: dict[str, str] = {}  # of the names in the CSV alone: a large archive has many others
        wanted = {name.strip("/") for name in self.lines}
        exact: set[str] = set()
        for name, key in _names_of(units):
            if name in wanted:
                if name == key:
                    exact.add(key)
                keys[name] = key if keys.get(name, key) == key else _SEVERAL
        keys |= {key: key for key in exact}
        found: dict[str, Override] = {}
        for name in sorted(
            self.lines, key=lambda name: name.strip("/") in exact
        ):  # a key wins, so comes last
            key = keys.get(name.strip("/"), _SEVERAL)
            if key != _SEVERAL:
                found[key] = self.lines[name]
        return found, [name for name in self.lines if keys.get(name.strip("/"), _SEVERAL) == _SEVERAL]


def _names_of(units: Iterable[Unit]) -> Iterator[tuple[str, str]]:
    """Every name a person may use for an object, with its key."""
    for unit in units:
        for each in unit.objects if unit.kind == "unsorted" else unit.objects[:1]:
            name = each.key.rpartition("/")[2]
            stem, _, suffix = name.rpartition(".")
            yield each.key, each.key
            yield name, each.key
            yield stem if stem and suffix else name, each.key
        if unit.kind == "unsorted":
            yield unit.key, unit.objects[0].key
            yield unit.key.rpartition("/")[2], unit.objects[0].key


def read_overrides(uri: str | None) -> bytes:
    """The CSV at `uri`; empty where none is named. Raises `UserError` where there is none."""
    return read_object(uri, absent=f"no overrides at {uri}", hint="check slides.overrides") if uri else b""


def load_overrides(uri: str | None) -> Overrides:
    """The overrides at `uri`, as `parse_overrides` reads them. Raises `UserError` where there are none."""
    return parse_overrides(read_overrides(uri), uri)


def parse_overrides(data: bytes, uri: str | None) -> Overrides:
    """The overrides of the CSV `data`, which came from `uri` (None: there are none).

    Columns: slide; mpp, or mpp_x and mpp_y (µm a pixel); patient; cohort; label, or any `label:NAME`;
    exclude (yes / no). Other columns are kept. Cells are parted by commas, or by tabs, or by semicolons,
    and then a decimal comma will do. Raises `UserError` with the line number of what is wrong.
    """
    if not uri:
        return Overrides({}, "")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{uri} is not UTF-8 text (byte {error.start})", hint="save it as UTF-8") from error
    return Overrides(_parse(text, uri), hashlib.sha256(data).hexdigest())


def overrides_of(rows: Iterable[Mapping[str, str]], uri: str) -> Overrides:
    """As `parse_overrides`, of rows of a table that has been read; lines are its rows, from 1."""
    lines: dict[str, Override] = {}
    for number, cells in enumerate(rows, 1):
        if number == 1:
            _refuse_mistaken(list(cells), uri)
            _require_slide(["slide" if name == "uri" else name for name in cells], uri)
        _add(lines, {"slide": cells.get("uri", ""), **cells}, f"{uri}:{number}", ".")
    return Overrides(lines, "")


def _add(lines: dict[str, Override], values: Mapping[str, str], where: str, decimal: str) -> None:
    name = values["slide"]
    if not name:
        raise UserError(f"{where}: no slide named")
    if name in lines:
        raise UserError(f"{where}: {name} is named twice")
    lines[name] = _override(values, where, decimal=decimal)


def _parse(text: str, uri: str) -> dict[str, Override]:
    separator = _separator(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, skipinitialspace=True)
    columns = [name.strip() for name in next(reader, [])]
    _refuse_mistaken(columns, uri)
    _require_slide(columns, uri)
    lines: dict[str, Override] = {}
    try:
        for cells in reader:
            where = f"{uri}:{reader.line_num}"
            if len(cells) > len(columns):
                raise UserError(f"{where}: more cells than the {len(columns)} columns")
            if any(map(str.strip, cells)):  # spreadsheets write empty rows out
                values = dict.fromkeys(columns, "") | dict(zip(columns, map(str.strip, cells), strict=False))
                _add(lines, values, where, "," if separator == ";" else ".")
    except csv.Error as error:
        raise UserError(f"{uri}:{reader.line_num}: {error}") from error
    return lines


def _require_slide(columns: Iterable[str], uri: str) -> None:
    if "slide" not in columns:
        raise UserError(
            f"{uri} has no column `slide`", hint=f"its columns are: {', '.join(columns) or 'none'}"
        )


def _separator(text: str) -> str:
    """A comma; or the semicolon or tab that a spreadsheet writes, where the first line says so."""
    first = text.partition("\n")[0]
    return max(",;\t", key=first.count)


def _refuse_mistaken(columns: list[str], uri: str) -> None:
    """A misspelt `mpp` or `patient` would be kept as a column of the user's own, and never looked at; of a
    column that stands twice only one would be read."""
    absent = _KNOWN - set(columns)
    plain = {"label": "label:label", "labels": "label:label"}
    names = [plain.get(each) or re.sub(r"^label:\s+", "label:", each) for each in columns]
    for column, name in zip(columns, names, strict=True):
        if column and names.count(name) > 1:
            raise UserError(f"{uri}:1: column {column!r} stands twice", hint="keep one of them")
        if name == "label:":
            raise UserError(f"{uri}:1: column {column!r} names no label", hint="call it label, or label:NAME")
        cutoff = 0.6 if len(column) < 4 else 0.8
        known = column in _KNOWN or column.startswith("label:")
        near = [] if known else difflib.get_close_matches(column.lower(), absent, 1, cutoff)
        if near:
            raise UserError(
                f"{uri}:1: column {column!r} is not known; did you mean {near[0]}?",
                hint="rename it; a column with a name of its own is kept as it is",
            )


def _override(values: Mapping[str, str], where: str, *, decimal: str) -> Override:
    mpp, mpp_x, mpp_y = (_mpp(values, column, where, decimal) for column in ("mpp", "mpp_x", "mpp_y"))
    of_labels, others = _columns_of_users(tuple(values))
    if bool(mpp_x or mpp) != bool(mpp_y or mpp):
        raise UserError(f"{where}: one of mpp_x and mpp_y alone", hint="give both, or mpp")
    labels = {name: values[column] for column, name in of_labels if values[column]}
    plain = values.get("label") or values.get("labels")
    if plain:
        labels["label"] = plain
    return Override(
        mpp_x=mpp_x or mpp,
        mpp_y=mpp_y or mpp,
        patient=values.get("patient", ""),
        cohort=values.get("cohort", ""),
        labels=labels,
        exclude=_flag(values.get("exclude", ""), where),
        extra={name: values[name] for name in others if values[name]},
    )


@lru_cache(1)
def _columns_of_users(columns: tuple[str, ...]) -> tuple[list[tuple[str, str]], list[str]]:
    """Columns of labels, with their names; and those that eosin gives no meaning to."""
    labels = [(each, each.partition(":")[2].strip()) for each in columns if each.startswith("label:")]
    return labels, [each for each in columns if each not in _KNOWN and not each.startswith("label:")]


def _mpp(values: Mapping[str, str], column: str, where: str, decimal: str) -> float | None:
    text = values.get(column, "")
    if not text:
        return None
    try:
        value = float(text.replace(decimal, "."))
    except ValueError:
        value = math.nan
    if plausible_mpp(value) is None:
        raise UserError(f"{where}: {column} {text!r} is not a number of µm a pixel from 0.02 to 50")
    return value


def _flag(text: str, where: str) -> bool:
    if text.lower() not in _TRUE | _FALSE:
        raise UserError(f"{where}: exclude {text!r} is neither yes nor no")
    return text.lower() in _TRUE
