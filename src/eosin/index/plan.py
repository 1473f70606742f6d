"""The scan plan: the listing, the overrides and the settings that together name a scan."""

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eosin.config import RunConfig
from eosin.config.index import SourceConfig
from eosin.errors import PermanentError, UserError
from eosin.index.contours import find_contours
from eosin.index.listing import Unit, listing_digest
from eosin.index.overrides import Override, parse_overrides, read_overrides
from eosin.index.read_slide import INDEXER_VERSION
from eosin.index.snapshot import load_manifest, read_latest
from eosin.index.sources import list_slides, open_slide_store, require_slides
from eosin.index.tissue_model import load_model_bytes, load_tissue_model, model_digest
from eosin.layout import IndexLayout, RunLayout
from eosin.records import ScanListing, ScanPin, load_record, publish_once, update_record
from eosin.records.parquet import read_table
from eosin.runs import require_apart
from eosin.slides.model import SlideObject
from eosin.storage import NotFound, ObjectInfo, Store, open_store, put_if_absent
from eosin.words import first_of

_LISTING = pa.schema(
    [
        ("unit", pa.string()),
        ("kind", pa.string()),
        ("key", pa.string()),
        ("size_bytes", pa.int64()),
        ("etag", pa.string()),
        ("modified_s", pa.float64()),
        ("known", pa.string()),
    ]
)


@dataclass(frozen=True)
class ScanPlan:
    """One logical scan: its shards meet under one id, that of what was listed and how it is read."""

    scan_id: str
    sources: Sequence[SourceConfig]
    slides_uri: str
    """The folder, or what the sources are, for a person."""
    slides: Store
    index: Store
    units: Sequence[Unit]
    num_pictures: int
    """Objects that are pictures by name, and no slides."""
    tissue_model: bytes
    """The ONNX model of `index.tissue.onnx`; empty where none is named."""
    overrides: Mapping[str, Override]
    unknown_overrides: Sequence[str]
    """Names in the overrides that name no slide, or several."""
    unknown_contours: Sequence[str]
    """Files in `slides.contours` that name no slide, or several."""
    is_new: bool = False
    """Whether nobody opened this scan before: nothing of it has to be looked for."""

    def override(self, objects: Sequence[ObjectInfo | SlideObject]) -> Override | None:
        """What the overrides say of the slide made of `objects`."""
        return next((self.overrides[each.key] for each in objects if each.key in self.overrides), None)


@dataclass(frozen=True)
class _Inputs:
    """What a scan depends on beside the configuration."""

    units: Sequence[Unit]
    num_pictures: int
    known: Mapping[str, Override]
    """What a manifest or an archive says of slides, and where their contours lie, by key."""
    overrides: bytes
    tissue_model: bytes
    unknown_contours: Sequence[str]


def plan_scan(config: RunConfig, scan_id: str = "") -> ScanPlan:
    """The plan of a scan that was opened, from what it published; without an id, from what is there now.

    Raises `UserError` for what is not configured, where there is no slide, and where no scan `scan_id` was
    opened in the index.
    """
    slides, index = _stores(config)
    return _plan(config, slides, index, _published(index, scan_id) if scan_id else _listed(config, slides))


def open_scan(config: RunConfig) -> ScanPlan:
    """List the slides and publish what all shards will work from.

    The same listing, overrides and settings have the same id. Raises as `plan_scan`, and where the tissue
    model is none.
    """
    slides, index = _stores(config)
    inputs = _listed(config, slides)
    plan = _plan(config, slides, index, inputs)
    load_tissue_model(config.index.tissue.onnx, plan.tissue_model)  # refused before anything is published
    is_new = put_if_absent(index, IndexLayout.scan_listing(plan.scan_id), _encode(plan.units, inputs.known))
    if inputs.overrides:
        put_if_absent(index, IndexLayout.scan_overrides(plan.scan_id), inputs.overrides)
    if inputs.tissue_model:
        put_if_absent(index, IndexLayout.scan_tissue_model(plan.scan_id), inputs.tissue_model)
    marker = ScanListing(
        slides_uri=plan.slides_uri,
        num_objects=sum(len(unit.objects) for unit in plan.units),
        num_pictures=inputs.num_pictures,
        has_overrides=bool(inputs.overrides),
        unknown_contours=tuple(inputs.unknown_contours),
        has_tissue_model=bool(inputs.tissue_model),
    )
    publish_once(index, IndexLayout.scan_marker(plan.scan_id), marker)
    return replace(plan, is_new=is_new)


def scan_of_run(run: Store, config: RunConfig, *, anew: bool = False) -> str:
    """Id of the scan that makes a run's snapshot, opened and pinned by whoever asks first.

    All steps of the run work from its listing, however often they are tried again: what comes later is for
    the next run. Another is opened where that of the pin was deleted, and, with `anew`, where it has ended
    without a slide to use.
    """
    _, index = _stores(config)

    def change(found: ScanPin | None) -> ScanPin | None:
        is_there = found is not None and index.exists(IndexLayout.scan_marker(found.scan_id))
        if found is not None and is_there and not (anew and _ended_empty(index, found)):
            return None
        return ScanPin(scan_id=open_scan(config).scan_id)

    pin = update_record(ScanPin, run, RunLayout.SCAN, change)
    assert pin is not None
    return pin.scan_id


def _stores(config: RunConfig) -> tuple[Store, Store]:
    """Of the slides and of the index."""
    if not str(config.slides):
        raise UserError("no slides named", hint="give their folder: slides.uri, or --slides")
    if not config.index.uri:
        raise UserError("no place for the index named", hint="give it: index.uri, or --index")
    require_apart(config.slides, config.index.uri)
    return open_slide_store(config.slides.uri, config.slides.sources), open_store(config.index.uri)


def _listed(config: RunConfig, slides: Store) -> _Inputs:
    listed = list_slides(config.slides, slides)
    if not listed.units:
        require_slides(config.slides)
    overrides = read_overrides(config.slides.overrides)
    model = load_model_bytes(config.index.tissue.onnx)
    known, unknown = dict(listed.known), list[str]()
    if config.slides.contours and listed.units:
        found, unknown = find_contours(config.slides.contours, listed.units)
        known |= {key: line.over(known.get(key)) for key, line in found.items()}
    return _Inputs(listed.units, listed.num_pictures, known, overrides, model, unknown)


def _plan(config: RunConfig, slides: Store, index: Store, inputs: _Inputs) -> ScanPlan:
    overrides = parse_overrides(inputs.overrides, config.slides.overrides)
    found, unknown = overrides.matched(inputs.units)
    if unknown and not found and inputs.units:
        raise UserError(
            f"{config.slides.overrides} names no slide of {config.slides}, or several by one name:"
            f" {first_of(unknown, 3)}",
            hint=f"the slides are {first_of([unit.key for unit in inputs.units], 3)}; the column `slide`"
            " holds a key, a file name, or one without its suffix",
        )
    found = {**inputs.known, **{key: line.over(inputs.known.get(key)) for key, line in found.items()}}
    known = {key: asdict(line) for key, line in sorted(inputs.known.items())}
    sources = [each.model_dump(mode="json") for each in config.slides.sources]
    identity = [
        slides.uri, sources, known, listing_digest(inputs.units), overrides.digest,
        list(config.slides.include), config.index.tissue.model_dump(mode="json"), config.index.max_mpp,
        INDEXER_VERSION, model_digest(inputs.tissue_model),
    ]  # fmt: skip
    scan_id = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
    return ScanPlan(
        scan_id,
        config.slides.sources,
        slides.uri if config.slides.uri else str(config.slides),
        slides,
        index,
        inputs.units,
        inputs.num_pictures,
        inputs.tissue_model,
        found,
        unknown,
        inputs.unknown_contours,
    )


def _ended_empty(index: Store, pin: ScanPin) -> bool:
    latest = read_latest(index)
    if latest is None or latest.scan_id != pin.scan_id:
        return False
    manifest = load_manifest(index, latest.snapshot_id)
    return manifest is not None and manifest.num_ok == 0


def _published(index: Store, scan_id: str) -> _Inputs:
    marker = load_record(ScanListing, index, IndexLayout.scan_marker(scan_id))
    if marker is None:
        raise UserError(
            f"there is no scan {scan_id} in {index.uri}",
            hint="without --scan a new one begins; `eosin index --shard` prints its name",
        )
    try:
        listing = index.get(IndexLayout.scan_listing(scan_id))
        overrides = index.get(IndexLayout.scan_overrides(scan_id)) if marker.has_overrides else b""
        model = index.get(IndexLayout.scan_tissue_model(scan_id)) if marker.has_tissue_model else b""
    except NotFound as error:
        raise PermanentError(
            f"{index.uri}/{error.args[0]} is gone", hint=f"delete {IndexLayout.scan(scan_id)} and index again"
        ) from None
    units, known = _decode(listing)
    return _Inputs(units, marker.num_pictures, known, overrides, model, marker.unknown_contours)


def _encode(units: Sequence[Unit], known: Mapping[str, Override]) -> bytes:
    rows = [
        (unit.key, unit.kind, each.key, each.size_bytes, each.etag, each.modified_s,
         json.dumps(asdict(known[each.key])) if each.key in known else None)
        for unit in units for each in unit.objects
    ]  # fmt: skip
    columns = zip(*rows, strict=True) if rows else ([] for _ in _LISTING)
    arrays = [pa.array(each, kind) for each, kind in zip(columns, _LISTING.types, strict=True)]
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays, schema=_LISTING), buffer, compression="zstd")
    return buffer.getvalue()


def _decode(data: bytes) -> tuple[list[Unit], dict[str, Override]]:
    known: dict[str, Override] = {}
    units: dict[tuple[str, Any], list[ObjectInfo]] = {}
    table = read_table(data)
    columns = [table.column(each).to_pylist() for each in _LISTING.names]
    del table
    for unit, kind, key, size_bytes, etag, modified_s, said in zip(*columns, strict=True):
        units.setdefault((unit, kind), []).append(ObjectInfo(key, size_bytes, etag, modified_s))
        if said:
            known[key] = Override(**json.loads(said))
    return [Unit(key, kind, tuple(objects)) for (key, kind), objects in units.items()], known
