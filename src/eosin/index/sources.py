"""Sources of slides: folders, manifests and open archives, each reached in its own way, read as one store.

A key begins with its source's name; after it comes the key in a folder or a gdc bucket, `BUCKET/KEY` for idc,
and `s3/BUCKET/KEY` or `file/PATH` for a manifest.
"""

import difflib
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eosin.config.index import SlidesConfig, SourceConfig
from eosin.errors import MissingDependency, PermanentError, UserError
from eosin.index.listing import Unit, could_be_slide, folder_of_parts, is_included, list_units, require_slide
from eosin.index.overrides import Override, Overrides, overrides_of, parse_overrides
from eosin.storage import (
    ByteRange,
    NotFound,
    ObjectInfo,
    S3Access,
    Store,
    join_uri,
    open_store,
    read_object,
    split_uri,
)
from eosin.words import counted, size_text

if TYPE_CHECKING:  # `eosin --help` imports nothing heavy
    import pyarrow as pa


LISTS_AT_ONCE = 32
"""LIST and HEAD requests of a source that are in flight together."""
_CHECK_SOURCES = "check slides.sources"
_LICENCES = ("licence", "license", "license_short_name")
_TCGA_PATIENT = re.compile(r"TCGA-\w{2}-\w{4}")
_IDC_CITED = "NCI Imaging Data Commons, https://doi.org/10.1158/0008-5472.CAN-21-0950"


def access_of(source: SourceConfig) -> S3Access:
    """How a source's store is reached."""
    return S3Access(source.endpoint_url, source.region, source.profile, source.anonymous)


def sources_of(records: Iterable[Mapping[str, Any]]) -> tuple[SourceConfig, ...]:
    """The sources that a snapshot's manifest names."""
    return tuple(SourceConfig.model_validate(record) for record in records)


class SourcesStore(Store):
    """The objects of several sources as one `Store`, for reading. Thread-safe; can be pickled and forked."""

    def __init__(self, sources: Sequence[SourceConfig]) -> None:
        self.uri = "sources:"
        self.sources = {source.name: source for source in sources}
        self._stores: dict[tuple[str, str], Store] = {}

    def place_of(self, key: str) -> tuple[str, str]:
        """URI of the folder or bucket that holds an object, and its key there. Raises `NotFound`."""
        name, _, rest = key.partition("/")
        source = self.sources.get(name)
        if source is None:
            raise NotFound(key)
        if source.uri or source.gdc:
            return source.uri or source.bucket, rest
        scheme, rest = ("s3", rest) if source.idc is not None else tuple(rest.split("/", 1))
        if scheme == "file":
            return "file:///", rest
        bucket, _, rest = rest.partition("/")
        return f"s3://{bucket}", rest

    def uri_of(self, key: str) -> str:
        """An object's own URI."""
        return join_uri(*self.place_of(key))

    def store_of(self, key: str) -> tuple[Store, str]:
        """The store that holds an object, open with its source's access, and its key there."""
        root, rest = self.place_of(key)
        name = key.partition("/")[0]
        if (name, root) not in self._stores:
            self._stores[name, root] = open_store(root, access_of(self.sources[name]))
        return self._stores[name, root], rest

    def get(self, key: str) -> bytes:
        store, rest = self.store_of(key)
        return store.get(rest)

    def get_ranges(self, ranges: Sequence[ByteRange]) -> list[bytes]:
        """One batch a store, one after the other: a batch of patches is seldom of more than two."""
        places: dict[int, list[tuple[int, ByteRange]]] = {}
        stores: dict[int, Store] = {}
        for number, each in enumerate(ranges):
            store, rest = self.store_of(each.key)
            stores[id(store)] = store
            places.setdefault(id(store), []).append((number, each._replace(key=rest)))
        found = [b""] * len(ranges)
        for name, wanted in places.items():
            data = stores[name].get_ranges([each for _, each in wanted])
            for (number, _), part in zip(wanted, data, strict=True):
                found[number] = part
        return found

    def head(self, key: str) -> ObjectInfo:
        store, rest = self.store_of(key)
        return replace(store.head(rest), key=key)

    def download(self, key: str, path: Path) -> ObjectInfo:
        store, rest = self.store_of(key)
        return replace(store.download(rest, path), key=key)

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        store, rest = self.store_of(prefix)
        start = prefix.removesuffix(rest)
        return (replace(each, key=start + each.key) for each in store.list(rest))

    def folders(self, prefix: str = "") -> Iterator[str]:
        store, rest = self.store_of(prefix)
        return store.folders(rest)

    def put(
        self, key: str, data: bytes, *, if_none_match: bool = False, if_match: str | None = None
    ) -> ObjectInfo:
        raise PermanentError(f"sources of slides are read only: {key}")

    def put_file(self, key: str, path: Path, *, if_none_match: bool = False) -> ObjectInfo:
        return self.put(key, b"")

    def delete(self, keys: Sequence[str]) -> None:
        self.put(keys[0], b"")


def origin_of(store: Store, key: str) -> dict[str, Any]:
    """URI, source and name of the credentials of a slide, for its row."""
    if not isinstance(store, SourcesStore):
        return {"uri": join_uri(store.uri, key), "source": "", "credentials": ""}
    name = key.partition("/")[0]
    return {"uri": store.uri_of(key), "source": name, "credentials": store.sources[name].credentials}


def open_slide_store(slides_uri: str, sources: Sequence[SourceConfig]) -> Store:
    """The slides of a run or a snapshot: of its sources, or of its one folder."""
    return SourcesStore(sources) if sources else open_store(slides_uri)


@dataclass
class Listed:
    """What the sources hold: units in key order, pictures passed over, and what is known of slides by key."""

    units: list[Unit] = field(default_factory=list)
    num_pictures: int = 0
    known: dict[str, Override] = field(default_factory=dict)


@dataclass(frozen=True)
class SourceEntry:
    """One slide that a manifest or an archive's index names: an object, or a folder where `key` ends in /."""

    key: str
    known: Override
    size_bytes: int | None = None
    """None where only its store knows."""


@dataclass(frozen=True)
class SourceFigures:
    """What a source holds, for a person who is about to read it."""

    name: str
    what: str
    num_slides: int
    num_objects: int | None
    """None where only its store knows."""
    num_patients: int
    num_bytes: int | None
    num_listing_requests: int
    credentials: str
    region: str
    """Empty where nobody named it."""
    leaves_region: bool | None
    """Whether what is read leaves the store's region for that of AWS_REGION; None where one is not known."""
    by_folder: bool = False
    """Each folder of DICOM, or of what no name tells, was taken for a slide."""

    def _indexing(self) -> str:
        """Requests that a first scan makes: 3 GETs a TIFF, 4 to 6 an instance of DICOM, one PUT a slide."""
        num = 5 * (self.num_objects or self.num_slides)
        return f"{'at least' if self.num_objects is None else 'about'} {num:,}"

    def __str__(self) -> str:
        objects = "" if self.num_objects is None else f" in {counted(self.num_objects, 'object')}"
        size = "size unknown" if self.num_bytes is None else size_text(self.num_bytes)
        unknown = f"; read from {self.region} (AWS_REGION says where to)" if self.region else ""
        out = {
            True: f"; all that is read leaves {self.region}",
            False: f"; stays in {self.region}",
            None: unknown,
        }
        patients = f", {counted(self.num_patients, 'patient')}" if self.num_patients else ""
        slides = counted(self.num_slides, "slide")
        slides = f"about {slides} (one a folder: only headers tell)" if self.by_folder else slides
        return (
            f"slides {self.name}: {slides}{objects}{patients}, {size}; "
            f"{counted(self.num_listing_requests, 'request')} to list them, {self._indexing()} to index them,"
            f" read with {self.credentials}{out[self.leaves_region]} ({self.what})"
        )


def list_slides(config: SlidesConfig, store: Store | None = None) -> Listed:
    """Everything that the folder or the sources hold; `store`: of these, where it is open.

    Folders are listed; a series of an archive costs a LIST, an object of a manifest a HEAD, `LISTS_AT_ONCE`
    of them in flight. What is named and not there is a unit without an etag, which becomes a row `missing`.
    Raises `UserError` for a manifest or a collection that is not there.
    """
    store, found = store or open_slide_store(config.uri, config.sources), Listed()
    if not config.sources:
        found.units, found.num_pictures = list_units(store.list(), config.include, store)
        return found
    with ThreadPoolExecutor(LISTS_AT_ONCE, "sources") as pool:
        for source in config.sources:
            if source.uri:
                units, num = list_units(store.list(f"{source.name}/"), config.include, store)
                found.units += units
                found.num_pictures += num
                continue
            entries = [each for each in entries_of(source) if is_included(each.key, config.include)]
            for entry, objects in zip(
                entries, pool.map(lambda each: _objects(store, each), entries), strict=True
            ):
                found.units.append(Unit(entry.key.rstrip("/"), "slide", objects))
                found.known[objects[0].key] = entry.known
    found.units.sort(key=lambda unit: unit.objects[0].key)
    return found


def require_slides(config: SlidesConfig) -> None:
    """Raises `UserError` saying why, where `list_slides` would find nothing; reads no more than it must."""
    if not config.sources:
        return require_slide(open_store(config.uri), config.include)
    store, empty = SourcesStore(config.sources), []
    for source in config.sources:
        if source.uri:
            root = store.store_of(f"{source.name}/")[0]
            require_slide(root, config.include, f"{source.name}/")
        elif not any(is_included(each.key, config.include) for each in entries_of(source)):
            empty.append(str(source))
    if empty:
        raise UserError(
            f"no slide is named by {', '.join(empty)}", hint="check slides.sources and slides.include"
        )
    return None


def figures_of(config: SlidesConfig) -> list[SourceFigures]:
    """What `include` names of each source (or the folder), from its index alone where it has one; folders are
    listed."""
    store = open_slide_store(config.uri, config.sources)
    if not config.sources:
        return [_figures(SourceConfig(uri=config.uri), store, "", config.include)]
    return [_figures(source, store, f"{source.name}/", config.include) for source in config.sources]


def _figures(source: SourceConfig, store: Store, prefix: str, include: Sequence[str]) -> SourceFigures:
    num_objects, by_folder = None, False
    if source.uri:
        units, _ = list_units(store.list(prefix), include, store)
        by_folder = any(unit.kind == "unsorted" and len(unit.objects) > 1 for unit in units)
        sizes: list[int | None] = [sum(each.size_bytes for each in unit.objects) for unit in units]
        num_objects = sum(len(unit.objects) for unit in units)
        num_requests, patients = -(-num_objects // 1000), 0
    else:
        entries = [each for each in entries_of(source) if is_included(each.key, include)]
        sizes = [each.size_bytes for each in entries]
        num_requests, patients = len(entries), len({each.known.patient for each in entries} - {""})
    known, here = [size for size in sizes if size is not None], os.environ.get("AWS_REGION", "")
    return SourceFigures(
        source.name, str(source), len(sizes), num_objects, patients,
        sum(known) if len(known) == len(sizes) else None, num_requests, source.credentials, source.region,
        source.region != here if source.region and here else None, by_folder,
    )  # fmt: skip


def owner_of(name: str, extra: Mapping[str, str]) -> tuple[str, str, str]:
    """A slide's cohort or source (`name`), and licence and DOI, as its manifest or archive says."""
    licence = next((extra[each] for each in _LICENCES if extra.get(each)), "")
    return name, licence, extra.get("doi", "")


def attribution(
    owners: Mapping[tuple[str, str, str], int], sources: Sequence[SourceConfig]
) -> tuple[str, ...]:
    """Whose the slides are: a line a cohort, licence and DOI that can be copied.

    `owners`: how many slides have each `owner_of`.
    """
    lines = []
    for (name, licence, doi), num in sorted(owners.items()):
        said = (f"{name or 'slides'}: {counted(num, 'slide')}", licence, doi and f"https://doi.org/{doi}")
        if licence or doi:
            lines.append(", ".join(filter(None, said)))
    return (*lines, *([_IDC_CITED] if any(source.idc is not None for source in sources) else []))


def entries_of(source: SourceConfig) -> Iterable[SourceEntry]:
    """What a manifest or an archive's index names, in key order. Raises `UserError` where there is none."""
    if source.idc is not None:
        return _of_idc(source)
    entries = sorted(_of_gdc(source) if source.gdc else _of_manifest(source), key=lambda each: each.key)
    for one, other in pairwise(entries):
        if one.key == other.key:
            named = one.key.removeprefix(f"{source.name}/")
            raise UserError(f"{source} names {named} twice", hint="take one of its lines out")
    return entries


def _objects(store: Store, entry: SourceEntry) -> tuple[ObjectInfo, ...]:
    """The objects of a slide; one of no etag where nothing is there."""
    key = entry.key
    absent = ObjectInfo(key, 0, "", 0.0)
    if key.endswith("/"):
        found = [each for each in store.list(key) if not each.key.endswith("/")]
        return tuple(each for each in found if could_be_slide(each.key)) or tuple(found) or (absent,)
    try:
        main = store.head(key)
    except NotFound:
        return (absent,)
    folder = folder_of_parts(key)
    if folder is None:
        return (main,)
    units, _ = list_units((main, *(each for each in store.list(folder) if each.key != key)))
    return next((unit.objects for unit in units if unit.objects[0].key == key), (main,))


def _of_idc(source: SourceConfig) -> list[SourceEntry]:
    idc = source.idc
    assert idc is not None
    try:
        import idc_index_data
    except ImportError as error:
        raise MissingDependency("idc-index-data", "idc") from error
    if idc.version and idc.version != idc_index_data.__version__:
        raise UserError(
            f"the run is of idc-index-data {idc.version}, and {idc_index_data.__version__} is installed",
            hint=f"pip install idc-index-data=={idc.version}",
        )
    table = _series(idc_index_data.IDC_INDEX_PARQUET_FILEPATH, tuple(idc.where))
    table = table.filter(_matches(table, "collection_id", idc.collections or ("*",)))
    for column, patterns in idc.where.items():
        table = table.filter(_matches(table, column, (patterns,) if isinstance(patterns, str) else patterns))
    entries = []
    for row in table.to_pylist():
        bucket, key = split_uri(row["series_aws_url"].rstrip("*"))
        extra = {"licence": row["license_short_name"], "doi": row["source_DOI"],
                 "series": row["SeriesInstanceUID"]}  # fmt: skip
        known = Override(patient=row["PatientID"] or "", cohort=row["collection_id"],
                         extra={name: value for name, value in extra.items() if value})  # fmt: skip
        place = f"{source.name}/{bucket.removeprefix('s3://')}/{key}/"
        entries.append(SourceEntry(place, known, round(1e6 * (row["series_size_MB"] or 0.0))))
    return sorted(entries, key=lambda each: each.key)


def _series(path: Path, columns: Sequence[str]) -> "pa.Table":
    """Rows of all whole-slide series. Raises `UserError` for a column that the index does not have."""
    import pyarrow.parquet as pq

    names = pq.read_schema(path).names
    for column in columns:
        if column not in names:
            near = difflib.get_close_matches(column, names, 1, 0.4)
            hint = f"did you mean {near[0]}?" if near else f"its columns are: {', '.join(names)}"
            raise UserError(
                f"slides: where names {column!r}, which the index of IDC does not have", hint=hint
            )
    wanted = {"collection_id", "PatientID", "SeriesInstanceUID", "series_aws_url", "series_size_MB",
              "license_short_name", "source_DOI", *columns}  # fmt: skip
    return pq.read_table(path, columns=sorted(wanted), filters=[("Modality", "=", "SM")])


def _matches(table: "pa.Table", column: str, patterns: Sequence[str]) -> Any:
    """Which rows have a value that a pattern fits. Raises `UserError` for a pattern that fits none."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = [str(each) for each in pc.unique(table.column(column)).to_pylist() if each is not None]
    kept: set[str] = set()
    for pattern in patterns:
        found = [each for each in values if fnmatchcase(each, pattern)]
        if not found:
            near = ", ".join(difflib.get_close_matches(pattern, values, 3, 0.4) or sorted(values)[:8])
            raise UserError(
                f"IDC has no whole-slide series with {column} {pattern!r}", hint=f"it has {near} …"
            )
        kept.update(found)
    return pc.is_in(pc.cast(table.column(column), pa.string()), pa.array(sorted(kept)))


def _of_gdc(source: SourceConfig) -> Iterator[SourceEntry]:
    absent = f"there is no GDC manifest at {source.gdc}"
    text = read_object(source.gdc, absent=absent, hint=_CHECK_SOURCES).decode("utf-8-sig", "replace")
    header, *lines = [line.split("\t") for line in text.splitlines() if line.strip()] or [[]]
    if not {"id", "filename"} <= set(header):
        raise UserError(f"{source.gdc} is no manifest of GDC: its first line names no id and filename")
    wanted = {"id", "filename", "size"} & set(header)
    for number, cells in enumerate(lines, 2):
        row = dict(zip(header, cells, strict=False))
        if len(cells) > len(header) or not wanted <= set(row) or not row.get("size", "0").isdecimal():
            raise UserError(f"{source.gdc}:{number}: {len(cells)} cells, or a size that is no number")
        patient = _TCGA_PATIENT.match(row["filename"])
        known = Override(patient=patient.group() if patient else "", extra={"gdc_id": row["id"]})
        size = int(row["size"]) if "size" in row else None
        yield SourceEntry(f"{source.name}/{row['id']}/{row['filename']}", known, size)


def _of_manifest(source: SourceConfig) -> Iterator[SourceEntry]:
    absent = f"there is no manifest of slides at {source.manifest}"
    data = read_object(source.manifest, absent=absent, hint=_CHECK_SOURCES)
    if data[:4] == b"PAR1":
        import pyarrow as pa
        import pyarrow.parquet as pq

        try:
            rows = pq.read_table(pa.BufferReader(data)).to_pylist()
        except pa.ArrowException as error:
            raise UserError(f"{source.manifest} is no whole Parquet file: {error}") from error
        cells = (
            {name: "" if value is None or value != value else str(value).strip()  # NaN is no value either
             for name, value in row.items()} for row in rows
        )  # fmt: skip
        overrides: Overrides = overrides_of(cells, source.manifest)
    else:
        overrides = parse_overrides(data, source.manifest)
    folder = source.manifest.rpartition("/")[0]
    for name, line in overrides.lines.items():
        if line.exclude:
            continue
        root, key = split_uri(
            name if "://" in name or name.startswith("/") else join_uri(folder or ".", name)
        )
        if not key:
            raise UserError(f"{source.manifest}: {name} is a bucket, not a slide's object or folder")
        scheme, _, bucket = root.partition("://")
        place = "/".join(filter(None, (source.name, scheme, bucket.strip("/"), key)))
        size = line.extra.get("size_bytes", "")
        yield SourceEntry(place + "/" * name.endswith("/"), line, int(size) if size.isdecimal() else None)
