"""Patch tokens of images with masks: cut into tiles, frozen, in memory within a bound."""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image

from eosin.errors import PermanentError, UserError
from eosin.evaluation.datasets.dataset import MissingImage
from eosin.evaluation.datasets.masks import (
    IGNORE,
    Classes,
    MaskCoding,
    MaskedDataset,
    infer_coding,
    load_mask,
)
from eosin.evaluation.judged_model import JudgedModel
from eosin.evaluation.transform import BadImage, decode_image, fit
from eosin.observability import RunLog

if TYPE_CHECKING:
    from eosin.evaluation.embeddings.forward import Forward


TILES_VERSION = 1
_WHITE = 255

Pixels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Tile:
    """A square of sample `row`: its corner, and where the part of it that no earlier tile has begins.

    All in pixels of the image, x to the right and y down.
    """

    row: int
    x_px: int
    y_px: int
    own_x_px: int
    own_y_px: int


def grid(row: int, width_px: int, height_px: int, side_px: int) -> list[Tile]:
    """Tiles over the whole image at its own scale; the last of a row or column is moved inward to fit."""
    return [
        Tile(row, x, y, own_x, own_y)
        for y, own_y in _starts(height_px, side_px)
        for x, own_x in _starts(width_px, side_px)
    ]


def _starts(length_px: int, side_px: int) -> list[tuple[int, int]]:
    wanted = range(0, length_px, side_px)
    return [(max(0, min(start, length_px - side_px)), start) for start in wanted]


def whole_grid(row: int, width_px: int, height_px: int, tile_px: int) -> list[Tile]:
    """Squares of `tile_px` side by side from the corner on, as many as fit whole (eva's `GridSampler`)."""
    return [
        Tile(row, x, y, x, y)
        for x in range(0, width_px - tile_px + 1, tile_px)
        for y in range(0, height_px - tile_px + 1, tile_px)
    ]


def _resized(pixels: Pixels, classes: Classes, side_px: int) -> tuple[Pixels, Classes]:
    """At the model's size; classes by the nearest of torch, whose places are cut to whole numbers."""
    places = np.arange(side_px) * len(classes) // side_px
    return fit(Image.fromarray(pixels), side_px), classes[places][:, places]


def cut(image: Pixels, classes: Classes, tile: Tile, side_px: int) -> tuple[Pixels, Classes]:
    """Pixels [side, side, 3] and classes [side, side] of a tile.

    What an earlier tile has already is `IGNORE`, so that no pixel counts twice; an image smaller than
    the tile is filled up with white that is `IGNORE` too.
    """
    y, x = tile.y_px, tile.x_px
    pixels = np.full((side_px, side_px, 3), _WHITE, dtype=np.uint8)
    labels = np.full((side_px, side_px), IGNORE, dtype=np.uint8)
    seen = image[y : y + side_px, x : x + side_px]
    pixels[: seen.shape[0], : seen.shape[1]] = seen
    own = classes[tile.own_y_px : y + side_px, tile.own_x_px : x + side_px]
    top, left = tile.own_y_px - y, tile.own_x_px - x
    labels[top : top + own.shape[0], left : left + own.shape[1]] = own
    return pixels, labels


def draw(tiles: Sequence[Tile], sources: Sequence[str], max_tiles: int) -> list[Tile]:
    """All tiles, or the `max_tiles` first by a stable hash, in their own order."""
    if len(tiles) <= max_tiles:
        return list(tiles)

    def rank(tile: Tile) -> str:
        return hashlib.sha256(f"{sources[tile.row]}\x1f{tile.x_px}\x1f{tile.y_px}".encode()).hexdigest()

    chosen = set(sorted(tiles, key=rank)[:max_tiles])
    return [tile for tile in tiles if tile in chosen]


_THREADS = 4
_MAX_NAMED = 20
_GIB = 1 << 30

T = TypeVar("T")
Tokens = npt.NDArray[np.floating]


@dataclass(frozen=True)
class TileTokens:
    """`tokens` float16 or float32 [N, D, h, w] and `classes` uint8 [N, side, side] of the tiles `tiles`."""

    tokens: Tokens
    classes: Classes
    tiles: tuple[Tile, ...]
    coding: MaskCoding
    num_tiles_there: int
    """Before the draw."""
    num_dropped: int
    dropped: tuple[dict[str, str], ...]
    """The first of the images left out: source and reason."""
    images: Pixels | None = None
    """uint8 [N, side, side, 3], where they are kept."""
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] = ((0.0,) * 3, (1.0,) * 3)
    """Mean and standard deviation that the backbone's images are normalised by."""


@dataclass
class _Mask:
    """Values and size of a mask, or why it cannot be used."""

    values: frozenset[int] = frozenset()
    size: tuple[int, int] = (0, 0)
    """Height and width."""
    reason: str = ""


@dataclass
class _MaskReading:
    dataset: MaskedDataset
    coding: MaskCoding
    side_px: int
    tile_px: int | None = None
    dropped: list[dict[str, str]] = field(default_factory=list)

    def drop(self, row: int, reason: str) -> None:
        self.dropped.append({"source": self.dataset.samples[row].source, "reason": reason})


def tile_tokens(
    model: JudgedModel,
    dataset: MaskedDataset,
    *,
    num_classes: int | None,
    ignore_value: int | None,
    max_tiles: int,
    max_gib: float,
    batch_size: int,
    log: RunLog,
    tile_px: int | None = None,
    keep_images: bool = False,
) -> TileTokens:
    """Tokens of every tile of every image whose mask can be read and understood.

    `num_classes` and `ignore_value` say what the masks mean, see `infer_coding`; where the images give more
    than `max_tiles`, a stable draw is taken. With `tile_px` tiles are whole squares of that side, resized to
    the model's, as eva's are; `keep_images` keeps their pixels, and tokens in float32. Raises `UserError`
    where no image is left, or the tokens would not fit `max_gib`;
    `PermanentError` where a token is not finite or the model has no map of tokens.
    """
    from eosin.evaluation.embeddings.forward import Forward

    forward = Forward(*model.load())
    masks = _look(dataset)
    coding = infer_coding(
        (mask.values for mask in masks if not mask.reason),
        num_classes=num_classes,
        ignore_value=ignore_value,
    )
    reading = _MaskReading(dataset, coding, forward.img_px, tile_px, list(dataset.unpaired))
    all_tiles = _plan(reading, masks)
    tiles = draw(all_tiles, [sample.source for sample in dataset.samples], max_tiles)
    filled = _Filled(forward, len(tiles), max_gib, keep_images=keep_images)
    for batch in _batched(_cut_all(reading, tiles), batch_size):
        filled.add(batch)
        log.progress(filled.count, len(tiles), "tiles", model=model.name)
    if filled.tokens is None:
        first = reading.dropped[0] if reading.dropped else {"source": "-", "reason": "every pixel is ignored"}
        raise UserError(
            f"no image of {dataset.uri} can be used with its mask; "
            f"the first, {first['source']}: {first['reason']}"
        )
    count = filled.count
    return TileTokens(filled.tokens[:count], filled.classes[:count], tuple(filled.tiles), coding,
                      len(all_tiles), len(reading.dropped), tuple(reading.dropped[:_MAX_NAMED]),
                      filled.images[:count] if keep_images else None,
                      (forward.card.mean, forward.card.std))  # fmt: skip


def _batched(items: Iterable[T], size: int) -> Iterator[tuple[T, ...]]:
    rest = iter(items)
    while batch := tuple(islice(rest, size)):
        yield batch


def _look(dataset: MaskedDataset) -> list[_Mask]:
    """Values and size of every mask; a few are held at a time."""
    masks: list[_Mask] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for rows in _batched(range(len(dataset.samples)), _THREADS):
            masks += pool.map(_look_at, dataset.read_masks(rows))
    return masks


def _look_at(data: bytes | MissingImage) -> _Mask:
    if isinstance(data, MissingImage):
        return _Mask(reason=f"its mask: {data.reason}")
    try:
        values = load_mask(data)
    except BadImage as error:
        return _Mask(reason=f"its mask: {error}")
    return _Mask(frozenset(np.unique(values).tolist()), (values.shape[0], values.shape[1]))


def _plan(reading: _MaskReading, masks: list[_Mask]) -> list[Tile]:
    tiles: list[Tile] = []
    for row, mask in enumerate(masks):
        reason = mask.reason or reading.coding.unknown(mask.values)
        if reason:
            reading.drop(row, reason)
        else:
            height, width = mask.size
            if reading.tile_px is None:
                tiles += grid(row, width, height, reading.side_px)
            else:
                tiles += whole_grid(row, width, height, reading.tile_px)
    return tiles


_Cut = tuple[Tile, Pixels, Classes]


def _cut_all(reading: _MaskReading, tiles: list[Tile]) -> Iterator[_Cut]:
    """Tiles in order, image by image; those with no pixel to learn or judge are passed over."""
    by_row: dict[int, list[Tile]] = {}
    for tile in tiles:
        by_row.setdefault(tile.row, []).append(tile)
    for rows in _batched(by_row, _THREADS):
        pairs = zip(rows, reading.dataset.read(rows), reading.dataset.read_masks(rows), strict=True)
        for row, image, mask in pairs:
            try:
                pixels, classes = _pair(image, mask, reading.coding)
            except BadImage as error:
                reading.drop(row, str(error))
                continue
            for tile in by_row[row]:
                seen, labels = cut(pixels, classes, tile, reading.tile_px or reading.side_px)
                if reading.tile_px:
                    seen, labels = _resized(seen, labels, reading.side_px)
                if (labels != IGNORE).any():
                    yield tile, seen, labels


def _pair(
    image: bytes | MissingImage, mask: bytes | MissingImage, coding: MaskCoding
) -> tuple[Pixels, Classes]:
    for data in (image, mask):
        if isinstance(data, MissingImage):
            raise BadImage(data.reason)
    assert isinstance(image, bytes) and isinstance(mask, bytes)
    pixels, values = np.asarray(decode_image(image), dtype=np.uint8), load_mask(mask)
    if pixels.shape[:2] != values.shape:
        raise BadImage(
            f"the image has {pixels.shape[1]} × {pixels.shape[0]} pixels, "
            f"its mask {values.shape[1]} × {values.shape[0]}"
        )
    return pixels, coding.classes(values)


class _Filled:
    """Arrays for all tiles, made when the first batch has shown how large a token map is."""

    def __init__(self, forward: "Forward", num_tiles: int, max_gib: float, *, keep_images: bool) -> None:
        self._forward, self._num_tiles, self._max_gib = forward, num_tiles, max_gib
        self._keep_images = keep_images
        self.images = np.empty((0, 0, 0, 3), dtype=np.uint8)
        self.tokens: Tokens | None = None
        self.classes: Classes = np.empty((num_tiles, forward.img_px, forward.img_px), dtype=np.uint8)
        self.tiles: list[Tile] = []

    @property
    def count(self) -> int:
        return len(self.tiles)

    def add(self, batch: tuple[_Cut, ...]) -> None:
        pixels = np.stack([pixels for _, pixels, _ in batch])
        tokens = self._forward.tokens(pixels, whole=self._keep_images)
        if not np.isfinite(tokens).all():
            raise PermanentError(
                f"model {self._forward.card.name}: its patch tokens are not finite",
                hint="the checkpoint diverged: look at the loss before it, and judge an earlier one",
            )
        if self.tokens is None:
            self.tokens = self._room(tokens)
        place = slice(self.count, self.count + len(batch))
        self.tokens[place] = tokens
        if self._keep_images:
            self.images[place] = pixels
        self.classes[place] = np.stack([labels for _, _, labels in batch])
        self.tiles += [tile for tile, _, _ in batch]

    def _room(self, tokens: Tokens) -> Tokens:
        if self._keep_images:
            self.images = np.empty((*self.classes.shape, 3), dtype=np.uint8)
        gib = (tokens[0].nbytes * self._num_tiles + self.images.nbytes) / _GIB
        if gib > self._max_gib:
            raise UserError(
                f"the tokens of {self._num_tiles} tiles need {gib:.1f} GiB, {self._max_gib:g} are allowed",
                hint="lower max_tiles for all models alike, or raise max_tokens_gib",
            )
        return np.empty((self._num_tiles, *tokens.shape[1:]), dtype=tokens.dtype)
