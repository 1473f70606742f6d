"""Read any rectangle of a slide: one verified method, one private hook a way of access."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from eosin.closing import Closing
from eosin.slides.decode import decode_tile
from eosin.slides.errors import SlideError
from eosin.slides.local import open_local
from eosin.slides.model import SlideHeader, TileTable
from eosin.slides.region import assemble_region, tiles_of_region
from eosin.slides.staging import stage
from eosin.storage import ByteRange, NotFound, ObjectChanged, Store

Pixels = npt.NDArray[np.uint8]
_MAX_REGION_PIXELS = 1 << 30


class SlideReader(Closing, ABC):
    """An open slide. Coordinates of `read_region` are level-0 pixels; sizes are the level's own.

    Thread-safe. Damage raises `SlideError`; nothing is left half-open by it.
    """

    def __init__(self, header: SlideHeader) -> None:
        self.header = header

    def read_region(self, position_px: tuple[int, int], level: int, size_px: tuple[int, int]) -> Pixels:
        """[h, w, 3] uint8, RGB: `size_px` (w, h) pixels of `level` at (x, y) in the level-0 frame.

        A position between two pixels of the level is rounded to the nearest. What lies outside the
        slide is white. Raises ValueError for a level or size the slide does not have, `SlideError`
        (`corrupt-tile`, `changed`) for what cannot be read.
        """
        (x, y), (w, h) = position_px, size_px
        if not 0 <= level < len(self.header.levels):
            raise ValueError(f"level {level} of a slide with {len(self.header.levels)} levels")
        if w <= 0 or h <= 0 or w * h > _MAX_REGION_PIXELS:
            raise ValueError(f"a region of {w} × {h} px")
        return self._read(int(x), int(y), level, int(w), int(h))

    @abstractmethod
    def _read(self, x_px: int, y_px: int, level: int, w: int, h: int) -> Pixels:
        """The region at a level-0 position, arguments already checked."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the reader holds; reading afterwards is an error."""


def open_slide_reader(
    store: Store, header: SlideHeader, tiles: TileTable, *, stage_dir: str | Path | None = None
) -> SlideReader:
    """A reader of the slide in `store` (the slides URI) that `header` and its whole tile table describe.

    A slide with `access="local"` is downloaded to `stage_dir` first and deleted on `close`.
    """
    if header.access == "local":
        return LocalSlideReader(store, header, stage_dir)
    return TileSlideReader(store, header, tiles)


class TileSlideReader(SlideReader):
    """Tiles by byte range, pinned to the etags of the header; the tiles of a region in one request."""

    def __init__(self, store: Store, header: SlideHeader, tiles: TileTable) -> None:
        super().__init__(header)
        self._store = store
        self._tiles = tiles

    def _read(self, x_px: int, y_px: int, level: int, w: int, h: int) -> Pixels:
        found = self.header.levels[level]
        x, y = to_level(x_px, found.downsample), to_level(y_px, found.downsample)
        wanted = tiles_of_region(found, x, y, w, h)
        data = fetch_tiles(self._store, self.header, self._tiles[found.first_tile :], wanted)
        return assemble_region(found, x, y, w, h, lambda i: decode_tile(found, data[i]) if data[i] else None)

    def close(self) -> None:
        """Holds nothing."""


class LocalSlideReader(SlideReader):
    """OpenSlide on a staged copy."""

    def __init__(self, store: Store, header: SlideHeader, stage_dir: str | Path | None) -> None:
        super().__init__(header)
        self._folder = TemporaryDirectory(prefix="eosin-stage-", dir=stage_dir)
        try:
            self._slide = open_local(stage(store, header.objects, Path(self._folder.name)))
        except BaseException:
            self._folder.cleanup()
            raise

    def _read(self, x_px: int, y_px: int, level: int, w: int, h: int) -> Pixels:
        return self._slide.read_region(x_px, y_px, level, w, h)

    def close(self) -> None:
        self._slide.close()
        self._folder.cleanup()


def to_level(position_px: int, downsample: float) -> int:
    """The nearest pixel of a level to a level-0 position."""
    return int(np.floor(position_px / downsample + 0.5))


def fetch_tiles(store: Store, header: SlideHeader, rows: TileTable, wanted: list[int]) -> dict[int, bytes]:
    """Bytes of the `wanted` tiles by index within `rows` (empty: an empty tile), in one batched read.

    `rows` is the tile table, or a level's part of it. Raises `SlideError` (`changed`, `corrupt-tile`).
    """
    ranges = []
    for index in wanted:
        offset, size_bytes, which = rows[index].tolist()
        stored = header.objects[which]
        ranges.append(ByteRange(stored.key, offset, size_bytes, stored.etag))
    filled = [i for i, each in enumerate(ranges) if each.length]
    try:
        data = store.get_ranges([ranges[i] for i in filled])
    except (ObjectChanged, NotFound) as error:
        raise SlideError("changed", f"{header.objects[0].key} was replaced since it was indexed") from error
    found = dict.fromkeys(wanted, b"")
    for i, part in zip(filled, data, strict=True):
        if len(part) != ranges[i].length:
            raise SlideError("corrupt-tile", f"tile {wanted[i]} ends early in {ranges[i].key}")
        found[wanted[i]] = part
    return found
