"""Snapshots made by hand, so that patches are tested apart from the scan that makes real ones."""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from eosin.demo.synthetic import SyntheticConfig, publish_slide
from eosin.demo.synthetic.scene import draw_slide
from eosin.index.rows import OK, SlideRow, decode_rows, encode_rows
from eosin.index.snapshot import Snapshot, load_snapshot_rows
from eosin.index.tissue_mask import TissueMask
from eosin.layout import IndexLayout
from eosin.patches.sets.patchset import read_manifest, read_shard
from eosin.records import PatchSetManifest, SnapshotManifest
from eosin.records.patchset_shard import PatchRow
from eosin.slides.model import Level, SlideHeader, SlideObject
from eosin.storage import open_store
from tests.support.regions import read_header
from tests.support.slide_files import halved, write_aperio

MASK_PX = 32
"""Level-0 pixels a mask pixel."""


def paper_header(
    width_px: int, height_px: int, mpp: float | tuple[float, float] = 0.25,
    downsamples: Iterable[int] = (1, 4, 16),
    key: str = "paper.svs",
) -> SlideHeader:  # fmt: skip
    """A header with no slide behind it."""
    mpp_x, mpp_y = (mpp, mpp) if isinstance(mpp, float) else mpp
    levels, first = [], 0
    for down in downsamples:
        level = Level(width_px // down, height_px // down, float(down), 240, 240, "jpeg", "ycbcr", first)
        levels.append(level)
        first += level.num_tiles
    return SlideHeader((SlideObject(key, "e", 1),), "aperio", "svs", tuple(levels), mpp_x, mpp_y)


def paper_row(
    slide: str, header: SlideHeader, mask: npt.NDArray[np.bool_] | None = None, *, patient: str = "",
    status: str = OK, detail: str = "",
) -> SlideRow:  # fmt: skip
    """A row whose tissue is `mask` over the whole slide (None: all of it is tissue)."""
    mask = np.ones((16, 16), bool) if mask is None else mask
    finest = header.levels[0]
    tissue = TissueMask.from_array(mask, finest.width_px / mask.shape[1], finest.height_px / mask.shape[0])
    mm2 = tissue.area * (header.mpp_x or 0) * (header.mpp_y or 0) / 1e6
    return SlideRow(
        slide, status, detail, header, "header", tissue, mm2, patient, digest=f"{abs(hash(slide)):064x}"
    )


def paper_snapshot(folder: Path, rows: Iterable[SlideRow], slides_uri: str = "") -> Snapshot:
    """A snapshot of `rows` whose index lies in `folder`."""
    data = encode_rows(rows)
    made = decode_rows(data, source="test")
    manifest = SnapshotManifest(
        snapshot_id="0123456789abcdef", rows_sha256=hashlib.sha256(data).hexdigest(),
        slides_uri=slides_uri or str(folder), indexer_version=1, num_slides=len(made),
        num_ok=made.column("status").count(OK), tissue_mm2=1.0,
    )  # fmt: skip
    store = open_store(str(folder))
    store.put(IndexLayout.snapshot_rows(manifest.snapshot_id), data)
    return Snapshot(manifest, load_snapshot_rows(store, manifest), store)


def index_slides(slides: Path, index: Path, change: Callable[[SlideRow], SlideRow] | None = None) -> Snapshot:
    """A snapshot of every file in `slides`; what is darker than glass is tissue."""
    store, rows = open_store(str(slides)), []
    tables = open_store(str(index))
    for info in store.list():
        header, table = read_header(store, [info])
        row = paper_row(info.key, header, _mask(slides / info.key, header))
        tables.put(IndexLayout.tiles(row.digest), table.tobytes())
        rows.append(change(row) if change else row)
    return paper_snapshot(index, rows, str(slides))


@lru_cache(maxsize=1)
def small_slides() -> SyntheticConfig:
    return SyntheticConfig(width_px=1920, height_px=1440, mpp=0.25, tile_px=240, downsamples=(1, 4))


def write_slide(path: Path, *, seed: int, config: SyntheticConfig | None = None) -> Path:
    """One synthetic slide."""
    publish_slide(open_store(str(path.parent)), path.name, seed=seed, config=config)
    return path


def write_slides(folder: Path, num: int, **encoding: Any) -> Path:
    """`num` synthetic slides of 1920 × 1440 px in `folder`; `encoding` as tifffile takes it, else JPEG."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(num):
        path, seed = folder / f"slide-{number}.svs", 100 + number
        if encoding:
            write_aperio(path, small_levels(seed), mpp=0.25, tile_px=240, **encoding)
        else:
            write_slide(path, seed=seed, config=small_slides())
    return folder


def small_levels(seed: int) -> list[npt.NDArray[np.uint8]]:
    """What such a slide shows, at its two levels."""
    pixels = draw_slide(seed, small_slides())
    return [pixels, halved(pixels, 2)]


def _mask(path: Path, header: SlideHeader) -> npt.NDArray[np.bool_]:
    import openslide

    finest = header.levels[0]
    with openslide.OpenSlide(str(path)) as slide:
        size = (finest.width_px // MASK_PX, finest.height_px // MASK_PX)
        small = np.asarray(slide.get_thumbnail(size).convert("RGB"), np.int16)
    return np.asarray(small.max(2) - small.min(2) > 20)


def read_patch_set(uri: str) -> tuple[PatchSetManifest, Iterator[PatchRow]]:
    """The manifest of the patch set at `uri`, and its patches in order."""
    store = open_store(uri)
    manifest = read_manifest(uri, store=store)
    return manifest, (row for shard in manifest.shards for row in read_shard(store, shard))
