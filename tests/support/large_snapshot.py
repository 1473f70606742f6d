"""Snapshots of as many slides as a large archive has, with masks and tile tables of real sizes."""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eosin.index.rows import SCHEMA, SlideRow, conformed, write_rows
from eosin.index.snapshot import Latest
from eosin.index.tissue_mask import TissueMask
from eosin.layout import IndexLayout
from eosin.records import SnapshotManifest
from eosin.slides.model import TILE_DTYPE, Level, SlideHeader, SlideObject
from eosin.storage import open_store

WIDTH_PX, HEIGHT_PX, TILE_PX, MPP = 100_000, 80_000, 240, 0.25
MASK_MPP = 8.0
NUM_DRAWN = 4
SNAPSHOT = "0123456789abcdef"
_AT_ONCE, _TRUE_MASKS = 16384, 1000


def large_header(name: str) -> SlideHeader:
    """An Aperio slide of 100,000 × 80,000 px with levels 1, 4, 16 and 64: 148,000 tiles."""
    levels: list[Level] = []
    for down in (1, 4, 16, 64):
        levels.append(
            Level(
                WIDTH_PX // down,
                HEIGHT_PX // down,
                float(down),
                TILE_PX,
                TILE_PX,
                "jpeg",
                "ycbcr",
                sum(each.num_tiles for each in levels),
                jpeg_tables=bytes(580),
            )
        )
    stored = SlideObject(name, hashlib.md5(name.encode()).hexdigest(), 1_200_000_000)
    return SlideHeader((stored,), "aperio", "svs", tuple(levels), MPP, MPP)


def large_mask(seed: int) -> TissueMask:
    """Ragged pieces of tissue at 8 µm a pixel: some 45 kB packed, more than most real masks have."""
    rng = np.random.default_rng(seed)
    down = MASK_MPP / MPP
    height, width = round(HEIGHT_PX / down), round(WIDTH_PX / down)
    rough = rng.random((height // 250, width // 250), np.float32)
    fine = rng.random((height // 25, width // 25), np.float32)
    size = (width, height)
    field = cv2.resize(rough, size, interpolation=cv2.INTER_CUBIC)
    field += 0.15 * cv2.resize(fine, size, interpolation=cv2.INTER_CUBIC)
    return TissueMask.from_array(field > 0.75, down, down)


def write_large_snapshot(folder: Path, num_slides: int) -> int:
    """A snapshot of `num_slides` in `folder`, two slides a patient; bytes of its rows. Tables are apart."""
    masks = [large_mask(seed) for seed in range(NUM_DRAWN)]
    drawn = [_row(i, mask) for i, mask in enumerate(masks)]
    buffer, bits = io.BytesIO(), io.BytesIO()
    write_rows(drawn, buffer, bits)
    table = conformed(pq.read_table(pa.BufferReader(buffer.getvalue())))
    sink, num_masks = pa.BufferOutputStream(), bits.tell()
    with pq.ParquetWriter(sink, SCHEMA, compression="zstd", write_statistics=False) as writer:
        for start in range(0, num_slides, _AT_ONCE):
            numbers = range(start, min(start + _AT_ONCE, num_slides))
            names = [f"cohort/slide-{i:07d}.svs" for i in numbers]
            part = pa.concat_tables([table] * -(-len(numbers) // NUM_DRAWN)).slice(0, len(numbers))
            places = [i // NUM_DRAWN % _TRUE_MASKS * num_masks for i in numbers]
            for column, values in (
                ("slide", names),
                ("patient", [f"P{i // 2:07d}" for i in numbers]),
                ("digest", [hashlib.sha256(name.encode()).hexdigest()[:32] for name in names]),
                ("content", [hashlib.md5(name.encode()).hexdigest() for name in names]),
                ("mask_start", np.array(places) + part.column("mask_start").to_numpy()),
            ):
                kind = SCHEMA.field(column).type
                part = part.set_column(SCHEMA.get_field_index(column), column, pa.array(values, kind))
            writer.write_table(part)
    data = sink.getvalue().to_pybytes()
    _publish(folder, data, num_slides, sum(each.tissue_mm2 for each in drawn) * num_slides / NUM_DRAWN)
    path = folder / IndexLayout.snapshot_masks(SNAPSHOT)
    with path.open("wb") as file:  # a real archive has one a slide; these serve again and again
        for _ in range(_TRUE_MASKS):
            file.write(bits.getvalue())
    return len(data)


def write_table(folder: Path, row: SlideRow) -> None:
    """The tile table of one slide, at its real size."""
    num_tiles = sum(level.num_tiles for level in row.header.levels)
    table = np.zeros(num_tiles, TILE_DTYPE)
    table["size_bytes"] = 14_000
    table["offset"] = 4096 + 14_000 * np.arange(num_tiles)
    open_store(str(folder)).put(IndexLayout.tiles(row.digest), table.tobytes())


def link_tables(folder: Path, rows: Sequence[SlideRow]) -> int:
    """The tile tables of all `rows`, at their real sizes, sharing one file; bytes they have together."""
    write_table(folder, rows[0])
    first = folder / IndexLayout.tiles(rows[0].digest)
    for row in rows[1:]:
        link = folder / IndexLayout.tiles(row.digest)
        link.parent.mkdir(parents=True, exist_ok=True)
        link.hardlink_to(first)
    return first.stat().st_size * len(rows)


def _row(number: int, mask: TissueMask) -> SlideRow:
    header = large_header(f"{number}.svs")
    tissue_mm2 = mask.area * MPP**2 / 1e6
    return SlideRow(
        f"{number}.svs", "ok", "", header, mpp_source="header", tissue=mask, tissue_mm2=tissue_mm2,
        read_status="ok", has_thumbnail=True,
    )  # fmt: skip


def _publish(folder: Path, data: bytes, num_slides: int, tissue_mm2: float) -> None:
    store = open_store(str(folder))
    store.put(IndexLayout.snapshot_rows(SNAPSHOT), data)
    manifest = SnapshotManifest(
        snapshot_id=SNAPSHOT, rows_sha256=hashlib.sha256(data).hexdigest(), slides_uri="s3://slides/all",
        indexer_version=2, num_slides=num_slides, num_ok=num_slides, tissue_mm2=tissue_mm2,
    )  # fmt: skip
    store.put(IndexLayout.snapshot_marker(SNAPSHOT), manifest.to_json())
    store.put(IndexLayout.LATEST, Latest(snapshot_id=SNAPSHOT, scan_id="scan").to_json())
