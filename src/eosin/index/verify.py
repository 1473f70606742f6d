"""The guard against misread formats: one slide of each kind, held against what an independent reader shows.

A reader that places tiles wrongly does so for all slides of a scanner and a layout, and says nothing. So of
each vendor and layout the smallest usable slide is staged whole, and OpenSlide's pictures of it (wsidicom's,
for DICOM) are compared with ours: the one that the mask was made from, and squares of every level.
"""

import io
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image

from eosin.errors import EosinError
from eosin.index.other_reader import Place, pictures_by_another
from eosin.index.rows import OK, SlideRow, SlideRows
from eosin.layout import IndexLayout
from eosin.slides.decode import decode_tile
from eosin.slides.model import TILE_DTYPE, SlideHeader, TileTable
from eosin.slides.region import TilePart, fetch_tiles, parts_of_region
from eosin.slides.staging import staged
from eosin.slides.table import level_table
from eosin.storage import NotFound, ObjectChanged, Store

Pixels = npt.NDArray[np.uint8]
_SIDE_PX = 96
# Squares of a level, around tiles of many bytes and of fewer, compared so small that focus is no difference.
_SQUARE_PX, _SMALL_PX, _RANKS = 512, 32, (1.0, 0.75, 0.5)
# A larger slide is not worth its transfer: kinds of which all are larger stay unchecked, as `inspect` says.
_LARGEST_BYTES = 2**30
# Mean difference of two pictures of at most 96 px, in grey levels and as a share of the picture's contrast.
# Readers that agreed were 1 to 10 levels apart, at most a fifth of the contrast (ten slides, six layouts).
_MOST_DIFFERENCE, _MOST_SHARE_OF_CONTRAST = 6.0, 0.35
_MOST_ASPECT = 0.05


class Smallest:
    """The smallest usable slide of each vendor and layout whose tiles eosin places, of rows that pass by."""

    def __init__(self) -> None:
        self.found: dict[tuple[object, ...], tuple[int, str, pa.Table]] = {}

    def look(self, table: pa.Table) -> None:
        """Take the rows of a table of one chunk into account."""
        objects = table.column("objects").chunk(0)
        ends = np.append(0, np.cumsum(objects.flatten().field("size_bytes")))[np.asarray(objects.offsets)]
        finest = pc.list_slice(table.column("levels").chunk(0), 0, 1, return_fixed_size_list=True).values
        of_level = (pc.struct_field(finest, name) for name in ("compression", "color_space", "predictor"))
        columns = (table.column("vendor"), table.column("format"), *of_level)
        kinds = zip(
            *(each.to_pylist() for each in columns), (np.diff(objects.offsets) > 1).tolist(), strict=True
        )
        usable = pc.and_(pc.equal(table.column("status"), OK), pc.equal(table.column("access"), "tiles"))
        rows = zip(table.column("slide").to_pylist(), usable.to_pylist(), np.diff(ends).tolist(), kinds,
                   strict=True)  # fmt: skip
        for number, (slide, is_usable, size, kind) in enumerate(rows):
            if not is_usable or str(kind[3]).endswith("+other"):  # a sample that OpenSlide takes for alpha
                continue
            if kind not in self.found or (size, slide) < self.found[kind][:2]:
                # A copy: a slice would hold the masks of all the table's slides.
                self.found[kind] = size, slide, table.take([number])


def chosen_to_verify(smallest: Smallest) -> list[SlideRow]:
    """Of the smallest slides those that are worth their transfer, in order of slides."""
    chosen = (each[1:] for each in smallest.found.values() if each[0] <= _LARGEST_BYTES)
    return [SlideRows(table)[0] for _, table in sorted(chosen, key=lambda each: each[0])]


def is_comparable(row: SlideRow) -> bool:
    """Whether a slide is usable, its tiles are placed by eosin, and it is worth its transfer."""
    return row.status == OK and row.header.access == "tiles" and row.size_bytes <= _LARGEST_BYTES


def disagreement(slides: Store, index: Store, row: SlideRow, stage_dir: str | None) -> str | None:
    """What an independent reader shows otherwise; empty where both agree, None where none reads the slide.

    An answer is kept beside the slide's tile table, so that the next snapshot need not read the slide again.
    """
    key = IndexLayout.other_reading(row.digest)
    try:
        return index.get(key).decode()
    except NotFound:
        answer = _disagreement(slides, index, row, stage_dir)
    if answer is not None:
        index.put(key, answer.encode())
    return answer


def _disagreement(slides: Store, index: Store, row: SlideRow, stage_dir: str | None) -> str | None:
    header = row.header
    try:
        published = index.get(IndexLayout.tiles(row.digest))
        with Image.open(io.BytesIO(published[row.table_bytes :]), formats=("JPEG",)) as stored:
            ours = np.asarray(stored.convert("RGB"))
        tiles = np.frombuffer(published[: row.table_bytes], TILE_DTYPE)
        with (
            pictures_by_another(header.format == "dicom") as ask,
            ThreadPoolExecutor(1, "squares") as pool,
        ):
            seen = pool.submit(lambda: list(_squares(slides, header, tiles)))
            with staged(slides, header.objects, stage_dir) as path:
                squares = seen.result()
                theirs = ask(path, [place for _, place, _ in squares])
    except (EosinError, NotFound, ObjectChanged, OSError):
        return None
    if theirs is None or theirs[0] is None:
        return None
    if said := _difference(ours, theirs[0], "its picture", is_even=header.mpp_x == header.mpp_y):
        return said
    for (number, _, square), other in zip(squares, theirs[1:], strict=True):
        if other is not None and (said := _difference(square, other, f"level {number}", most_px=_SMALL_PX)):
            return said
    return ""


_Square = tuple[int, Place, Pixels]


def _squares(slides: Store, header: SlideHeader, tiles: TileTable) -> Iterator[_Square]:
    """Number of a level, place and pixels of squares whose tiles are all there; these are read at once."""
    places = list(_places(header, tiles))
    wanted = {header.levels[number].first_tile + part.tile for number, _, parts in places for part in parts}
    data = fetch_tiles(slides, header, tiles, sorted(wanted))
    for number, place, parts in places:
        level, pixels = header.levels[number], np.zeros((place.side_px, place.side_px, 3), np.uint8)
        found = [data[level.first_tile + part.tile] for part in parts]
        if not all(found):  # what stands for an absent tile is each reader's own affair
            continue
        for part, tile in zip(parts, found, strict=True):
            part.of_region(pixels)[:] = part.of_tile(decode_tile(level, tile))
        yield number, place, pixels


def _places(header: SlideHeader, tiles: TileTable) -> Iterator[tuple[int, Place, list[TilePart]]]:
    for number, level in enumerate(header.levels):
        rows = level_table(level, tiles)
        by_size = np.argsort(rows["size_bytes"], kind="stable")
        for tile in {int(by_size[int(rank * (len(rows) - 1))]) for rank in _RANKS}:
            side = min(_SQUARE_PX, level.width_px, level.height_px)
            row, column = divmod(tile, level.num_tiles_x)
            x, y = (
                int(np.clip(round((i + 0.5) * tile_px - side / 2), 0, level_px - side))
                for i, tile_px, level_px in ((column, level.tile_width_px, level.width_px),
                                             (row, level.tile_height_px, level.height_px))
            )  # fmt: skip
            place = Place(level.width_px, level.height_px, level.downsample, x, y, side)
            yield number, place, parts_of_region(level, x, y, side, side)


def _difference(
    ours: Pixels, theirs: Pixels, what: str, *, is_even: bool = True, most_px: int = _SIDE_PX
) -> str:
    aspects = [picture.shape[1] / picture.shape[0] for picture in (ours, theirs)]
    # Our picture of a slide of uneven resolution has square pixels, a library's has the slide's.
    if is_even and abs(aspects[0] / aspects[1] - 1) > _MOST_ASPECT:
        return f"{what} is {aspects[0]:.2f} times as wide as high, another reader's {aspects[1]:.2f} times"
    # No finer than the coarser of the two, else what one of them cannot show is taken for a difference.
    side_px = min(most_px, *ours.shape[:2], *theirs.shape[:2])
    one, other = (
        cv2.resize(picture, (side_px, side_px), interpolation=cv2.INTER_AREA).astype(np.float32)
        for picture in (ours, theirs)
    )
    apart, contrast = float(np.abs(one - other).mean()), float(np.abs(other - other.mean((0, 1))).mean())
    if apart > max(_MOST_DIFFERENCE, _MOST_SHARE_OF_CONTRAST * contrast):
        return f"{what} is not as another reader shows it: {apart:.0f} grey levels apart on average"
    return ""
